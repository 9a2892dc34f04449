"""Probability law of block-normalized weights.

The best quantizer depends on the weights only through the law of x = w/m, each x weighted by |m|^p: m is the maximum of
its block, p is 2 for the mean squared error, 1 for the mean absolute error and 0 for the mean absolute error of x
itself. With these weights, block-wise quantization is the problem of one scalar quantizer for one density, which
lloyd.py solves.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Normalization = Literal["signed", "absolute"]
Metric = Literal["mse", "mae", "mae-normalized"]

NORMALIZATIONS = ("signed", "absolute")
POWERS = {"mse": 2, "mae": 1, "mae-normalized": 0}
BLOCK_SIZES = range(8, 4096 + 1)

BELOW_ONE = float(np.nextafter(1.0, 0.0))
"""The largest double below the point mass at +1."""


class Law(Protocol):
    """The weighted law of normalized weights on [-1, 1]."""

    @property
    def power(self) -> int:
        """p: 2 for MSE, 1 for MAE, 0 for the absolute error of the normalized weights, which AF4 minimizes."""

    def cumulative(self, x: Array) -> Array:
        """E[|m|^p X^k; X <= x] for k = 0, 1, 2.

        Args:
            x: float64, shape (n,); -inf and inf are allowed. Point masses at x are included.

        Returns:
            float64, shape (3, n), in units of the weights to the power p, for one weight.
        """

    def quantile(self, mass: Array) -> Array:
        """The smallest x whose cumulative mass (k = 0) reaches `mass`; float64, shape (n,) to (n,)."""

    def density(self, x: Array, low: Array, high: Array) -> Array:
        """d cumulative(x)[0] / dx, point masses left out.

        Args:
            x: float64, shape (n,), inside (-1, 1).
            low, high: float64, shape (n,), low < x < high; a law of atoms gives the mean density
                between them.

        Returns:
            float64, shape (n,).
        """


class Distribution(Protocol):
    """A distribution of weights, such as a frozen continuous distribution of scipy.stats."""

    def pdf(self, x: Any, /) -> Any:
        """Density at x."""

    def cdf(self, x: Any, /) -> Any:
        """Probability of w <= x."""

    def sf(self, x: Any, /) -> Any:
        """Probability of w > x."""


def check_problem(block_size: int, normalization: str, metric: str) -> None:
    """Check the arguments of a law.

    Raises:
        ValueError: block size outside 8 to 4096, or an unknown normalization or metric.
    """
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block size {block_size} is not an integer from 8 to 4096: choose one that is")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization!r}: use 'signed' or 'absolute'")
    if metric not in POWERS:
        raise ValueError(f"unknown metric {metric!r}: use 'mse', 'mae' or 'mae-normalized'")
