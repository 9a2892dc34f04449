"""The law of normalized weights from samples: drawn ones, or the weights of a model (eqs. 6 and 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.stats

from gguf_bof4.codebook.law import BELOW_ONE, POWERS, Array, Law, Metric, Normalization, check_problem

BINS_PER_UNIT = 2**19
"""Samples of x that fall into one bin of this width become one atom at their weighted mean."""

CHUNK = 2**20
"""Weights read at a time: bounds memory to some ten arrays of this many doubles."""


class Drawable(Protocol):
    """A distribution to draw from: a frozen distribution of scipy.stats is one."""

    def rvs(self, *, size: int, random_state: np.random.Generator) -> Any:
        """Independent samples."""


STANDARD_NORMAL: Drawable = scipy.stats.norm()


@dataclass(frozen=True)
class SampledLaw:
    """Law of finitely many atoms.

    Attributes:
        power: p, 2 for MSE and 1 for MAE.
        x: places of the atoms, ascending, float64, shape (n,).
        sums: cumulative sums of |m|^p x^k / (number of weights) for k = 0, 1, 2, each starting with
            0, float64, shape (3, n + 1).
    """

    power: int
    x: Array
    sums: Array

    def cumulative(self, x: Array) -> Array:
        """See Law.cumulative."""
        return self.sums[:, np.searchsorted(self.x, x, side="right")]

    def quantile(self, mass: Array) -> Array:
        """See Law.quantile."""
        last = len(self.x) - 1
        return self.x[np.minimum(np.searchsorted(self.sums[0, 1:], mass), last)]

    def density(self, x: Array, low: Array, high: Array) -> Array:
        """See Law.density."""
        high = np.minimum(high, BELOW_ONE)
        mass: Array = self.cumulative(high)[0] - self.cumulative(low)[0]
        return mass / (high - low)


def sampled_law(
    chunks: Iterable[npt.ArrayLike],
    block_size: int,
    normalization: Normalization = "signed",
    metric: Metric = "mse",
) -> Law:
    """The law of the normalized weights of some arrays.

    Each array is read row by row and cut into blocks; a rest shorter than a block is left
    out, and so are blocks of zeros, which every codebook represents exactly.

    Args:
        chunks: arrays (or torch tensors) of any shape and real dtype. They are taken one at a time,
            so that a generator can stream a model through.
        block_size: I, 8 to 4096.
        normalization: "signed" (eq. 4) or "absolute".
        metric: "mse" (eq. 6) or "mae" (eq. 8).

    Returns:
        A law for solve(), lloyd_step() and expected_error(). Samples of x that lie within 2e-6 of
        each other are merged into their weighted mean; isolated ones are kept exactly.

    Raises:
        ValueError: an argument out of range, a weight that is not finite, less than one block in
            all the arrays, or nothing but zeros.
    """
    check_problem(block_size, normalization, metric)
    bins = np.zeros((3, 2 * BINS_PER_UNIT + 1))
    count = 0
    for blocks in whole_blocks(chunks, block_size):
        count += blocks.size
        _add_to_bins(bins, blocks, normalization, POWERS[metric])
    if count == 0:
        raise ValueError(f"fewer than one block of {block_size} weights: pass more weights or a smaller block")
    if not np.isfinite(bins).all():
        raise ValueError("the weights are too large to be squared in double precision: scale them down")
    mass, first, second = bins[:, bins[0] > 0] / count
    if mass.size == 0:
        raise ValueError("all weights are zero and fit any codebook: pass weights that are not")
    sums = np.cumsum(np.stack([mass, first, second]), axis=1)
    return SampledLaw(POWERS[metric], first / mass, np.pad(sums, ((0, 0), (1, 0))))


def whole_blocks(chunks: Iterable[npt.ArrayLike], block_size: int) -> Iterator[Array]:
    """Float64 arrays of shape (blocks, block_size), none much larger than CHUNK."""
    step = CHUNK - CHUNK % block_size
    for chunk in chunks:
        flat = _flat(chunk)
        whole = flat.size - flat.size % block_size
        for start in range(0, whole, step):
            piece = flat[start : min(start + step, whole)].astype(np.float64)
            if not np.isfinite(piece).all():
                raise ValueError("weights hold NaN or infinity: remove or replace them before sampling")
            yield piece.reshape(-1, block_size)


def _flat(weights: Any) -> npt.NDArray[Any]:
    """A flat view (or copy) of an array or a torch tensor."""
    if hasattr(weights, "detach"):  # numpy refuses tensors of bfloat16 and those with gradients
        weights = weights.detach().cpu().float()
    return np.asarray(weights).reshape(-1)


def _add_to_bins(bins: Array, blocks: Array, normalization: Normalization, power: int) -> None:
    """Add |m|^p x^k, k = 0, 1, 2, of every weight to the bin of its x."""
    place = np.abs(blocks).argmax(axis=1)
    m = np.take_along_axis(blocks, place[:, None], axis=1)
    blocks, m = blocks[m[:, 0] != 0], m[m[:, 0] != 0]
    x = (blocks / (m if normalization == "signed" else np.abs(m))).ravel()
    with np.errstate(over="ignore"):  # refused by sampled_law()
        weight = np.repeat(np.abs(m[:, 0]) ** power, blocks.shape[1])
    index = ((x + 1) * BINS_PER_UNIT).astype(np.int64)  # x = 1 alone has the last bin
    for k in range(3):
        bins[k] += np.bincount(index, weight, minlength=bins.shape[1])
        weight *= x


def draw_samples(
    count: int,
    block_size: int,
    distribution: Drawable = STANDARD_NORMAL,
    seed: int = 0,
) -> Iterator[Array]:
    """Draw weights for sampled_law() or solve_samples(), some at a time.

    Args:
        count: how many weights; rounded down to whole blocks.
        block_size: I.
        distribution: to draw from.
        seed: the same seed gives the same weights.

    Yields:
        Float64 arrays of shape (blocks, block_size), at most a million weights each.
    """
    generator = np.random.default_rng(seed)
    step, whole = CHUNK - CHUNK % block_size, count - count % block_size
    for start in range(0, whole, step):
        size = min(step, whole - start)
        drawn = distribution.rvs(size=size, random_state=generator)
        yield np.asarray(drawn, np.float64).reshape(-1, block_size)
