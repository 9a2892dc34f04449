"""Lloyd's iteration for the quantizer with the least error of the weights (eqs. 6, 8, 35 and 59)."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import solveh_banded

from gguf_bof4.codebook.law import BELOW_ONE, Array, Law

FIXABLE = (-1.0, 0.0, 1.0)
LEVEL_COUNTS = range(2, 256 + 1)

FLAT = 1e-13
"""Relative decrease of the expected error below which the iteration has converged."""

COUPLINGS = (1.0, 0.99, 0.9)
"""The Newton steps tried, see _newton_guess()."""

MOST_STEPS = 20_000
"""Limit of steps; usually some tens are needed."""

EMPTY = 1e-13
"""A region with less than this fraction of all mass is empty up to rounding errors."""

START_CELLS = 2048
"""Cells of the histogram that gives the starting levels."""


def check_levels(levels: int, fixed: Iterable[float]) -> tuple[float, ...]:
    """The fixed levels, ascending and without repetition.

    Raises:
        ValueError: levels outside 2 to 256, a fixed level that is not -1, 0 or 1, or more fixed
            levels than levels.
    """
    chosen = tuple(sorted({float(level) for level in fixed}))
    if levels not in LEVEL_COUNTS:
        raise ValueError(f"{levels} levels: choose an integer from 2 to 256")
    if not set(chosen) <= set(FIXABLE):
        raise ValueError(f"fixed levels {chosen}: only -1, 0 and 1 can be fixed")
    if len(chosen) > levels:
        raise ValueError(f"{len(chosen)} fixed levels but only {levels} in all: fix fewer or allow more levels")
    return chosen


class Regions(NamedTuple):
    """The nearest-neighbour regions of a codebook of L levels.

    Attributes:
        edges: shape (L + 1,), from -inf to inf.
        at_edges: law.cumulative(edges), shape (3, L + 1).
        mass: shape (L,).
        filled: boolean, shape (L,); False where there is no mass, so that the level stays.
    """

    edges: Array
    at_edges: Array
    mass: Array
    filled: npt.NDArray[np.bool_]


def regions(levels: Array, law: Law) -> Regions:
    """Split [-1, 1] between the levels: each x belongs to its nearest one."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    at_edges = law.cumulative(edges)
    mass = np.diff(at_edges[0])
    return Regions(edges, at_edges, mass, mass > EMPTY * at_edges[0, -1])


def expected_error(levels: npt.ArrayLike, law: Law) -> float:
    """Mean error of a weight when the normalized weights are rounded to the nearest level.

    Args:
        levels: ascending, shape (L,).
        law: from theoretical_law() or sampled_law(); it carries the metric.

    Returns:
        E[m^2 (x - Q(x))^2] for MSE, E[|m| |x - Q(x)|] for MAE: the error of w itself, in units of
        the weights (squared for MSE).
    """
    levels = np.asarray(levels, np.float64)
    parts = regions(levels, law)
    if law.power == 2:
        mass, first, second = np.diff(parts.at_edges)
        error = np.sum(second - 2 * levels * first + levels**2 * mass)
    else:
        left, at, right = parts.at_edges[:, :-1], law.cumulative(levels), parts.at_edges[:, 1:]
        above_minus_below = left + right - 2 * at
        error = np.sum(above_minus_below[1] - levels * above_minus_below[0])
    return max(float(error), 0.0)  # rounding can take it below


def lloyd_step(levels: npt.ArrayLike, law: Law, fixed: Iterable[float] = (0.0, 1.0)) -> Array:
    """One iteration: regions by nearest neighbour, then each free level to its region's centroid.

    The centroid is the mean weighted by m^2 (eqs. 6 and 35 to 42) or the median weighted by |m|
    (eqs. 8 and 59). Levels of empty regions stay. No step raises expected_error().

    Args:
        levels: ascending, shape (L,).
        law: from theoretical_law() or sampled_law().
        fixed: levels that stay where they are.

    Returns:
        float64, shape (L,), ascending.
    """
    levels = np.asarray(levels, np.float64)
    return _centroids(levels, regions(levels, law), law, np.isin(levels, list(fixed)))


def _centroids(levels: Array, parts: Regions, law: Law, held: npt.NDArray[np.bool_]) -> Array:
    if law.power == 2:
        first = np.diff(parts.at_edges[1])
        centroid = np.divide(first, parts.mass, out=levels.copy(), where=parts.filled)
    else:
        centroid = law.quantile((parts.at_edges[0, :-1] + parts.at_edges[0, 1:]) / 2)
    # the centroid of a nearly empty region is a rounding error; clipping keeps the order of the levels
    centroid = np.clip(centroid, np.maximum(parts.edges[:-1], -1.0), np.minimum(parts.edges[1:], 1.0))
    return np.where(parts.filled & ~held, centroid, levels)


def solve(law: Law, levels: int = 16, fixed: Iterable[float] = (0.0, 1.0)) -> Array:
    """The codebook with the least expected error, a fixed point of Lloyd's iteration.

    With no level fixed, absolute normalization and tails heavier than Laplace's, the best codebook of
    a symmetric law is asymmetric, and its mirror image is as good: either may be returned.

    Args:
        law: from theoretical_law() or sampled_law().
        levels: L, how many levels, 2 to 256, the fixed ones included.
        fixed: any of -1, 0 and 1. The free levels are divided between the two sides of a fixed 0 by the
            law's spread; evenly if it is nearly symmetric, with an odd one on the right.

    Returns:
        float64, shape (levels,), ascending, in [-1, 1].

    Raises:
        ValueError: see check_levels().
    """
    chosen = check_levels(levels, fixed)
    start = starting_levels(law, levels, chosen)
    return _polish(_descend(start, law, chosen), law, chosen)


def _descend(levels: Array, law: Law, fixed: tuple[float, ...]) -> Array:
    """Lower the expected error, by Newton's step or by Lloyd's, until neither lowers it further.

    Lloyd's never raises it, but alone needs steps by the thousand for 256 levels.
    """
    held = np.isin(levels, fixed)
    error = np.inf
    for _ in range(MOST_STEPS):
        parts = regions(levels, law)
        target = _centroids(levels, parts, law, held)
        guesses = [_newton_guess(levels, parts, law, target, held, share) for share in COUPLINGS]
        new_error, levels = min(
            ((expected_error(guess, law), guess) for guess in [*guesses, target]), key=itemgetter(0)
        )
        if not new_error < (1 - FLAT) * error:
            break
        error = new_error
    return levels


def _polish(levels: Array, law: Law, fixed: tuple[float, ...]) -> Array:
    """Newton's steps for as long as each halves the distance to the centroids.

    Around its minimum the error is flat, so _descend() alone gets half of the digits right.
    """
    held = np.isin(levels, fixed)
    best, least = levels, np.inf
    while True:
        parts = regions(levels, law)
        target = _centroids(levels, parts, law, held)
        distance = np.abs(target - levels).max()
        if not distance < least / 2:
            return best
        best, least = levels, distance
        levels = _newton_guess(levels, parts, law, target, held)


def _newton_guess(
    levels: Array, parts: Regions, law: Law, target: Array, held: npt.NDArray[np.bool_], share: float = 1.0
) -> Array:
    """The levels after Newton's step for the least error, or `target` where that step is unsafe.

    share: fraction of the coupling between neighbours that is taken into account. With 0, Newton's step
    is Lloyd's; slightly below 1, it follows valleys and leaves saddle points.

    Half the error's gradient is mass * (level - mean of the region) for MSE and, for MAE, the mass
    of the region below the level minus that above, halved. A level moves only the two edges of its
    region, so the Hessian is tridiagonal. Unless it is positive definite, the step could lead to a
    saddle point; such points exist, e.g. symmetric codebooks for heavy tails.
    """
    ends = np.clip(parts.edges, -1.0, 1.0)
    at_edge = law.density(ends[1:-1], levels[:-1], levels[1:])
    if law.power == 2:
        gradient = levels * parts.mass - np.diff(parts.at_edges[1])
        curvature, coupling = parts.mass.copy(), at_edge * np.diff(levels) / 4
    else:
        mass = parts.at_edges[0]
        gradient = law.cumulative(levels)[0] - (mass[:-1] + mass[1:]) / 2
        curvature, coupling = law.density(levels, ends[:-1], ends[1:]), at_edge / 4
    # levels at a point mass have no gradient: they take Lloyd's step
    free = parts.filled & ~held & (np.abs(target) < 1)
    coupling *= share
    curvature[:-1] -= coupling
    curvature[1:] -= coupling
    coupling[~(free[:-1] & free[1:])] = 0.0
    bands = np.stack([np.append(0.0, -coupling), np.where(free, curvature, 1.0)])
    try:
        step = solveh_banded(bands, np.where(free, gradient, 0.0))
    except np.linalg.LinAlgError:
        return target
    guess = np.where(free, levels - step, target)
    safe = (np.diff(guess) > 0).all() and np.abs(guess).max() <= 1
    return guess if safe else target


def starting_levels(law: Law, levels: int, fixed: tuple[float, ...]) -> Array:
    """The levels of a companding quantizer, the best start that needs no iteration.

    Their density is proportional to that of x to the power 1/(1+p).
    """
    grid = np.linspace(-BELOW_ONE, BELOW_ONE, START_CELLS + 1) ** 3
    mass, width = np.diff(law.cumulative(grid)[0]), np.diff(grid) / 2
    whole = law.cumulative(np.array([np.inf]))[0, 0]
    share = (np.maximum(mass, 0.0) / whole) ** (1 / (1 + law.power)) * width ** (law.power / (1 + law.power))
    spread = np.concatenate([[0.0], np.cumsum(share + 1e-9 * width)])  # strictly rising, so invertible
    free = levels - len(fixed)
    if 0.0 in fixed:
        middle = spread[START_CELLS // 2]
        negative = _negative_levels(free, float(middle / spread[-1]))
        places = np.concatenate(
            [
                middle * _midpoints(negative),
                middle + (spread[-1] - middle) * _midpoints(free - negative),
            ]
        )
    else:
        # not symmetric, because an exactly symmetric start can end at a saddle point
        places = spread[-1] * (_midpoints(free) + 0.01 / max(free, 1))
    return np.sort(np.concatenate([np.interp(places, spread, grid), fixed]))


def _negative_levels(free: int, share: float) -> int:
    """Number of free levels below a fixed zero; `share` is the fraction of the spread there."""
    if abs(share - 0.5) < 0.05:  # else noise decides for a symmetric law
        return free // 2
    return ceil(free * share - 0.5)


def _midpoints(count: int) -> Array:
    return (np.arange(count) + 0.5) / max(count, 1)
