"""How many samples there are, and how many of them each source gives. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

STEP = 32
"""The default number of samples is a multiple of this."""

TOKENS_PER_INPUT = 3
"""Tokens per input of the widest layer, at least, by default: with fewer its Hessian is noise (bench/NOTES.md)."""


def enough_samples(inputs: int, length: int) -> int:
    """The default number of samples.

    Args:
        inputs: of the widest layer.
        length: tokens in a sample.
    """
    return STEP * max(1, math.ceil(TOKENS_PER_INPUT * inputs / (STEP * length)))


def shares(available: Sequence[int], count: int) -> list[int]:
    """How many of `count` samples each source gives: equal shares; what one does not have, the others give.

    Args:
        available: samples that each source has.
    """
    taken = [0] * len(available)
    while (left := count - sum(taken)) and (open_ := [i for i, had in enumerate(available) if taken[i] < had]):
        share, rest = divmod(left, len(open_))
        for place, i in enumerate(open_):
            taken[i] = min(available[i], taken[i] + share + (place < rest))
    return taken
