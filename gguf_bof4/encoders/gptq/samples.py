"""Samples: windows of calibration texts, tokenized by the tokenizer of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gguf_bof4.encoders.gptq.shares import shares
from gguf_bof4.errors import UserError


@dataclass(frozen=True)
class Samples:
    """The tokens that the model reads.

    Attributes:
        tokens: int64 [samples, length].
        wanted: the number of samples that was asked for; a short text has fewer.
    """

    tokens: torch.Tensor
    wanted: int

    @property
    def count(self) -> int:
        return self.tokens.shape[0]


def beginning(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text: BOS, or none."""
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    for i in range(len(whole) - len(bare) + 1):
        if whole[i : i + len(bare)] == bare:
            return list(whole[:i])
    return []


def make_samples(tokenizer: Any, sources: Sequence[tuple[Path, Sequence[int]]], count: int, length: int) -> Samples:
    """Windows spread evenly over each source, without overlap, in equal shares.

    Args:
        tokenizer: of transformers.
        sources: each with its tokens.
        count: of samples.
        length: tokens in each, BOS included where the tokenizer adds one.

    Raises:
        UserError: a source has less than one sample, or there are more sources than samples.
    """
    first = beginning(tokenizer)
    body = length - len(first)
    if len(sources) > count:
        raise UserError(
            f"{len(sources)} calibration texts have no equal shares of {count} samples: give more "
            "--calibration-samples, or fewer texts"
        )
    for path, tokens in sources:
        if len(tokens) < body:
            raise UserError(
                f"the calibration text {path} has {len(tokens)} tokens, less than one sample of {length}: give a "
                "longer text, or a smaller --calibration-length"
            )
    rows: list[list[int]] = []
    for (_, tokens), had in zip(sources, shares([len(t) // body for _, t in sources], count), strict=True):
        starts = [i * (len(tokens) - body) // max(1, had - 1) for i in range(had)]
        rows += [first + list(tokens[start : start + body]) for start in starts]
    return Samples(torch.tensor(rows, dtype=torch.int64), count)
