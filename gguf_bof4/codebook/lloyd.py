"""Lloyd's iteration for the quantizer with the least error of the weights (eqs. 6, 8, 35 and 59)."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_banded

from .law import BELOW_ONE, Array, Law

FIXABLE = (-1.0, 0.0, 1.0)
LEVEL_COUNTS = range(2, 256 + 1)

TOLERANCE = 1e-13
"""The iteration ends when no level moves further than this."""

MOST_STEPS = 20_000
EMPTY = 1e-13
"""A region with less than this share of all mass is empty: the rest is rounding."""

START_CELLS = 2048


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
        filled: boolean, shape (L,); False where no mass is, whose level nothing can move.
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
        return float(np.sum(second - 2 * levels * first + levels**2 * mass))
    left, at, right = parts.at_edges[:, :-1], law.cumulative(levels), parts.at_edges[:, 1:]
    above_minus_below = left + right - 2 * at
    return float(np.sum(above_minus_below[1] - levels * above_minus_below[0]))


def lloyd_step(levels: npt.ArrayLike, law: Law, fixed: Iterable[float] = (0.0, 1.0)) -> Array:
    """One iteration: regions by nearest neighbour, then each free level to its region's centroid.

    The centroid is the mean weighed by m^2 (eqs. 6 and 35 to 42) or the median weighed by |m|
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
    # A nearly empty region's centroid is rounding noise; the clip keeps the order of the levels.
    centroid = np.clip(centroid, np.maximum(parts.edges[:-1], -1.0), np.minimum(parts.edges[1:], 1.0))
    return np.where(parts.filled & ~held, centroid, levels)


def solve(law: Law, levels: int = 16, fixed: Iterable[float] = (0.0, 1.0)) -> Array:
    """The codebook with the least expected error, to which Lloyd's iteration converges.

    Lloyd's iteration needs some L^2 steps, so most steps here are Newton's for its fixed point;
    where one of those is not clearly better, Lloyd's own step is taken.

    Args:
        law: from theoretical_law() or sampled_law().
        levels: L, how many levels, 2 to 256, the fixed ones included.
        fixed: any of -1, 0 and 1. The free levels are shared out between the two sides of a fixed 0
            by the law's spread; evenly if it is nearly symmetric, an odd one going to the right.

    Returns:
        float64, shape (levels,), ascending, in [-1, 1].

    Raises:
        ValueError: see check_levels().
        RuntimeError: no convergence, which would be a defect.
    """
    chosen = check_levels(levels, fixed)
    codebook = starting_levels(law, levels, chosen)
    held = np.isin(codebook, chosen)
    parts = regions(codebook, law)
    target = _centroids(codebook, parts, law, held)
    for _ in range(MOST_STEPS):
        if np.abs(target - codebook).max() <= TOLERANCE:
            return target
        guess = codebook + _newton_step(codebook, parts, law, target)
        if (np.diff(guess) > 0).all() and np.abs(guess).max() <= 1:
            guess_parts = regions(guess, law)
            guess_target = _centroids(guess, guess_parts, law, held)
            if np.abs(guess_target - guess).max() < np.abs(target - codebook).max() / 2:
                codebook, parts, target = guess, guess_parts, guess_target
                continue
        codebook = target
        parts = regions(codebook, law)
        target = _centroids(codebook, parts, law, held)
    raise RuntimeError(f"the codebook did not settle in {MOST_STEPS} steps")


def _newton_step(levels: Array, parts: Regions, law: Law, target: Array) -> Array:
    """Newton's step for T(a) = a, where T maps levels to the centroids `target` of their regions.

    T depends on level j only through the two edges of its region, so its Jacobian is tridiagonal.
    The density at an edge is taken as the mean density between the two levels beside it, which
    serves samples as well as theory.
    """
    inner = parts.edges[1:-1]
    below = law.cumulative(np.minimum(levels, BELOW_ONE))[0]
    at_edge = np.diff(below) / np.diff(levels)
    moves = parts.filled & (target != levels) & (np.abs(target) < 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if law.power == 2:
            by_right = at_edge * (inner - target[:-1]) / parts.mass[:-1]
            by_left = at_edge * (target[1:] - inner) / parts.mass[1:]
        else:
            ends = np.clip(parts.edges, -1.0, BELOW_ONE)
            at_median = np.diff(law.cumulative(ends)[0]) / np.diff(ends)
            by_right, by_left = at_edge / at_median[:-1] / 2, at_edge / at_median[1:] / 2
    right = np.where(moves[:-1], by_right, 0.0) / 2  # an edge moves half as far as a level beside it
    left = np.where(moves[1:], by_left, 0.0) / 2
    bands = np.zeros((3, levels.size))
    bands[0, 1:] = -right
    bands[1] = 1.0
    bands[1, :-1] -= right
    bands[1, 1:] -= left
    bands[2, :-1] = -left
    step: Array = solve_banded((1, 1), bands, target - levels)
    return step


def starting_levels(law: Law, levels: int, fixed: tuple[float, ...]) -> Array:
    """Levels spread as a companding quantizer spreads them, the best start that needs no iteration.

    Their density is proportional to that of x to the power 1/(1+p).
    """
    grid = np.linspace(-1.0, 1.0, START_CELLS + 1) ** 3
    mass, width = np.diff(law.cumulative(grid)[0]), np.diff(grid)
    share = (mass / mass.sum()) ** (1 / (1 + law.power)) * (width / 2) ** (law.power / (1 + law.power))
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
        places = spread[-1] * _midpoints(free)
    return np.sort(np.concatenate([np.interp(places, spread, grid), fixed]))


def _negative_levels(free: int, share: float) -> int:
    """How many of the free levels lie left of a fixed zero, where `share` of the spread is."""
    if abs(share - 0.5) < 0.05:  # else noise would decide for a symmetric law
        return free // 2
    return ceil(free * share - 0.5)


def _midpoints(count: int) -> Array:
    return (np.arange(count) + 0.5) / max(count, 1)
