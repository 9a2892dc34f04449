"""How far one model is from another on a text: what quantizing cost, by llama-perplexity."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from gguf_bof4.bench.disk import check_disk
from gguf_bof4.divergence import CONTEXT, MEASURES, NUMBER, parse_measures
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.programs import run_program, thread_options
from gguf_bof4.gguf_files.header import escaped
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.progress import Progress, no_progress

CHUNKS = 32

_ERROR = rf".*±\s+{NUMBER}"
_PATTERNS = {
    **MEASURES,
    "median_kld": rf"^Median\s+KLD:\s+{NUMBER}",
    "max_kld": rf"^Maximum\s+KLD:\s+{NUMBER}",
    "same_top_error": rf"^Same top p:{_ERROR}",
    "ppl": rf"^Mean PPL\(Q\)\s+:\s+{NUMBER}",
    "ppl_error": rf"^Mean PPL\(Q\)\s+:{_ERROR}",
    "ppl_base": rf"^Mean PPL\(base\)\s+:\s+{NUMBER}",
    "ppl_base_error": rf"^Mean PPL\(base\)\s+:{_ERROR}",
    "ppl_ratio_error": rf"^Mean PPL\(Q\)/PPL\(base\)\s+:{_ERROR}",
}
_REMEDY = "Check that both files are language models and that the memory is enough for the larger one."


@dataclass(frozen=True)
class Figures:
    """What llama-perplexity prints of two models; errors are standard errors.

    Attributes:
        mean_kld: mean KL divergence of the next token's distribution, in nats.
        kld_99_9: the divergence that one token in a thousand exceeds.
        same_top: percent of the tokens where both find the same one most probable.
        ppl: perplexity of the compared model.
        ppl_ratio: of it over `ppl_base`. Both have the same text, so its error is far smaller than theirs.
    """

    mean_kld: float
    mean_kld_error: float
    median_kld: float
    kld_99_9: float
    max_kld: float
    same_top: float
    same_top_error: float
    ppl: float
    ppl_error: float
    ppl_base: float
    ppl_base_error: float
    ppl_ratio: float
    ppl_ratio_error: float


@dataclass(frozen=True)
class Comparison:
    """Two models on a text.

    Attributes:
        base: the model that is taken as right.
        chunks: that were judged, of `context` tokens, of which the second half counts.
    """

    base: Model
    model: Model
    text: Path
    chunks: int
    context: int
    figures: Figures


def parse_figures(output: str) -> Figures:
    """Read what llama-perplexity --kl-divergence prints.

    Raises:
        UserError: a figure is missing.
    """
    return Figures(**parse_measures(output, _PATTERNS))


def check_vocabularies(base: Model, model: Model) -> int:
    """The number of tokens of two models of one vocabulary.

    Raises:
        UserError: one has no vocabulary, or they differ: distributions over other tokens cannot be compared.
    """
    tokens = []
    for opened in (base, model):
        found = opened.strings("tokenizer.ggml.tokens")
        if not found:
            raise UserError(f"{opened.path} has no vocabulary (tokenizer.ggml.tokens): it is no language model")
        tokens.append(found)
    a, b = tokens
    if len(a) != len(b):
        raise UserError(
            f"{base.path} and {model.path} have different vocabularies, of {len(a)} and {len(b)} tokens: their "
            "distributions cannot be compared"
        )
    for i, (ours, theirs) in enumerate(zip_longest(a, b)):
        if ours != theirs:
            raise UserError(
                f"{base.path} and {model.path} have different vocabularies: token {i} is {escaped(ours)} in the first "
                f"and {escaped(theirs)} in the second. Their distributions cannot be compared"
            )
    return len(a)


def logits_bytes(vocabulary: int, chunks: int, context: int) -> int:
    """Bytes of the file of distributions that llama-perplexity writes: 16 bits a token and judged position."""
    return 20 + chunks * (4 * context + (context - 1 - context // 2) * 2 * (2 * ((vocabulary + 1) // 2) + 4))


def _check_text(text: Path) -> None:
    try:
        empty = not text.read_bytes()[:1]
    except OSError as error:
        raise UserError(f"{text} cannot be read: {error.strerror}") from error
    if empty:
        raise UserError(f"{text} is empty: give a text of {2 * CONTEXT} tokens or more, some kilobytes")


def _chunks_of(output: str, text: Path, context: int) -> int:
    """The number of chunks that llama-perplexity has run on."""
    if (short := re.search(r"tokenizes to only (\d+) tokens", output)) is not None:
        raise UserError(f"{text} has {short[1]} tokens, and two chunks of {context} are needed: give a longer text")
    if (found := re.search(r"calculating perplexity over (\d+) chunks", output)) is None:
        raise UserError(f"llama-perplexity did not run; it ended with:\n{output.strip()[-1500:]}\n{_REMEDY}")
    return int(found[1])


def compare(
    base: Path,
    model: Path,
    text: Path,
    *,
    chunks: int = CHUNKS,
    context: int = CONTEXT,
    threads: int = 0,
    arguments: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Comparison:
    """Compare a model with the one that it was made from.

    The distributions of the base are in a temporary folder meanwhile, whose space is checked first.

    Args:
        chunks: of `context` tokens at most; fewer where the text is shorter.
        threads: 0: llama.cpp's default.
        arguments: more options of llama-perplexity, for both models, such as ("-ngl", "99").
        progress: called with chunks.

    Raises:
        UserError: a file or the text cannot be read, the vocabularies differ, the text is too short, the temporary
            folder has no room, or llama-perplexity failed.
    """
    opened_base, opened = open_model(base), open_model(model)
    vocabulary = check_vocabularies(opened_base, opened)
    _check_text(text)
    options = ["-c", str(context), *thread_options(threads), *arguments]

    def report(step: str, pattern: str, total: int, output: str) -> None:
        numbers = re.findall(pattern, output, re.MULTILINE)
        progress(step, int(numbers[-1]) if numbers else 0, total)

    with tempfile.TemporaryDirectory(prefix="bof4-compare-") as name:
        folder = Path(name)
        needed = logits_bytes(vocabulary, chunks, context)
        remedy = "set TMPDIR to a folder with more, or give fewer --chunks"
        check_disk(folder, needed, f"comparing {chunks} chunks", remedy)
        logits = folder / "logits"
        progress(f"running {base.name}", 0, 0)
        output = run_program(
            "llama-perplexity", "-m", base, "-f", text, "--chunks", str(chunks), "--kl-divergence-base", logits,
            *options, remedy=_REMEDY, on_output=lambda text: report(f"running {base.name}", r"\[(\d+)\]", chunks, text),
        )  # fmt: skip
        found = _chunks_of(output, text, context)
        if (written := logits.stat().st_size) != (wanted := logits_bytes(vocabulary, found, context)):
            raise UserError(
                f"{logits} has {written} bytes instead of {wanted}: the disk is full. Set TMPDIR to a folder with more "
                "room, or give fewer --chunks"
            )
        output = run_program(
            "llama-perplexity", "-m", model, "--kl-divergence-base", logits, "--kl-divergence", *options,
            remedy=_REMEDY, on_output=lambda text: report(f"running {model.name}", r"^ *(\d+) +\S+ ± ", found, text),
        )  # fmt: skip
    return Comparison(opened_base, opened, text, found, context, parse_figures(output))
