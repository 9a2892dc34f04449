"""Solver for block-wise optimal codebooks (arXiv 2505.06653).

>>> from gguf_bof4.codebook import int8_levels, solve_theory
>>> int8_levels(solve_theory(block_size=64))
(-109, -85, -66, -51, -37, -24, -12, 0, 11, 23, 35, 48, 62, 79, 99, 127)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from gguf_bof4.codebook.law import Array, Distribution, Law, Metric, Normalization
from gguf_bof4.codebook.lloyd import check_levels, expected_error, lloyd_step, solve
from gguf_bof4.codebook.samples import draw_samples, sampled_law
from gguf_bof4.codebook.scale_search import blocks_of, searched_error, solve_searched
from gguf_bof4.codebook.theory import STANDARD_NORMAL, theoretical_law
from gguf_bof4.formats import LEVEL_SCALE

__all__ = [
    "Distribution",
    "Law",
    "Metric",
    "Normalization",
    "check_levels",
    "distance_db",
    "draw_samples",
    "expected_error",
    "int8_levels",
    "lloyd_step",
    "sampled_law",
    "scale_search_error",
    "solve",
    "solve_samples",
    "solve_scale_search",
    "solve_theory",
    "theoretical_law",
]


def solve_theory(
    block_size: int,
    levels: int = 16,
    normalization: Normalization = "signed",
    metric: Metric = "mse",
    fixed: Iterable[float] = (0.0, 1.0),
    distribution: Distribution = STANDARD_NORMAL,
) -> Array:
    """The optimal codebook for independent weights of a known distribution, by integration.

    With the defaults this is BOF4-S (MSE), Table 7; absolute normalization with fixed levels -1, 0
    and 1 gives BOF4, Table 6.

    Args:
        block_size: I, 8 to 4096.
        levels: L, 2 to 256, the fixed ones included.
        normalization: "signed" (eq. 4) or "absolute".
        metric: "mse" (eq. 35) or "mae" (eq. 59).
        fixed: any of -1, 0 and 1.
        distribution: of the weights, with pdf, cdf and sf, e.g. scipy.stats.t(5); its scale does
            not matter.

    Returns:
        float64, shape (levels,), ascending, in [-1, 1].

    Raises:
        ValueError: an argument out of range, or a distribution whose tails are too heavy.
    """
    fixed = check_levels(levels, fixed)
    return solve(theoretical_law(block_size, normalization, metric, distribution), levels, fixed)


def solve_samples(
    weights: npt.ArrayLike | Iterator[npt.ArrayLike],
    block_size: int,
    levels: int = 16,
    normalization: Normalization = "signed",
    metric: Metric = "mse",
    fixed: Iterable[float] = (0.0, 1.0),
) -> Array:
    """The optimal codebook for given weights (eqs. 6 and 8).

    Args:
        weights: an array or torch tensor of any shape and real dtype, or an iterator of such; each
            is cut into blocks row by row, a rest shorter than a block being left out.
        block_size, levels, normalization, metric, fixed: as for solve_theory().

    Returns:
        float64, shape (levels,), ascending, in [-1, 1].

    Raises:
        ValueError: an argument out of range, a weight that is not finite, or less than one block
            that is not all zeros.
    """
    fixed = check_levels(levels, fixed)  # before a whole model is read
    chunks = weights if isinstance(weights, Iterator) else iter([weights])
    return solve(sampled_law(chunks, block_size, normalization, metric), levels, fixed)


def solve_scale_search(
    weights: npt.ArrayLike | Iterator[npt.ArrayLike], block_size: int, levels: int = 16
) -> Array:
    """The optimal codebook for given weights where each block has the scale with the least error, of either sign.

    With blocks of 16 and Gaussian weights these are the levels of BOF4_K, within one part in 127 for a million
    weights; the error is flat around them.

    Args:
        weights: as for solve_samples().
        block_size: I, 8 to 4096.
        levels: L, 3 to 256; one of them is 0.

    Returns:
        float64, shape (levels,), ascending, in [-1, 1]; the level of largest magnitude is 1.

    Raises:
        ValueError: as for solve_samples().
    """
    check_levels(levels, (0.0, 1.0))
    return solve_searched(blocks_of(weights if isinstance(weights, Iterator) else iter([weights]), block_size), levels)


def scale_search_error(
    levels: npt.ArrayLike, weights: npt.ArrayLike | Iterator[npt.ArrayLike], block_size: int
) -> float:
    """Mean squared error of a weight in blocks of nonzero weights that each have the best scale for `levels`.

    Args:
        levels: ascending, shape (L,), one of them 0; a common factor does not matter.
        weights, block_size: as for solve_scale_search().
    """
    blocks = blocks_of(weights if isinstance(weights, Iterator) else iter([weights]), block_size)
    return searched_error(np.asarray(levels, np.float64), blocks)


def distance_db(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Relative squared distance of two codebooks in dB, read from eq. 70: 10 log10(sum (a-b)^2 / sum b^2).

    The paper reports -56.3 dB for its theoretical and sampled BOF4 levels of Table 8. The levels as
    printed (Table 6 against Table 8) are -78.5 dB apart by this formula, so the paper's figure
    must be defined differently; -50 dB by this formula is an error of some 0.3 % in every level.

    Args:
        a: a codebook, shape (L,).
        b: the codebook to compare with, same shape.

    Returns:
        dB; -inf for equal codebooks.

    Raises:
        ValueError: shapes that differ.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"codebooks of shapes {a.shape} and {b.shape}: compare equally long ones")
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.sum((a - b) ** 2) / np.sum(b**2)))


def int8_levels(levels: npt.ArrayLike) -> tuple[int, ...]:
    """Levels as a tensor type stores them: times LEVEL_SCALE (127), rounded to integers."""
    return tuple(int(k) for k in np.rint(LEVEL_SCALE * np.asarray(levels, np.float64)))
