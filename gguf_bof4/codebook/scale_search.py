"""Levels for blocks with a searched scale instead of the signed maximum, as BOF4_K has.

They are a fixed point of Lloyd's iteration: every block takes the scale, of either sign, with the least squared error,
then every level the value with the least squared error for its weights. A common factor of all levels does not change
the error, so the level of largest magnitude is 1 here; 0 is fixed.

The best scale is found exactly. As 1/scale grows from 0, the weights of a block leave the level 0 and cross the
midpoints between levels one by one: sorted, these crossings give all sets of levels that a block can have.

Lloyd's iteration converges too slowly in the flat valleys of this error (hundreds of steps are not enough). Its step is
the gradient of the error, scaled level by level; L-BFGS with that scaling converges in some tens of steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from gguf_bof4.codebook.law import Array
from gguf_bof4.codebook.lloyd import check_levels
from gguf_bof4.codebook.samples import whole_blocks

Floats = npt.NDArray[np.float32]

FLAT = 1e-6
"""Relative decrease of the error in a step below which the descent has converged."""

MOST_STEPS = 100
EXPLORED = 2**16
"""Weights on which several starts are tried."""

REACHES = (0.7, 0.8, 0.95)
"""Magnitudes of the lowest level of a start, where the highest is 1; of dozens tried, these gave the lowest minima."""

CROSSINGS = 2**19
"""Crossings that are sorted at a time."""


def blocks_of(chunks: Iterable[npt.ArrayLike], block_size: int) -> Floats:
    """The blocks of some arrays, float32 [n, block size], less those of zeros, which any levels fit.

    Raises:
        ValueError: a weight is not finite, or there is no block that is not all zeros.
    """
    found = [blocks[blocks.any(axis=1)].astype(np.float32) for blocks in whole_blocks(chunks, block_size)]
    blocks = np.concatenate(found) if found else np.empty((0, block_size), np.float32)
    if len(blocks) == 0:
        raise ValueError(f"not one block of {block_size} weights that are not all zero: pass more weights")
    return blocks


def _sides(levels: Array) -> tuple[Floats, Floats, Floats]:
    """Midpoints on either side of level 0, outwards, and the differences of levels and of their squares there.

    Returns:
        float32 [2, steps] each, the positive side first, magnitudes; the shorter side ends in midpoints that nothing
        crosses.
    """
    zero = int(np.flatnonzero(levels == 0)[0])
    sides = (levels[zero:], -levels[zero::-1])
    steps = max(len(side) for side in sides) - 1
    midpoint = np.full((2, steps), np.inf, np.float32)
    growth, growth_of_square = np.zeros((2, 2, steps), np.float32)
    for i, side in enumerate(sides):
        n = len(side) - 1
        midpoint[i, :n] = (side[1:] + side[:-1]) / 2
        growth[i, :n], growth_of_square[i, :n] = np.diff(side), np.diff(side**2)
    return midpoint, growth, growth_of_square


def best_scales(blocks: Floats, levels: Array) -> Floats:
    """The scale of each block with the least squared error to the nearest levels.

    Args:
        blocks: float32 [n, I], none all zeros.
        levels: ascending, one of them 0.

    Returns:
        float32 [n], of either sign.
    """
    n = len(blocks)
    midpoint, growth, growth_of_square = _sides(levels)
    magnitude = np.abs(blocks)[:, :, None]
    best_gain, best = np.full(n, -1, np.float32), np.zeros(n, np.float32)
    rows = np.arange(n)
    for sign in (1, -1):
        side = (blocks * np.float32(sign) < 0).astype(np.intp)
        with np.errstate(divide="ignore"):
            at = (midpoint[side] / magnitude).reshape(n, -1)
        # positive floats sort like their bits, so an index in the low bits keeps their places
        keys = at.view(np.uint32).astype(np.uint64) << np.uint64(32) | np.arange(at.shape[1], dtype=np.uint64)
        keys.sort(axis=1)
        order = (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)
        # sums of weight x level and of level squared, after each crossing
        xk = np.take_along_axis((growth[side] * magnitude).reshape(n, -1), order, axis=1).cumsum(axis=1)
        kk = np.take_along_axis(growth_of_square[side].reshape(n, -1), order, axis=1).cumsum(axis=1)
        gain = xk * xk / kk
        last = gain.argmax(axis=1)
        better = gain[rows, last] > best_gain
        best_gain = np.where(better, gain[rows, last], best_gain)
        best = np.where(better, sign * xk[rows, last] / kk[rows, last], best).astype(np.float32)
    return best


class _Sums(NamedTuple):
    """What the error depends on: sums over the weights of each level, float64 [L], divided by the number of weights.

    Attributes:
        ss: scale squared.
        sw: scale times weight.
        error: mean squared error of a weight.
    """

    ss: Array
    sw: Array
    error: float


def _sums(blocks: Floats, levels: Array) -> _Sums:
    ss, sw, square = np.zeros(len(levels)), np.zeros(len(levels)), 0.0
    midpoints = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    step = max(1, CROSSINGS // (blocks.shape[1] * len(levels)))
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        scales = best_scales(part, levels)[:, None]
        codes = np.searchsorted(midpoints, (part / scales).ravel())
        ss += np.bincount(codes, np.broadcast_to(scales**2, part.shape).ravel(), minlength=len(levels))
        sw += np.bincount(codes, (scales * part).ravel(), minlength=len(levels))
        square += float(np.square(part, dtype=np.float64).sum())
    ss, sw, square = ss / blocks.size, sw / blocks.size, square / blocks.size
    return _Sums(ss, sw, float(square - 2 * sw @ levels + ss @ levels**2))


def searched_error(levels: Array, blocks: Floats) -> float:
    """Mean squared error of a weight, every block with its best scale.

    Args:
        levels: ascending, one of them 0; a common factor does not matter.
        blocks: float32 [n, I].
    """
    return _sums(blocks, np.asarray(levels, np.float64)).error


def _starts(levels: int) -> list[Array]:
    """Starting levels: denser around 0, and asymmetric, because a block can choose the side of its largest weight."""
    negative = (levels - 1) // 2
    positive = levels - 1 - negative
    left = -((np.arange(negative, 0, -1) / negative) ** 1.25)
    right = (np.arange(1, positive + 1) / positive) ** 1.25
    return [np.concatenate([reach * left, [0.0], right]) for reach in REACHES]


def _descend(blocks: Floats, start: Array) -> Array:
    """The local minimum reached from `start`, ascending; the level of largest magnitude is 1."""
    first = _sums(blocks, start)
    free = np.flatnonzero(start)
    free = free[free != np.abs(start).argmax()]
    unit = 1 / np.sqrt(np.maximum(first.ss[free], 1e-6 * first.ss.max()))  # of a step of each level

    def error(steps: Array) -> tuple[float, Array]:
        values = start.copy()
        values[free] = steps * unit
        order = np.argsort(values)  # a long step may change the order of the levels
        found = _sums(blocks, values[order])
        gradient = np.empty_like(values)
        gradient[order] = 2 * (found.ss * values[order] - found.sw)
        return found.error / first.error, gradient[free] * unit / first.error

    options: Any = {"ftol": FLAT, "gtol": 0.0, "maxcor": len(free), "maxiter": MOST_STEPS}
    result = minimize(error, start[free] / unit, jac=True, method="L-BFGS-B", options=options)
    found = start.copy()
    found[free] = result.x * unit
    # where the largest is negative, this gives the mirror image, which is as good
    return np.sort(found / found[np.abs(found).argmax()]) + 0.0  # no negative zero


def solve_searched(blocks: Floats, levels: int, start: Array | None = None) -> Array:
    """The levels with the least searched_error() that the descent from several starts, or from `start`, finds.

    The error has many minima, some of them within 0.1 % of each other. So the descent runs from each start on a part of
    the blocks, then on all blocks from the best result.

    Args:
        blocks: of blocks_of().
        levels: how many, 3 to 256, level 0 included.
        start: ascending, one of them 0.

    Returns:
        float64 [levels], ascending; the one of largest magnitude is 1.

    Raises:
        ValueError: a number of levels out of range.
    """
    check_levels(levels, (0.0, 1.0))
    if levels < 3:
        raise ValueError("scale search needs a level on either side of 0: choose 3 levels or more")
    if start is None:
        part = blocks[: max(1, EXPLORED // blocks.shape[1])]
        ends = [_descend(part, each) for each in _starts(levels)]
        start = min(ends, key=lambda end: searched_error(end, part))
    return _descend(blocks, start)
