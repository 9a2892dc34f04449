"""The pure functions of progressive adaptive rounding: where weights lie between levels, and which are rounded when."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gguf_bof4.convert.options import Options
from gguf_bof4.encoders.gptq.refine.reconstruction import (
    HARD,
    MOVED,
    SHARES,
    SPREAD,
    alpha_of,
    hardened,
    nu_of,
    stage_of,
    start,
)
from gguf_bof4.errors import UserError
from gguf_bof4.formats import BOF4_S, FORMATS, Format

LEVELS = BOF4_S.levels


def test_alpha_is_the_formula_and_reaches_both_ends() -> None:
    nu = torch.linspace(-4, 4, 81)
    wanted = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-x)) - 0.1)) for x in nu.tolist()]
    np.testing.assert_allclose(alpha_of(nu).tolist(), wanted, atol=1e-6)
    assert alpha_of(torch.tensor([-HARD, HARD])).tolist() == [0.0, 1.0]


def test_nu_is_the_inverse() -> None:
    alpha = torch.linspace(0, 1, 101)
    np.testing.assert_allclose(alpha_of(nu_of(alpha)).tolist(), alpha.tolist(), atol=1e-6)
    assert bool(torch.isfinite(nu_of(alpha)).all())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("is_upper", [False, True])
def test_training_starts_near_the_code_between_the_levels_of_the_weight(fmt: Format, is_upper: bool) -> None:
    """And nearer to the other level the nearer the unquantized weight is to it."""
    levels = np.array(fmt.levels, dtype=np.float32)
    multiples = np.random.default_rng(0).uniform(levels[0], levels[-1], 1000).astype(np.float32)
    upper = np.searchsorted(levels, multiples)
    lower, alpha = start(multiples, (upper - (not is_upper)).astype(np.uint8), fmt.levels)
    np.testing.assert_array_equal(lower, upper - 1)
    np.testing.assert_array_equal(alpha > 0.5, is_upper)
    place = (multiples - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
    assert (np.diff(alpha[np.argsort(place)]) >= 0).all()
    assert np.ptp(alpha) == pytest.approx(SPREAD, rel=0.05)
    assert np.abs(alpha - is_upper).min() > 0


def test_weights_on_a_level_and_beyond_all_levels_start_at_their_code() -> None:
    multiples = np.array([*LEVELS, -300, 300], dtype=np.float32)
    codes = np.array([*range(16), 0, 15], dtype=np.uint8)
    lower, alpha = start(multiples, codes, LEVELS)
    np.testing.assert_array_equal(lower + (alpha > 0.5), codes)


def test_a_code_that_is_no_neighbour_of_the_weight_is_where_training_starts() -> None:
    """A weight between levels 5 and 6: whatever the code, it is one of the two levels, and the nearer one."""
    multiples = np.full(16, LEVELS[5] + 5, dtype=np.float32)
    codes = np.arange(16, dtype=np.uint8)
    lower, alpha = start(multiples, codes, LEVELS)
    far = (codes < 5) | (codes > 6)
    np.testing.assert_array_equal(lower[codes < 5], codes[codes < 5])
    np.testing.assert_array_equal(lower[codes > 6] + 1, codes[codes > 6])
    np.testing.assert_allclose(alpha[codes < 5], MOVED)
    np.testing.assert_allclose(alpha[codes > 6], 1 - MOVED)
    np.testing.assert_array_equal(lower[far] + (alpha[far] > 0.5), codes[far])


@given(st.lists(st.tuples(st.floats(-400, 400, width=32), st.integers(0, 15)), min_size=1))
def test_codes_never_leave_neighbouring_levels(weights: list[tuple[float, int]]) -> None:
    multiples = np.array([w for w, _ in weights], dtype=np.float32)
    codes = np.array([code for _, code in weights], dtype=np.uint8)
    lower, alpha = start(multiples, codes, LEVELS)
    assert lower.max() <= 14 and ((alpha > 0) & (alpha < 1)).all()
    np.testing.assert_array_equal(lower + (alpha > 0.5), codes)


def test_the_schedule() -> None:
    assert tuple(sorted(SHARES, reverse=True)) == SHARES and SHARES[-1] > 0 and SHARES[0] < 1
    stages = [stage_of(step / 40) for step in range(40)]
    assert stages == [step // 4 for step in range(40)]
    assert stage_of(1.0) == stage_of(7.0) == len(SHARES) - 1


def test_hardening_rounds_what_is_surest() -> None:
    alpha = torch.tensor([[0.02, 0.9, 0.45], [0.52, 0.3, 1.0]])
    nu = nu_of(alpha)
    made = hardened(nu, 0.5)
    is_soft = torch.tensor([[False, False, True], [True, True, False]])
    assert torch.equal(made[is_soft], nu[is_soft])
    assert made[~is_soft].tolist() == [-HARD, HARD, HARD]
    assert torch.equal(hardened(made, 0.5), made)
    assert alpha_of(hardened(made, 0.0)).tolist() == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("share", SHARES)
def test_no_more_than_the_share_stays_soft(share: float) -> None:
    nu = nu_of(torch.rand(100, 37, generator=torch.Generator().manual_seed(0)))
    nu[:3] = HARD
    n_soft = int((hardened(nu, share).abs() < HARD).sum())
    assert n_soft == int(share * nu.numel())


def options(**changed: object) -> Options:
    return Options(**{"encoder": "gptq", "calibration": "text", "refine": True, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("codes", "--refine-parts codes: 'codes' is none of rounding, scales"),
        ("rounding,", "--refine-parts rounding,: '' is none of rounding, scales"),
        ("", "--refine-parts : '' is none of rounding, scales"),
    ],
)
def test_unknown_parts_are_refused(parts: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        options(refine_parts=parts).check()
    assert str(caught.value) == message


def test_parts_without_refinement_are_refused() -> None:
    with pytest.raises(UserError, match="--refine-parts says what --refine trains: give --refine, too"):
        options(refine=False, refine_parts="scales").check()


@pytest.mark.parametrize(
    ("given_parts", "parts"),
    [("scales", ("scales",)), ("scales,rounding", ("rounding", "scales")), ("rounding", ("rounding",))],
)
def test_parts_have_one_order(given_parts: str, parts: tuple[str, ...]) -> None:
    refinement = options(refine_parts=given_parts).refinement
    assert refinement is not None and refinement.parts == parts
