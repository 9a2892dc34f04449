"""How far a quantized model is from the unquantized one on a text, by llama-perplexity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.programs import run_program, thread_options

REMEDY = "Earlier measurements are kept: remove the cause and run again."
"""Where a program of llama.cpp fails."""

CONTEXT = 512
"""Tokens of a chunk; llama-perplexity judges the second half of them."""

NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)"
"""A number that llama-perplexity prints, as a group of a regular expression."""

MEASURES = {
    "mean_kld": rf"^Mean\s+KLD:\s+{NUMBER}",
    "mean_kld_error": rf"^Mean\s+KLD:.*±\s+{NUMBER}",
    "kld_99_9": rf"^99\.9%\s+KLD:\s+{NUMBER}",
    "same_top": rf"^Same top p:\s+{NUMBER}",
    "ppl_ratio": rf"^Mean PPL\(Q\)/PPL\(base\)\s+:\s+{NUMBER}",
}
"""Regular expressions of what llama-perplexity --kl-divergence prints, by the fields of Distance."""


@dataclass(frozen=True)
class Distance:
    """How far a model is from the unquantized one, over the judged tokens of a text.

    Attributes:
        mean_kld: mean KL divergence of the next token's distribution, in nats.
        mean_kld_error: its standard error.
        kld_99_9: the divergence that one token in a thousand exceeds.
        same_top: percent of the tokens where both find the same one most probable.
        ppl_ratio: perplexity over that of the unquantized model.
    """

    mean_kld: float
    mean_kld_error: float
    kld_99_9: float
    same_top: float
    ppl_ratio: float


def parse_measures(output: str, patterns: Mapping[str, str]) -> dict[str, float]:
    """Read numbers from what llama-perplexity prints.

    Args:
        patterns: regular expressions with one group, a NUMBER, by the names of the results.

    Raises:
        UserError: a number is missing.
    """
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, output, re.MULTILINE)
        if match is None:
            raise UserError(
                f"llama-perplexity printed no {name}; it ended with:\n{output.strip()[-1500:]}\n"
                "Is the text as long as --chunks asks for?"
            )
        found[name] = float(match[1])
    return found


def parse_distance(output: str) -> Distance:
    """Read what llama-perplexity --kl-divergence prints.

    Raises:
        UserError: a figure is missing.
    """
    return Distance(**parse_measures(output, MEASURES))


def _perplexity(model: Path, logits: Path, threads: int, *arguments: str | Path) -> str:
    return run_program(
        "llama-perplexity", "-m", model, "-c", str(CONTEXT), "--kl-divergence-base", logits,
        *thread_options(threads), *arguments, remedy=REMEDY,
    )  # fmt: skip


def write_logits(model: Path, text: Path, chunks: int, logits: Path, threads: int) -> None:
    """The unquantized model's distributions on the first chunks of a text, for `distance`.

    Raises:
        UserError: llama-perplexity failed, or the text is too short.
    """
    output = _perplexity(model, logits, threads, "-f", text, "--chunks", str(chunks))
    if not re.search(rf"over {chunks} chunks", output):
        raise UserError(f"{text} is too short for {chunks} chunks of {CONTEXT} tokens: give fewer --chunks")


def distance(model: Path, logits: Path, chunks: int, threads: int) -> Distance:
    """How far a model is from the one that `write_logits` was called with.

    Raises:
        UserError: llama-perplexity failed.
    """
    return parse_distance(_perplexity(model, logits, threads, "--kl-divergence", "--chunks", str(chunks)))
