"""The law of normalized weights by numerical integration over the block maximum (eqs. 10 to 12).

Every m-integral of the paper has the same form once it is written over the quantile u = F_M(m):
the density p_M(m) dm becomes du, and the power (2G(m)-1)^(I-2), which underflows for large blocks,
never appears. With u = exp(-exp(-z)), the scale on which the maximum of a block is spread out
evenly whatever its size, a fixed set of nodes z serves blocks of 8 to 4096 and tails like Student's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import scipy.stats
from scipy.interpolate import BSpline, make_interp_spline

from gguf_bof4.codebook.law import POWERS, Array, Distribution, Law, Metric, Normalization, check_problem

PANELS = (-5.0, -2.0, 0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
"""Ends of the integration panels in z: u from 1e-64 up to 1 - 1e-278."""

NODES_PER_PANEL = 24
GRID_PER_SIDE = 1024
"""Points of the spline on each side of x = 0."""

SPLINE_DEGREE = 5
TAIL_FROM = 80.0
TAIL_LIMIT = 1e-6
"""A law with more than this fraction of its weight in blocks beyond z = TAIL_FROM is refused."""

STANDARD_NORMAL: Distribution = scipy.stats.norm()


@dataclass(frozen=True)
class BlockMaximum:
    """Quadrature nodes over the distribution of the block maximum M (eqs. 11 and 12).

    Attributes:
        m: the maximum's magnitude at each node, float64, shape (n,), in units of the weights.
        probability: weight of each node; sums to 1.
        survival: probability of |w| > m for a single weight.
        positive: probability that the maximum is a positive weight, given its magnitude.
    """

    m: Array
    probability: Array
    survival: Array
    positive: Array


def block_maximum(block_size: int, distribution: Distribution) -> BlockMaximum:
    """Nodes for integrals over F_M(m) = P(|w| <= m)^I, eq. 11 for any distribution."""
    z, weight = _panel_nodes()
    probability = weight * np.exp(-z - np.exp(-z))  # du = exp(-z) exp(-exp(-z)) dz
    survival = -np.expm1(-np.exp(-z) / block_size)  # 1 - u^(1/I), without cancellation
    with np.errstate(over="ignore"):  # far out, where a density underflows to the 0 that it is
        m = _magnitude(survival, distribution)
        upper = np.asarray(distribution.pdf(m), np.float64)
        both = upper + np.asarray(distribution.pdf(-m), np.float64)
    positive = np.divide(upper, both, out=np.full_like(m, 0.5), where=both > 0)
    return BlockMaximum(m, probability, survival, positive)


def _panel_nodes() -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights in z, over all PANELS."""
    node, weight = np.polynomial.legendre.leggauss(NODES_PER_PANEL)
    start, half = np.array(PANELS[:-1])[:, None], np.diff(PANELS)[:, None] / 2
    return (start + half * (1 + node)).ravel(), (half * weight).ravel()


def _magnitude(survival: Array, distribution: Distribution) -> Array:
    """The m with P(|w| > m) = survival, by bisection of log m.

    Only the distribution's cdf and sf are used, so that asymmetric ones are allowed.
    """
    low, high = np.full_like(survival, -700.0), np.full_like(survival, 700.0)
    for _ in range(62):
        middle = (low + high) / 2
        m = np.exp(middle)
        beyond = distribution.sf(m) + distribution.cdf(-m) > survival
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return np.exp(high)


@dataclass(frozen=True)
class TheoreticalLaw:
    """Law of x from a density, with the point masses of the block maximum at -1 and +1.

    Attributes:
        power: p, 2 for MSE and 1 for MAE.
        moments: E[|m|^p X^k] of the continuous part up to t = cbrt(x), for k = 0, 1, 2.
        low, high: point masses at -1 and at +1, weighted by |m|^p like the rest.
    """

    power: int
    moments: BSpline[np.float64]
    low: float
    high: float

    def cumulative(self, x: Array) -> Array:
        """See Law.cumulative."""
        total = np.array(self.moments(np.cbrt(np.clip(x, -1.0, 1.0)))).T
        total += self.low * np.array([[1.0], [-1.0], [1.0]])
        total[:, x < -1.0] = 0.0
        total[:, x >= 1.0] += self.high
        return total

    def quantile(self, mass: Array) -> Array:
        """See Law.quantile. Bisection on the scale of the spline, to the last bit."""
        low, high = np.full_like(mass, -1.0), np.full_like(mass, 1.0)
        for _ in range(54):
            middle = (low + high) / 2
            short = self._mass(middle) + self.low < mass
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        return np.where(mass <= self.low, -1.0, high**3)

    def density(self, x: Array, low: Array, high: Array) -> Array:
        """See Law.density. Next to 0, where t and the spline vanish together, t is kept away from 0."""
        t = np.cbrt(x)
        t = np.where(np.abs(t) < 1 / GRID_PER_SIDE, 1 / GRID_PER_SIDE, t)
        slope: Array = self._mass(t, nu=1) / (3 * t**2)
        return slope

    @cached_property
    def _mass(self) -> BSpline[np.float64]:
        return BSpline(self.moments.t, np.ascontiguousarray(self.moments.c[:, 0]), self.moments.k)


def theoretical_law(
    block_size: int,
    normalization: Normalization = "signed",
    metric: Metric = "mse",
    distribution: Distribution = STANDARD_NORMAL,
) -> Law:
    """The law of normalized weights drawn independently from a distribution.

    The distribution may be asymmetric: the sign of the block maximum then carries information, and
    x given m is spread like w/m where the maximum is positive and like w/(-m) where it is negative.

    The density may have a kink or a pole at 0 (Laplace, Student); jumps elsewhere cost digits.

    Args:
        block_size: I, 8 to 4096.
        normalization: "signed" divides by the element of largest magnitude (eq. 4), "absolute" by
            that magnitude.
        metric: "mse" or "mae"; it sets the power of m that weights x.
        distribution: of one weight; continuous, e.g. scipy.stats.t(5).

    Returns:
        A law for solve(), lloyd_step() and expected_error().

    Raises:
        ValueError: an argument out of range, a distribution without pdf, cdf and sf, or one whose
            tails are so heavy that E[M^p] does not converge.
    """
    check_problem(block_size, normalization, metric)
    if not all(hasattr(distribution, name) for name in ("pdf", "cdf", "sf")):
        raise ValueError("the distribution has no pdf, cdf and sf: pass a frozen continuous one, e.g. t(5)")
    power, maximum = POWERS[metric], block_maximum(block_size, distribution)
    weight = _node_weights(maximum, power)
    grid = np.linspace(-1.0, 1.0, 2 * GRID_PER_SIDE)  # of t; an even number, to miss x = 0
    density = _density(grid**3, maximum, weight, normalization, distribution)
    values = (1 - 1 / block_size) * density * 3 * grid**2 * np.stack([np.ones_like(grid), grid**3, grid**6])
    # heavy tails give the density a spike at x = 0; with x = t^3 it is flat enough for a spline
    spline = make_interp_spline(grid, values.T, k=SPLINE_DEGREE).antiderivative()
    point = weight / block_size
    high = point.sum() if normalization == "signed" else (point * maximum.positive).sum()
    return TheoreticalLaw(power, spline, float(point.sum() - high), float(high))


def _node_weights(maximum: BlockMaximum, power: int) -> Array:
    """probability * m^p at each node, after making sure that their sum is E[M^p]."""
    with np.errstate(over="ignore", invalid="ignore"):
        weight = maximum.probability * maximum.m**power
    tail = weight[NODES_PER_PANEL * PANELS.index(TAIL_FROM) :].sum()
    if not tail <= TAIL_LIMIT * weight.sum() < np.inf:
        raise ValueError(
            f"the distribution's tails are too heavy: E[M^{power}] of a block does not converge; "
            "use a lighter-tailed distribution" + (" or the metric 'mae'" if power == 2 else "")
        )
    return weight


def _density(
    x: Array,
    maximum: BlockMaximum,
    weight: Array,
    normalization: Normalization,
    distribution: Distribution,
) -> Array:
    """Density of the continuous part of x, eq. 10 integrated over m; x must be symmetric about 0."""
    heavy = weight > 1e-20 * weight.sum()  # the others are below rounding, and most of the work
    m = maximum.m[heavy, None]
    scale = weight[heavy] * maximum.m[heavy] / (1 - maximum.survival[heavy])
    of_weight = np.asarray(distribution.pdf(m * x), np.float64)
    if normalization == "absolute":
        return cast("Array", scale @ of_weight)
    positive = scale * maximum.positive[heavy]
    return cast("Array", positive @ of_weight + (scale - positive) @ of_weight[:, ::-1])
