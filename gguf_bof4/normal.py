"""Quantiles of the normal distribution, with the bits of scipy.special.ndtri, which the base installation lacks.

The threshold of outlier selection is such a quantile, and which weights are outliers depends on its last bit. These are
the rational approximations of Cephes (S. Moshier, ndtri.c), which scipy uses; statistics.NormalDist has other ones and
differs in the last bits for two out of three OPQ quantiles.
"""

from __future__ import annotations

import math

_E_TO_MINUS_2 = 0.13533528323661269189
_ROOT_OF_2_PI = 2.50662827463100050242

_CENTRE = (
    (-5.99633501014107895267e1, 9.80010754185999661536e1, -5.66762857469070293439e1, 1.39312609387279679503e1,
     -1.23916583867381258016e0),
    (1.0, 1.95448858338141759834e0, 4.67627912898881538453e0, 8.63602421390890590575e1, -2.25462687854119370527e2,
     2.00260212380060660359e2, -8.20372256168333339912e1, 1.59056225126211695515e1, -1.18331621121330003142e0),
)  # fmt: skip
"""For probabilities from exp(-2) to 1 - exp(-2): numerator and denominator, highest power first."""

_TAIL = (
    (4.05544892305962419923e0, 3.15251094599893866154e1, 5.71628192246421288162e1, 4.40805073893200834700e1,
     1.46849561928858024014e1, 2.18663306850790267539e0, -1.40256079171354495875e-1, -3.50424626827848203418e-2,
     -8.57456785154685413611e-4),
    (1.0, 1.57799883256466749731e1, 4.53907635128879210584e1, 4.13172038254672030440e1, 1.50425385692907503408e1,
     2.50464946208309415979e0, -1.42182922854787788574e-1, -3.80806407691578277194e-2, -9.33259480895457427372e-4),
)  # fmt: skip
"""For tail probabilities from exp(-32) to exp(-2)."""

_FAR_TAIL = (
    (3.23774891776946035970e0, 6.91522889068984211695e0, 3.93881025292474443415e0, 1.33303460815807542389e0,
     2.01485389549179081538e-1, 1.23716634817820021358e-2, 3.01581553508235416007e-4, 2.65806974686737550832e-6,
     6.23974539184983293730e-9),
    (1.0, 6.02427039364743014255e0, 3.67983563856160859403e0, 1.37702099489081330271e0, 2.16236993594496635890e-1,
     1.34204006088543189037e-2, 3.28014464682127739104e-4, 2.89247864745380683936e-6, 6.79019408009981274425e-9),
)  # fmt: skip
"""For tail probabilities below exp(-32)."""


def _polynomial(x: float, coefficients: tuple[float, ...]) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def normal_quantile(probability: float) -> float:
    """The x that a standard normal variable is below with this probability, in double precision.

    Args:
        probability: 0 to 1.

    Returns:
        x; infinite at 0 and 1.
    """
    if probability in {0.0, 1.0}:
        return math.copysign(math.inf, probability - 0.5)
    above = probability > 1 - _E_TO_MINUS_2
    tail = 1 - probability if above else probability
    if tail > _E_TO_MINUS_2:
        y = tail - 0.5
        square = y * y
        numerator, denominator = (_polynomial(square, coefficients) for coefficients in _CENTRE)
        return (y + y * (square * numerator / denominator)) * _ROOT_OF_2_PI
    x = math.sqrt(-2 * math.log(tail))
    z = 1 / x
    numerator, denominator = (_polynomial(z, coefficients) for coefficients in (_TAIL if x < 8 else _FAR_TAIL))
    found = x - math.log(x) / x - z * numerator / denominator
    return found if above else -found
