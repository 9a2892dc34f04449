"""Best types under a budget: fronts and the Lagrange multiplier, against brute force."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_bof4.search.allocation import Choice, TooSmallBudgetError, allocate, convex_front

CHOICES = st.lists(st.builds(Choice, st.integers(1, 30), st.integers(0, 40).map(float)), min_size=1, max_size=5)
TENSORS = st.lists(CHOICES, min_size=1, max_size=4)


def totals(tensors: list[list[Choice]], places: tuple[int, ...] | list[int]) -> tuple[int, float]:
    picked = [choices[i] for choices, i in zip(tensors, places, strict=True)]
    return sum(c.nbytes for c in picked), sum(c.loss for c in picked)


def every(tensors: list[list[Choice]]) -> list[tuple[int, float]]:
    return [totals(tensors, places) for places in product(*(range(len(c)) for c in tensors))]


@given(CHOICES)
def test_the_front_is_the_lower_convex_hull(choices: list[Choice]) -> None:
    front = [choices[i] for i in convex_front(choices)]
    assert front[0].nbytes == min(c.nbytes for c in choices)
    assert front[-1].loss == min(c.loss for c in choices)
    for a, b in pairwise(front):
        assert a.nbytes < b.nbytes and a.loss > b.loss
        # no choice lies below the line between two neighbours
        slope = (b.loss - a.loss) / (b.nbytes - a.nbytes)
        assert all(c.loss >= a.loss + slope * (c.nbytes - a.nbytes) - 1e-9 for c in choices)


@given(TENSORS, st.integers(0, 130))
def test_the_assignment_fits_and_is_within_one_step_of_the_best(tensors: list[list[Choice]], budget: int) -> None:
    possible = [loss for nbytes, loss in every(tensors) if nbytes <= budget]
    if not possible:
        with pytest.raises(TooSmallBudgetError) as caught:
            allocate(tensors, budget)
        assert caught.value.least == min(nbytes for nbytes, _ in every(tensors))
        return
    nbytes, loss = totals(tensors, allocate(tensors, budget))
    assert nbytes <= budget
    largest_step = 0.0
    for choices in tensors:
        front = [choices[i].loss for i in convex_front(choices)]
        largest_step = max([largest_step, *(a - b for a, b in pairwise(front))])
    assert min(possible) <= loss <= min(possible) + largest_step


@given(TENSORS, st.integers(0, 130))
def test_on_the_front_of_all_assignments_it_is_the_best(tensors: list[list[Choice]], budget: int) -> None:
    """Where the budget is the size of a vertex of the whole hull, nothing as small has less loss."""
    whole = [Choice(nbytes, loss) for nbytes, loss in every(tensors)]
    for i in convex_front(whole):
        vertex = whole[i]
        found = totals(tensors, allocate(tensors, vertex.nbytes))
        assert found == (vertex.nbytes, pytest.approx(vertex.loss))


@given(TENSORS)
def test_more_bytes_never_cost_more(tensors: list[list[Choice]]) -> None:
    least = min(nbytes for nbytes, _ in every(tensors))
    multiples = [totals(tensors, allocate(tensors, least + extra))[0] for extra in range(0, 60, 7)]
    assert all(nbytes <= least + extra for nbytes, extra in zip(multiples, range(0, 60, 7), strict=True))
    rich = totals(tensors, allocate(tensors, 10**6))
    assert rich[1] == min(loss for _, loss in every(tensors))


def test_a_choice_above_the_front_is_not_taken_and_bytes_that_are_left_are_spent() -> None:
    tensors = [[Choice(10, 100.0), Choice(15, 95.0), Choice(20, 10.0)], [Choice(10, 50.0), Choice(12, 40.0)]]
    assert allocate(tensors, 20) == [0, 0]
    assert allocate(tensors, 22) == [0, 1]  # the better step does not fit, the other does
    assert allocate(tensors, 30) == [2, 0]
    assert allocate(tensors, 32) == [2, 1]
