"""Levels of the codebook formats: published ones, and those of the solver, kept in the cache."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import numpy.typing as npt

from gguf_bof4.codebook.law import Metric, Normalization
from gguf_bof4.errors import UserError, require
from gguf_bof4.paths import cache_root, write_text

Levels = npt.NDArray[np.float32]

RECIPE = 1
"""To be raised with every change of the solver's results."""


@functools.cache
def solved(block: int, normalization: Normalization, metric: Metric, fixed: tuple[float, ...], count: int) -> Levels:
    """Levels of the solver for Gaussian weights, ascending, float32 [count].

    Raises:
        UserError: the solver refuses the problem.
    """
    words = [str(RECIPE), str(block), normalization, metric, str(count), *(f"{level:g}" for level in fixed)]
    path = cache_root() / "study" / f"levels-{re.sub(r'[^-.a-z0-9]', '', '_'.join(words))}.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        require("codebook", "computing levels", "scipy")
        from gguf_bof4.codebook import solve_theory

        try:
            found = solve_theory(block, count, normalization, metric, fixed).tolist()
        except ValueError as error:
            raise UserError(f"levels for blocks of {block}: {error}") from error
        write_text(path, json.dumps(found))
    return np.array(found, dtype=np.float32)


def af4_levels(block: int) -> Levels:
    """The 16 levels of AF4, ascending.

    AF4 has eight positive levels and seven negative ones, each side as if there were no level 0: the positive ones are
    those of the best 16 levels without a 0, the negative ones of the best 14, in both cases for the absolute error of
    normalized weights with -1 and 1 fixed. With blocks of 64 this gives the published levels to all their digits.
    """
    positive = solved(block, "absolute", "mae-normalized", (-1.0, 1.0), 16)[8:]
    negative = solved(block, "absolute", "mae-normalized", (-1.0, 1.0), 14)[:7]
    return np.concatenate([negative, np.zeros(1, np.float32), positive])
