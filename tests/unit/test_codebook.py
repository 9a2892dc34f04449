"""The codebook solver against the paper's tables, against integrals written out, and against data."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch
import typer
from gguf_writing import write_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file
from scipy.integrate import quad
from scipy.special import ndtr
from typer.testing import CliRunner

from gguf_bof4.cli import codebook as command
from gguf_bof4.codebook import (
    Law,
    Metric,
    Normalization,
    distance_db,
    draw_samples,
    expected_error,
    int8_levels,
    lloyd_step,
    sampled_law,
    scale_search_error,
    solve,
    solve_samples,
    solve_scale_search,
    solve_theory,
    theoretical_law,
)
from gguf_bof4.codebook.scale_search import best_scales, blocks_of, searched_error, solve_searched
from gguf_bof4.errors import UserError
from gguf_bof4.formats import BOF4_K, BOF4_S, LEVEL_SCALE

Array = npt.NDArray[np.float64]


def gaussian_blocks(count: int, seed: int) -> npt.NDArray[np.float32]:
    return blocks_of(draw_samples(count, 16, seed=seed), 16)


NORMALIZATIONS: tuple[Normalization, ...] = ("signed", "absolute")
METRICS: tuple[Metric, ...] = ("mse", "mae")
PAPER_FIXED = {"signed": (0.0, 1.0), "absolute": (-1.0, 0.0, 1.0)}

# Levels 1 to 7 and 9 to 15 of BOF4-S (MSE) by block size: level 8 is 0, level 16 is 1.
TABLE_7 = {
    32: (
        -0.87328, -0.69074, -0.54370, -0.41737, -0.30389, -0.19860, -0.09816,
        0.09259, 0.18705, 0.28552, 0.39071, 0.50628, 0.63797, 0.79564,
    ),
    64: (
        -0.85685, -0.66929, -0.52353, -0.40049, -0.29106, -0.19001, -0.09385,
        0.08877, 0.17948, 0.27431, 0.37602, 0.48865, 0.61886, 0.77914,
    ),
    128: (
        -0.83739, -0.64625, -0.50286, -0.38362, -0.27838, -0.18157, -0.08965,
        0.08509, 0.17208, 0.26321, 0.36133, 0.47075, 0.59890, 0.76103,
    ),
    256: (
        -0.81468, -0.62218, -0.48205, -0.36697, -0.26599, -0.17337, -0.08558,
        0.08151, 0.16491, 0.25244, 0.34703, 0.45315, 0.57885, 0.74186,
    ),
}  # fmt: skip

# All 16 levels for blocks of 64 by normalization and metric.
TABLE_6: dict[tuple[Normalization, Metric], tuple[float, ...]] = {
    ("absolute", "mae"): (
        -1, -0.70263, -0.52727, -0.39467, -0.28321, -0.18353, -0.09031, 0,
        0.07896, 0.15988, 0.24499, 0.33722, 0.44136, 0.56578, 0.72992, 1,
    ),
    ("absolute", "mse"): (
        -1, -0.75352, -0.57920, -0.43860, -0.31677, -0.20599, -0.10154, 0,
        0.08872, 0.17938, 0.27415, 0.37582, 0.48849, 0.61871, 0.77905, 1,
    ),
    ("signed", "mae"): (
        -0.80188, -0.60761, -0.46883, -0.35596, -0.25762, -0.16775, -0.08274, 0,
        0.07894, 0.15980, 0.24485, 0.33715, 0.44126, 0.56568, 0.72981, 1,
    ),
}  # fmt: skip

# The theoretical column: BOF4 (MSE), blocks of 64.
TABLE_8 = (
    -1, -0.753569, -0.579268, -0.438672, -0.316819, -0.206029, -0.101564, 0,
    0.088765, 0.179454, 0.274250, 0.375951, 0.488593, 0.618772, 0.779083, 1,
)  # fmt: skip


def with_zero_and_one(free: tuple[float, ...]) -> tuple[float, ...]:
    return (*free[:7], 0.0, *free[7:], 1.0)


@pytest.fixture(scope="module")
def gaussian_laws() -> dict[tuple[Normalization, Metric], Law]:
    return {(n, m): theoretical_law(64, n, m) for n in NORMALIZATIONS for m in METRICS}


# --- The paper's levels ---------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", TABLE_7)
def test_table_7(block_size: int) -> None:
    expected = with_zero_and_one(TABLE_7[block_size])
    np.testing.assert_allclose(solve_theory(block_size), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(("normalization", "metric"), TABLE_6)
def test_table_6(normalization: Normalization, metric: Metric) -> None:
    levels = solve_theory(64, normalization=normalization, metric=metric, fixed=PAPER_FIXED[normalization])
    np.testing.assert_allclose(levels, TABLE_6[normalization, metric], rtol=0, atol=5e-4)


def test_table_8() -> None:
    levels = solve_theory(64, normalization="absolute", fixed=(-1, 0, 1))
    np.testing.assert_allclose(levels, TABLE_8, rtol=0, atol=5e-5)


def test_the_levels_of_the_type_are_derived() -> None:
    levels = solve_theory(BOF4_S.block_size)
    assert int8_levels(levels) == BOF4_S.levels
    # the paper's own table gives the same integers
    assert int8_levels(with_zero_and_one(TABLE_7[64])) == BOF4_S.levels


def test_the_levels_of_bof4_k_are_derived() -> None:
    """Within one step of int8, but for the factor that scales take up; rounding costs less than a per mille."""
    exact = solve_searched(gaussian_blocks(2**18, seed=2), 16, np.array(BOF4_K.levels) / LEVEL_SCALE)
    levels = np.array(BOF4_K.levels)
    assert np.abs(levels @ exact / (exact @ exact) * exact - levels).max() < 1
    held_out = gaussian_blocks(2**18, seed=1)
    assert searched_error(levels / LEVEL_SCALE, held_out) < 1.001 * searched_error(exact, held_out)


def test_scale_search_finds_as_good_levels_from_its_own_starts() -> None:
    held_out = gaussian_blocks(2**17, seed=1)
    found = solve_scale_search(next(draw_samples(2**15, 16, seed=3)), 16)
    assert (len(found), found.max(), found[7]) == (16, 1.0, 0.0)
    best = searched_error(np.array(BOF4_K.levels) / LEVEL_SCALE, held_out)
    # 15 levels fitted to 2048 blocks are no better than that elsewhere
    assert searched_error(found, held_out) < 1.02 * best
    assert searched_error(solve_theory(16), held_out) > 1.03 * best
    assert scale_search_error(3 * found, held_out, 16) == pytest.approx(searched_error(found, held_out), rel=1e-5)


def test_the_best_scale_is_found_exactly() -> None:
    """No scale of a fine grid is better, and some are nearly as good."""
    blocks, levels = gaussian_blocks(2**9, seed=4), np.array(BOF4_K.levels) / LEVEL_SCALE

    def errors(scales: Array) -> Array:
        rounded = scales[:, None] * levels[np.abs(blocks[:, :, None] / scales[:, None, None] - levels).argmin(axis=2)]
        return np.square(blocks - rounded).sum(axis=1)

    found = errors(best_scales(blocks, levels).astype(np.float64))
    largest = np.abs(blocks).max(axis=1).astype(np.float64)
    grid = np.min([errors(sign * largest / t) for sign in (1, -1) for t in np.linspace(0.3, 1.6, 400)], axis=0)
    assert (found <= grid + 1e-6).all()
    assert (grid <= 1.05 * found + 1e-6).all()


@pytest.mark.parametrize(
    ("weights", "levels", "message"),
    [(np.zeros((4, 16)), 16, "not one block"), (np.ones((4, 16)), 2, "3 levels or more"), (np.ones(5), 16, "not one")],
)
def test_scale_search_says_what_it_cannot_do(weights: Array, levels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_scale_search(weights, 16, levels)


def test_distance_of_the_papers_two_solutions() -> None:
    """What distance_db() says of its reading of eq. 70."""
    assert distance_db(TABLE_6["absolute", "mse"], TABLE_8) == pytest.approx(-78.5, abs=0.05)


def test_distance_db() -> None:
    assert distance_db([0.0, 1.1], [0.0, 1.0]) == pytest.approx(-20)
    assert distance_db([0.0, 1.0], [0.0, 1.0]) == -np.inf
    with pytest.raises(ValueError, match="equally long"):
        distance_db([0.0, 1.0], [0.0, 0.5, 1.0])


# --- The paper's integrals, written out -----------------------------------------------------------


def over_block_maximum(block_size: int, integrand: Any) -> float:
    """Integral over m of integrand(m) (2G(m)-1)^(I-2) g(m) for standard normal weights."""

    def weighed(m: float) -> float:
        return float(integrand(m) * (2 * ndtr(m) - 1) ** (block_size - 2) * normal_density(m))

    return float(quad(weighed, 0, 12, points=(1.5, 2.5, 4), epsabs=1e-15, epsrel=1e-12, limit=400)[0])


def normal_density(x: float) -> float:
    return float(np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def test_inner_levels_are_the_centroids_of_eq_35() -> None:
    levels = solve_theory(64, levels=8, fixed=(0, 1))
    edges = (levels[1:] + levels[:-1]) / 2
    for level, a, b in zip(levels[1:-1], edges[:-1], edges[1:], strict=True):
        if level == 0:
            continue  # fixed
        moment = over_block_maximum(64, lambda m, a=a, b=b: -m * (normal_density(m * b) - normal_density(m * a)))
        mass = over_block_maximum(64, lambda m, a=a, b=b: m**2 * (ndtr(m * b) - ndtr(m * a)))
        assert level == pytest.approx(moment / mass, abs=1e-9)


def test_inner_levels_are_the_medians_of_eq_59() -> None:
    levels = solve_theory(64, levels=8, metric="mae", fixed=(0, 1))
    edges = (levels[1:] + levels[:-1]) / 2
    for level, a, b in zip(levels[1:-1], edges[:-1], edges[1:], strict=True):
        if level == 0:
            continue
        balance = over_block_maximum(
            64, lambda m, x=level, a=a, b=b: m * (ndtr(m * x) - ndtr(m * a) / 2 - ndtr(m * b) / 2)
        )
        slope = over_block_maximum(64, lambda m, x=level: m**2 * normal_density(m * x))
        assert balance / slope == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_an_end_level_that_is_free_takes_in_the_point_mass(normalization: Normalization) -> None:
    """Eqs. 36 to 42: the last region's mean holds the block maximum with its mass 1/I or 1/(2I)."""
    block_size = 16
    levels = solve_theory(block_size, levels=4, normalization=normalization, fixed=())
    a = (levels[-2] + levels[-1]) / 2
    # eq. 12 over eq. 10: 2I (2G-1)^(I-1) g, times (I-1)/I / (2G-1)
    moment = over_block_maximum(
        block_size, lambda m: 2 * (block_size - 1) * -m * (normal_density(m) - normal_density(m * a))
    )
    mass = over_block_maximum(block_size, lambda m: 2 * (block_size - 1) * m**2 * (ndtr(m) - ndtr(m * a)))
    point = over_block_maximum(block_size, lambda m: 2 * m**2 * (2 * ndtr(m) - 1))
    point /= 1 if normalization == "signed" else 2
    assert levels[-1] == pytest.approx((moment + point) / (mass + point), abs=1e-9)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("block_size", [8, 64, 4096])
def test_the_law_has_the_second_moment_of_the_weights(normalization: Normalization, block_size: int) -> None:
    """m^2 x^2 is w^2 again, so its mean must be the variance."""
    for distribution in (scipy.stats.norm(scale=3), scipy.stats.laplace(), scipy.stats.t(5), scipy.stats.gumbel_r()):
        law = theoretical_law(block_size, normalization, "mse", distribution)
        second = law.cumulative(np.array([np.inf]))[2, 0]
        assert second == pytest.approx(float(distribution.moment(2)), rel=1e-9)


# --- Theory and data ------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_theory_and_data_agree(normalization: Normalization, metric: Metric) -> None:
    fixed = PAPER_FIXED[normalization]
    theory = solve_theory(64, normalization=normalization, metric=metric, fixed=fixed)
    data = solve_samples(draw_samples(2**24, 64), 64, normalization=normalization, metric=metric, fixed=fixed)
    assert distance_db(theory, data) < -50


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    "distribution",
    [scipy.stats.t(5), scipy.stats.laplace(), scipy.stats.norm(0.4), scipy.stats.gumbel_r()],
    ids=["t(5)", "laplace", "norm off centre", "gumbel_r"],
)
def test_theory_and_data_agree_for_other_distributions(normalization: Normalization, distribution: Any) -> None:
    theory = solve_theory(32, levels=8, normalization=normalization, fixed=(0, 1), distribution=distribution)
    drawn = draw_samples(2**22, 32, distribution)
    assert distance_db(theory, solve_samples(drawn, 32, levels=8, normalization=normalization)) < -50
    # and the distribution matters: Gaussian levels are further off than that
    gaussian = solve_theory(32, levels=8, normalization=normalization, fixed=(0, 1))
    assert distance_db(theory, gaussian) > -40


def rounding_error(weights: Array, levels: Array, normalization: Normalization, metric: Metric) -> float:
    """Mean error of (blocks, I) weights, straight from the definition of the quantizer."""
    largest = np.take_along_axis(weights, np.abs(weights).argmax(axis=1)[:, None], axis=1)
    m = largest if normalization == "signed" else np.abs(largest)
    nearest = levels[np.abs((weights / m)[..., None] - levels).argmin(axis=-1)]
    error = np.abs(weights - m * nearest)
    return float(np.mean(error**2 if metric == "mse" else error))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_expected_error_is_the_error_of_rounded_weights(
    gaussian_laws: dict[tuple[Normalization, Metric], Law], normalization: Normalization, metric: Metric
) -> None:
    levels = np.array(with_zero_and_one(TABLE_7[64]))
    weights = np.random.default_rng(5).standard_normal((2**12, 64))
    measured = rounding_error(weights, levels, normalization, metric)
    sampled = expected_error(levels, sampled_law([weights], 64, normalization, metric))
    assert sampled == pytest.approx(measured, rel=1e-5)
    theoretical = expected_error(levels, gaussian_laws[normalization, metric])
    assert theoretical == pytest.approx(measured, rel=0.01)


def test_bof4_s_beats_bof4_on_gaussian_weights(
    gaussian_laws: dict[tuple[Normalization, Metric], Law],
) -> None:
    signed = expected_error(with_zero_and_one(TABLE_7[64]), gaussian_laws["signed", "mse"])
    absolute = expected_error(TABLE_8, gaussian_laws["absolute", "mse"])
    assert signed == pytest.approx(0.0074, abs=5e-5)  # the design's figure for this type
    assert signed < 0.95 * absolute


# --- Properties of every solution -----------------------------------------------------------------


def assert_codebook(levels: Array, count: int, fixed: tuple[float, ...]) -> None:
    assert levels.shape == (count,)
    assert levels.dtype == np.float64
    assert (np.diff(levels) > 0).all()
    assert np.abs(levels).max() <= 1
    assert set(fixed) <= set(levels.tolist())


problems = st.fixed_dictionaries(
    {
        "block_size": st.integers(8, 4096),
        "levels": st.integers(3, 40),
        "normalization": st.sampled_from(NORMALIZATIONS),
        "metric": st.sampled_from(METRICS),
        "fixed": st.sets(st.sampled_from((-1.0, 0.0, 1.0))).map(lambda chosen: tuple(sorted(chosen))),
    }
)
some_distributions = st.sampled_from(
    [scipy.stats.norm(), scipy.stats.t(3), scipy.stats.laplace(), scipy.stats.uniform(-1, 2), scipy.stats.expon()]
)


@settings(max_examples=40, deadline=None)
@given(problem=problems, distribution=some_distributions)
def test_any_problem_has_a_codebook_that_is_a_fixed_point_of_lloyd(problem: dict[str, Any], distribution: Any) -> None:
    levels = solve_theory(**problem, distribution=distribution)
    assert_codebook(levels, problem["levels"], problem["fixed"])
    law = theoretical_law(problem["block_size"], problem["normalization"], problem["metric"], distribution)
    step = lloyd_step(levels, law, problem["fixed"])
    np.testing.assert_allclose(step, levels, rtol=0, atol=1e-10)


ascending_levels = arrays(np.float64, 9, elements=st.floats(-1, 1, width=32), unique=True).map(np.sort)


@settings(max_examples=60, deadline=None)
@given(
    levels=ascending_levels,
    normalization=st.sampled_from(NORMALIZATIONS),
    metric=st.sampled_from(METRICS),
    sampled=st.booleans(),
)
def test_lloyd_never_raises_the_error(
    gaussian_laws: dict[tuple[Normalization, Metric], Law],
    small_laws: dict[tuple[Normalization, Metric], Law],
    levels: Array,
    normalization: Normalization,
    metric: Metric,
    sampled: bool,
) -> None:
    law = (small_laws if sampled else gaussian_laws)[normalization, metric]
    error = expected_error(levels, law)
    for _ in range(5):
        levels = lloyd_step(levels, law, fixed=())
        assert (np.diff(levels) >= 0).all()
        before, error = error, expected_error(levels, law)
        assert error <= before * (1 + 1e-12)


@pytest.fixture(scope="module")
def small_laws() -> dict[tuple[Normalization, Metric], Law]:
    weights = np.random.default_rng(3).standard_t(3, size=(500, 64))
    return {(n, m): sampled_law([weights], 64, n, m) for n in NORMALIZATIONS for m in METRICS}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [3, 5, 15, 33])
def test_odd_absolute_codebooks_of_symmetric_weights_are_antisymmetric(metric: Metric, levels: int) -> None:
    solution = solve_theory(64, levels, "absolute", metric, (-1, 0, 1))
    np.testing.assert_allclose(solution, -solution[::-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [4, 16])
@pytest.mark.parametrize("distribution", [scipy.stats.laplace(), scipy.stats.t(3)], ids=["laplace", "t(3)"])
def test_a_solution_is_a_minimum_not_a_saddle(metric: Metric, levels: int, distribution: Any) -> None:
    """With no level fixed, the symmetric codebook of a heavy-tailed distribution is but a saddle point."""
    law = theoretical_law(64, "absolute", metric, distribution)
    solution = solve(law, levels, ())
    moved = np.clip(solution + 0.01 * np.diff(solution).min(), -1, 1)
    for _ in range(200):
        moved = lloyd_step(moved, law, ())
    assert expected_error(moved, law) >= expected_error(solution, law) * (1 - 1e-9)


@pytest.mark.parametrize("block_size", [8, 4096])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_extreme_sizes(block_size: int, normalization: Normalization, metric: Metric) -> None:
    law = theoretical_law(block_size, normalization, metric)
    errors = {}
    for count in (2, 128, 256):
        fixed = (0.0, 1.0)
        levels = solve(law, count, fixed)
        assert_codebook(levels, count, fixed)
        errors[count] = expected_error(levels, law)
    # twice the levels, half the distance to them: what fine quantizers of any density have in common
    assert errors[128] / errors[256] == pytest.approx(4 if metric == "mse" else 2, rel=0.05)
    assert errors[2] > errors[128]


@pytest.mark.parametrize("fixed", [(), (-1,), (-1, 1), (-1, 0, 1)])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_any_set_of_fixed_levels(fixed: tuple[float, ...], normalization: Normalization) -> None:
    law = theoretical_law(64, normalization)
    assert_codebook(levels := solve(law, 16, fixed), 16, fixed)
    # a level that is held can only cost
    assert expected_error(levels, law) >= expected_error(solve(law, 16, ()), law)


def test_as_many_fixed_levels_as_levels() -> None:
    assert solve_theory(64, 3, "absolute", fixed=(1, -1, 0)).tolist() == [-1, 0, 1]


def test_the_scale_of_a_distribution_does_not_matter() -> None:
    scaled = solve_theory(64, distribution=scipy.stats.norm(scale=0.02))
    np.testing.assert_allclose(scaled, solve_theory(64), rtol=0, atol=1e-10)


# --- Samples --------------------------------------------------------------------------------------

weight_arrays = arrays(
    np.float32, st.integers(8, 200), elements=st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)
).filter(lambda weights: bool(weights[:8].any()))


@settings(max_examples=60, deadline=None)
@given(weights=weight_arrays, normalization=st.sampled_from(NORMALIZATIONS), metric=st.sampled_from(METRICS))
def test_any_weights_have_a_codebook(
    weights: npt.NDArray[np.float32], normalization: Normalization, metric: Metric
) -> None:
    levels = solve_samples(weights, 8, 16, normalization, metric)
    assert_codebook(levels, 16, (0.0, 1.0))
    assert expected_error(levels, sampled_law([weights], 8, normalization, metric)) >= 0
    # powers of two scale floating-point numbers exactly
    assert solve_samples(weights * np.float32(2.0**-20), 8, 16, normalization, metric).tolist() == levels.tolist()
    if normalization == "signed":
        assert solve_samples(-weights, 8, 16, normalization, metric).tolist() == levels.tolist()


def test_isolated_samples_are_kept_exactly() -> None:
    weights = np.array([3.0, -1.25, 0.5, 0.75, -2.5, 1.0, -0.25, -4.0])
    x = np.sort(weights / -4)
    for metric in METRICS:
        step = lloyd_step(x + 1e-3 * np.cos(np.arange(8)), sampled_law([weights], 8, "signed", metric), fixed=())
        np.testing.assert_allclose(step, x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("metric", METRICS)
def test_empty_regions_are_allowed(normalization: Normalization, metric: Metric) -> None:
    for weights in (np.ones(64), np.eye(8), -np.arange(64.0)):
        levels = solve_samples(weights, 8, 16, normalization, metric, fixed=(0,))
        assert_codebook(levels, 16, (0.0,))


@pytest.mark.parametrize("metric", METRICS)
def test_levels_of_empty_regions_stay(metric: Metric) -> None:
    law = sampled_law([np.eye(8)], 8, "signed", metric)  # x is 0 or 1
    assert lloyd_step([-0.9, -0.5, 0.1, 0.4, 0.8], law, ()).tolist() == [-0.9, -0.5, 0.0, 0.4, 1.0]


def test_blocks_of_zeros_do_not_change_the_levels() -> None:
    weights = np.random.default_rng(1).standard_normal((64, 64))
    padded = np.concatenate([np.zeros((7, 64)), weights])
    np.testing.assert_allclose(solve_samples(padded, 64), solve_samples(weights, 64), rtol=0, atol=1e-12)


def test_what_samples_may_be() -> None:
    """Any shape, chunks, half precision, torch tensors that require gradients; a rest is left out."""
    weights = np.random.default_rng(2).standard_normal((40, 64)).astype(np.float16)
    expected = solve_samples(weights.astype(np.float64), 16).tolist()
    assert solve_samples(weights, 16).tolist() == expected
    assert solve_samples(np.append(weights.ravel(), np.ones(15)), 16).tolist() == expected
    assert solve_samples(torch.tensor(weights, requires_grad=True), 16).tolist() == expected
    chunks = iter([weights[:10], weights[10:]])
    np.testing.assert_allclose(solve_samples(chunks, 16), expected, rtol=0, atol=1e-12)
    bfloat16 = torch.tensor(weights).to(torch.bfloat16)
    assert solve_samples(bfloat16, 16).tolist() == solve_samples(bfloat16.float().numpy(), 16).tolist()


def test_draws_are_repeatable_whole_blocks() -> None:
    drawn = list(draw_samples(2**20 + 1000, 96, seed=4))
    assert [chunk.shape[1] for chunk in drawn] == [96, 96]
    assert sum(chunk.size for chunk in drawn) == (2**20 + 1000) // 96 * 96
    again = next(draw_samples(2**20 + 1000, 96, seed=4))
    np.testing.assert_array_equal(drawn[0], again)
    assert not np.array_equal(drawn[0], next(draw_samples(2**20 + 1000, 96, seed=5)))


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 7}, "from 8 to 4096"),
        ({"block_size": 4097}, "from 8 to 4096"),
        ({"levels": 1}, "from 2 to 256"),
        ({"levels": 257}, "from 2 to 256"),
        ({"fixed": (0, 0.5)}, "only -1, 0 and 1"),
        ({"fixed": (-1, 0, 1), "levels": 2}, "fix fewer"),
        ({"normalization": "unsigned"}, "'signed' or 'absolute'"),
        ({"metric": "rmse"}, "'mse', 'mae' or 'mae-normalized'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"block_size": 64}
    with pytest.raises(ValueError, match=message):
        solve_theory(**good | arguments)
    with pytest.raises(ValueError, match=message):
        solve_samples(np.ones(8192), **good | arguments)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.array([1.0] * 63 + [np.nan]), "NaN or infinity"),
        (np.array([1.0] * 63 + [-np.inf]), "NaN or infinity"),
        (np.ones(63), "fewer than one block"),
        (np.array([]), "fewer than one block"),
        (np.zeros(64), "all weights are zero"),
        (np.full(64, 1e200), "scale them down"),
    ],
)
def test_weights_that_cannot_be_solved_for(weights: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_samples(weights, 64)


def test_distributions_that_cannot_be_solved_for() -> None:
    with pytest.raises(ValueError, match="metric 'mae'"):
        solve_theory(64, distribution=scipy.stats.t(2))
    with pytest.raises(ValueError, match="lighter-tailed"):
        solve_theory(64, metric="mae", distribution=scipy.stats.cauchy())
    with pytest.raises(ValueError, match="continuous"):
        solve_theory(64, distribution=scipy.stats.norm.pdf)  # type: ignore[arg-type]
    assert_codebook(solve_theory(64, metric="mae", distribution=scipy.stats.t(2)), 16, (0.0, 1.0))


# --- The command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)  # without a callback, typer drops the name of a lone command
    command.register(app)
    return app


def solved(app: typer.Typer, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["codebook", "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json(app: typer.Typer) -> None:
    found = solved(app)
    assert found["levels"] == solve_theory(64).tolist()
    assert tuple(found["int8"]) == BOF4_S.levels
    assert found["fixed"] == [0, 1]
    assert found["error"] == pytest.approx(0.0074, abs=5e-5)
    options = "--block=32 --levels=9 --normalization=absolute --metric=mae --method=theory"
    assert (
        solved(app, *options.split(), "--fixed", "-1,0,1")["levels"]
        == solve_theory(32, 9, "absolute", "mae", (-1, 0, 1)).tolist()
    )
    assert solved(app, "--fixed", "none")["levels"] == solve_theory(64, fixed=()).tolist()
    found = solved(app, "--distribution", "t:5")
    assert found["levels"] == solve_theory(64, distribution=scipy.stats.t(5)).tolist()


def test_json_from_samples(app: typer.Typer) -> None:
    found = solved(app, "--samples", "100000", "--seed", "3", "--distribution", "laplace")
    drawn = draw_samples(100000, 64, scipy.stats.laplace(), seed=3)
    assert found["levels"] == solve_samples(drawn, 64).tolist()
    assert "100000 samples of laplace" in found["source"]


def test_json_of_scale_search(app: typer.Typer) -> None:
    options = "codebook --block 16 --levels 4 --scale-search --samples 4000 --json"
    found = json.loads(CliRunner().invoke(app, options.split()).stdout)
    assert found["normalization"] == "searched"
    assert found["source"] == "4000 samples of norm, seed 0"
    assert found["levels"] == sorted(found["levels"])
    assert {0.0, 1.0} <= set(found["levels"])
    # four levels without scale search
    assert 0.02 < found["error"] < expected_error(solve_theory(16, 4), theoretical_law(16))


def test_table(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["codebook"])
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    shown = [(float(row[1]), int(row[2])) for row in rows if len(row) == 3 and row[0].isdigit()]
    np.testing.assert_allclose([level for level, _ in shown], solve_theory(64), rtol=0, atol=6e-7)
    assert tuple(k for _, k in shown) == BOF4_S.levels


def write_npy(path: Path, weights: npt.NDArray[np.float32]) -> None:
    np.save(path, weights)


def write_safetensors(path: Path, weights: npt.NDArray[np.float32]) -> None:
    save_file({"a.weight": torch.tensor(weights), "norm.weight": torch.full((4096,), 7.0)}, path)


def write_gguf(path: Path, weights: npt.NDArray[np.float32]) -> None:
    write_tensors(path, {"a.weight": weights, "norm.weight": np.full(4096, 7, np.float32)})


@pytest.mark.parametrize("write", [write_npy, write_safetensors, write_gguf])
def test_weights_of_a_file(app: typer.Typer, tmp_path: Path, write: Any) -> None:
    """Matrices count, vectors such as norms do not."""
    weights = np.random.default_rng(6).standard_normal((2500, 64)).astype(np.float32)
    path = tmp_path / f"w.{write.__name__.removeprefix('write_')}"
    write(path, weights)
    found = solved(app, "--weights", str(path))
    np.testing.assert_allclose(found["levels"], solve_samples(weights, 64), rtol=0, atol=1e-9)


def test_quantized_weights_of_a_file(app: typer.Typer, tmp_path: Path) -> None:
    """BOF4_S itself comes back: a block of it holds no values but the 16 levels times its maximum."""
    weights = np.random.default_rng(6).standard_normal((2500, 64)).astype(np.float32)
    path, qtype = tmp_path / "w.gguf", gguf.GGMLQuantizationType.BOF4_S
    write_tensors(path, {"a.weight": gguf.quantize(weights, qtype)}, qtype)
    assert tuple(solved(app, "--weights", str(path))["int8"]) == BOF4_S.levels


def damaged_files(folder: Path) -> Iterator[Path]:
    for suffix in ("npy", "safetensors", "gguf"):
        path = folder / f"damaged.{suffix}"
        path.write_bytes(b"no weights in here")
        yield path
    np.save(folder / "integers.npy", np.arange(64))
    yield folder / "integers.npy"


def test_files_that_cannot_be_read(app: typer.Typer, tmp_path: Path) -> None:
    """The command line turns a UserError into a message and exit code 1, as for every command."""
    for path in damaged_files(tmp_path):
        result = CliRunner().invoke(app, ["codebook", "--weights", str(path)])
        assert isinstance(result.exception, UserError)
        assert str(path) in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--block 7", "from 8 to 4096"),
        ("--levels 1", "from 2 to 256"),
        ("--fixed 0,2", "only -1, 0 and 1"),
        ("--fixed zero", "commas between"),
        ("--normalization max", "normalization"),
        ("--metric max", "metric"),
        ("--method guess", "method"),
        ("--samples 10", "fewer than one block"),
        ("--method theory --samples 1000", "takes no samples"),
        ("--distribution poisson:3", "no continuous distribution"),
        ("--distribution t", "df, loc, scale"),
        ("--distribution t:-1", "df, loc, scale"),
        ("--distribution t:x", "df, loc, scale"),
        ("--distribution t:2", "metric 'mae'"),
        ("--scale-search --metric mae", "drop --normalization"),
        ("--scale-search --method theory", "drop --normalization"),
        ("--scale-search --fixed 0", "drop --normalization"),
        ("--scale-search --levels 2", "3 levels or more"),
        ("--scale-search --weights README.md --samples 1000", "excludes --distribution and --samples"),
        ("--weights README.md", ".npy, .safetensors or .gguf"),
        ("--weights README.md --samples 1000", "excludes --distribution and --samples"),
        ("--weights no-such-file.npy", "no-such-file.npy"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(app: typer.Typer, options: str, message: str) -> None:
    root = Path(__file__).parents[2]
    arguments = [str(root / word) if word == "README.md" else word for word in options.split()]
    result = CliRunner().invoke(app, ["codebook", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
