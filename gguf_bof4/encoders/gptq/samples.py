"""Samples: windows of a calibration text, tokenized by the tokenizer of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gguf_bof4.errors import UserError

STEP = 32
"""The default number of samples is a multiple of this."""

TOKENS_PER_INPUT = 3
"""Tokens per input of the widest layer, at least, by default: with fewer its Hessian is noise (bench/NOTES.md)."""


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


def read_text(path: Path) -> str:
    """Read a calibration text.

    Raises:
        UserError: it cannot be read, or is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the calibration text {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the calibration text {path} is not UTF-8: {error}. Give a plain text file") from error


def _beginning(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text: BOS, or none."""
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    for i in range(len(whole) - len(bare) + 1):
        if whole[i : i + len(bare)] == bare:
            return list(whole[:i])
    return []


def enough_samples(inputs: int, length: int) -> int:
    """The default number of samples.

    Args:
        inputs: of its widest layer.
        length: tokens in a sample.
    """
    return STEP * max(1, math.ceil(TOKENS_PER_INPUT * inputs / (STEP * length)))


def make_samples(tokenizer: Any, text: str, path: Path, count: int, length: int) -> Samples:
    """Windows spread evenly over the text, without overlap.

    Args:
        tokenizer: of transformers.
        path: of the text, for messages.
        count: of samples.
        length: tokens in each, BOS included where the tokenizer adds one.

    Raises:
        UserError: the text has less than one sample.
    """
    first = _beginning(tokenizer)
    body = length - len(first)
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    had = min(count, len(tokens) // body)
    if had == 0:
        raise UserError(
            f"the calibration text {path} has {len(tokens)} tokens, less than one sample of {length}: give a longer "
            "text, or a smaller --calibration-length"
        )
    starts = [i * (len(tokens) - body) // max(1, had - 1) for i in range(had)]
    rows = [first + tokens[start : start + body] for start in starts]
    return Samples(torch.tensor(rows, dtype=torch.int64), count)
