"""The best assignment under a budget: convex fronts, and a Lagrange multiplier found by bisection."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Choice:
    """One way to store a tensor.

    Attributes:
        nbytes: of the tensor, with its outlier list.
        loss: what it costs; losses of tensors add up.
    """

    nbytes: int
    loss: float


class TooSmallBudgetError(ValueError):
    """A budget is below what is possible.

    Attributes:
        least: bytes of the smallest assignment.
    """

    def __init__(self, least: int) -> None:
        super().__init__(f"the least is {least} bytes")
        self.least = least


def convex_front(choices: Sequence[Choice]) -> list[int]:
    """Indices of the choices on the lower convex hull of bytes and loss, by ascending bytes and descending loss.

    The last one is the choice of the least loss; among equal ones, the first counts.
    """
    ordered = sorted(range(len(choices)), key=lambda i: (choices[i].nbytes, choices[i].loss, i))
    hull: list[int] = []
    for i in ordered:
        if hull and choices[i].loss >= choices[hull[-1]].loss:
            continue  # as large or larger, and no better
        while len(hull) >= 2 and _saving(choices, hull[-2], hull[-1]) <= _saving(choices, hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull


def _saving(choices: Sequence[Choice], smaller: int, larger: int) -> float:
    """Loss saved per byte more."""
    one, other = choices[smaller], choices[larger]
    return (one.loss - other.loss) / (other.nbytes - one.nbytes)


def _at_multiplier(savings: Sequence[Sequence[float]], multiplier: float) -> list[int]:
    """The place on each front that minimizes loss + multiplier x bytes; of equal ones the smaller.

    Args:
        savings: of each front, of each step to the next larger choice, descending.
    """
    return [bisect_left([-saving for saving in of_front], -multiplier) for of_front in savings]


def allocate(tensors: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The choice of each tensor, by its index, that has the least loss in all.

    The multiplier, loss per byte, is the smallest whose minimum of loss + multiplier x bytes fits the budget; that
    assignment is the best of its size (Everett 1963). What is left of the budget is spent on further steps along the
    fronts, best first, so the loss is at most that of one step above the optimum.

    Raises:
        TooSmallBudgetError: the smallest assignment has more bytes than the budget.
    """
    fronts = [convex_front(choices) for choices in tensors]
    savings = [
        [_saving(choices, a, b) for a, b in pairwise(front)]
        for choices, front in zip(tensors, fronts, strict=True)
    ]

    def nbytes(places: Sequence[int]) -> int:
        return sum(c[front[p]].nbytes for c, front, p in zip(tensors, fronts, places, strict=True))

    least = nbytes([0] * len(tensors))
    if least > budget:
        raise TooSmallBudgetError(least)
    multipliers = sorted({saving for of_front in savings for saving in of_front})
    low, high = -1, len(multipliers) - 1  # at the largest multiplier no step is taken, which fits
    if multipliers and nbytes(_at_multiplier(savings, 0.0)) > budget:
        while high - low > 1:
            middle = (low + high) // 2
            if nbytes(_at_multiplier(savings, multipliers[middle])) <= budget:
                high = middle
            else:
                low = middle
        places = _at_multiplier(savings, multipliers[high])
    else:
        places = _at_multiplier(savings, 0.0)
    left = budget - nbytes(places)
    steps = sorted(
        ((saving, -t, -p) for t, of_front in enumerate(savings) for p, saving in enumerate(of_front) if p >= places[t]),
        reverse=True,
    )
    for _, negative_t, negative_p in steps:
        t, p = -negative_t, -negative_p
        cost = tensors[t][fronts[t][p + 1]].nbytes - tensors[t][fronts[t][p]].nbytes
        if places[t] == p and cost <= left:
            places[t] = p + 1
            left -= cost
    return [front[p] for front, p in zip(fronts, places, strict=True)]
