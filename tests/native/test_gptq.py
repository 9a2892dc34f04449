"""The native GPTQ encoder against what it is defined to do, on one matrix at a time."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as T

from gguf_bof4 import native
from gguf_bof4.encoders.gptq.factor import Factor, drift, factor, processing_order
from gguf_bof4.encoders.gptq.layer import Workers
from gguf_bof4.encoders.gptq.layouts import STOCK_TYPES
from gguf_bof4.encoders.gptq.matching import find_rows
from gguf_bof4.formats import FORMATS
from gguf_bof4.lists import OutlierList

Floats = npt.NDArray[np.float32]
TYPES = [T(f.type_id) for f in FORMATS]
LEVELS = {T(f.type_id): np.array(f.levels, dtype=np.float64) for f in FORMATS}
SUB_BLOCKS = {"BOF4_S": 64, "BOF4_K": 16}
ROWS, COLUMNS = 70, 512  # more than two tiles, the last not full


@pytest.fixture(scope="module")
def weights() -> Floats:
    """float32 [ROWS, COLUMNS], with a few outliers."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) * np.float32(0.05)
    w[rng.integers(0, ROWS, 40), rng.integers(0, COLUMNS, 40)] *= 6
    return w


@pytest.fixture(scope="module")
def moments() -> torch.Tensor:
    """float32 [COLUMNS, COLUMNS] of correlated inputs of different sizes."""
    rng = np.random.default_rng(2)
    common = rng.standard_normal((4096, 30)) @ rng.standard_normal((30, COLUMNS))
    x = (rng.standard_normal((4096, COLUMNS)) + 0.3 * common) * rng.lognormal(0, 0.7, COLUMNS)
    return torch.from_numpy((x.T @ x / 4096).astype(np.float32))


def dense(panels: Floats) -> npt.NDArray[np.float64]:
    """A matrix [n, n] from its panels."""
    return np.concatenate(list(panels), axis=1).astype(np.float64)


def encode(
    weights: Floats, qtype: T, made: Factor, sweeps: int = 0, outliers: OutlierList | None = None, threads: int = 1
) -> tuple[npt.NDArray[np.uint8], Floats, OutlierList | None, tuple[float, float]]:
    return native.gptq(
        weights, qtype, made.order, made.feedback, made.curvature, made.hessian, sweeps, outliers, threads
    )


def loss(error: Floats, moments: npt.NDArray[np.float64]) -> float:
    e = error.astype(np.float64)
    return float(((e @ moments) * e).sum())


def multipliers(encoded: npt.NDArray[np.uint8], qtype: T) -> npt.NDArray[np.float64]:
    """What a level of 1 is worth in each block, float64 [rows, blocks], from the bytes as the README describes them."""
    rows = len(encoded)
    blocks = encoded.reshape(rows, -1, gguf.GGML_QUANT_SIZES[qtype][1])
    d = blocks[..., :2].copy().view(np.float16)[..., 0].astype(np.float64)
    if qtype.name == "BOF4_S":
        return d / 127
    packed = blocks[..., 2:14].astype(np.int64)
    j = np.arange(16)
    low = packed[..., j % 8] >> 4 * (j // 8) & 15
    high = packed[..., 8 + j % 4] >> 2 * (j // 4) & 3
    return (d[..., None] / 4096 * ((low | high << 4) - 32)).reshape(rows, -1)


def column_loop(weights: Floats, qtype: T, made: Factor, worth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The definition: columns one after another, each to the level nearest to its target; scales are given."""
    m, levels = dense(made.feedback), LEVELS[qtype]
    q = np.zeros(weights.shape)
    errors = np.zeros(weights.shape)  # in the order of processing
    for k, column in enumerate(made.order):
        target = weights[:, column] + errors[:, :k] @ m[:k, k]
        u = worth[:, column // SUB_BLOCKS[qtype.name]]
        nearest = np.abs(target[:, None] - u[:, None] * levels).argmin(axis=1)
        q[:, column] = u * levels[nearest]
        errors[:, k] = weights[:, column] - q[:, column]
    return q


@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("act_order", [False, True])
def test_codes_are_those_of_the_column_loop(weights: Floats, moments: torch.Tensor, qtype: T, act_order: bool) -> None:
    made = factor(moments, qtype, 0.01, act_order)
    encoded, decoded, _, _ = encode(weights, qtype, made)
    expected = column_loop(weights, qtype, made, multipliers(encoded, qtype))
    # a target beside a midpoint may fall either way, and then the rest of its row differs
    same_rows = (np.abs(decoded - expected) < 1e-6).all(axis=1)
    assert same_rows.mean() > 0.9


@pytest.mark.parametrize("qtype", TYPES)
def test_scales_are_nearly_the_best_for_their_block(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.01, False)
    encoded, _, _, _ = encode(weights, qtype, made)
    worth, block = multipliers(encoded, qtype), SUB_BLOCKS[qtype.name]

    def cost(first_block: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        m, d, levels = dense(made.feedback), made.curvature, LEVELS[qtype]
        errors, total = np.zeros((ROWS, block)), np.zeros(ROWS)
        for k in range(block):
            target = weights[:, k] + errors[:, :k] @ m[:k, k]
            q = first_block * levels[np.abs(target[:, None] - first_block[:, None] * levels).argmin(axis=1)]
            total += d[k] * (target - q) ** 2
            errors[:, k] = weights[:, k] - q
        return total

    chosen = cost(worth[:, 0])
    tried = np.array([cost(worth[:, 0] * f * sign) for f in np.linspace(0.6, 1.6, 41) for sign in (1, -1)])
    # the scales tried here lie closer together than the 64 that a block of BOF4_K can have
    assert chosen.sum() <= (1.05 if block == 64 else 1.15) * tried.min(axis=0).sum()
    assert chosen.sum() < 0.9 * np.median(tried, axis=0).sum()


@pytest.mark.parametrize("qtype", TYPES)
def test_reported_loss_is_the_loss_under_the_moments(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.01, True)
    h = dense(made.hessian)
    for sweeps in (0, 3):
        _, decoded, _, (after_columns, after_sweeps) = encode(weights, qtype, made, sweeps)
        assert after_sweeps == pytest.approx(loss((weights - decoded)[:, made.order], h), rel=1e-4)
        assert after_sweeps <= after_columns


@pytest.mark.parametrize("qtype", TYPES)
def test_less_loss_than_encoders_that_do_not_compensate(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    h = moments.double().numpy()
    made = factor(moments, qtype, 0.01, True)
    diagonal = moments.diagonal().numpy().copy()
    search = native.BlockEncoder.SEARCH
    best = min(
        loss(weights - native.dequantize(native.quantize(weights, qtype, imatrix, 1, search), qtype), h)
        for imatrix in (None, diagonal)
    )
    columns_only = loss(weights - encode(weights, qtype, made)[1], h)
    assert columns_only < 0.7 * best
    assert loss(weights - encode(weights, qtype, made, 2)[1], h) < columns_only


@pytest.mark.parametrize("qtype", TYPES)
def test_threads_do_not_change_bytes(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.01, True)
    listed = native.select_outliers(weights, 0.95)
    encoded, decoded, outliers, losses = encode(weights, qtype, made, 1, listed, 1)
    assert outliers is not None
    for threads in (2, 5):
        again = encode(weights, qtype, made, 1, listed, threads)
        assert np.array_equal(again[0], encoded)
        assert np.array_equal(again[1], decoded)
        assert again[2] is not None
        assert np.array_equal(again[2].entries, outliers.entries)
        assert again[3] == losses


@pytest.mark.parametrize("qtype", TYPES)
def test_outliers_stay_out_of_blocks_and_are_compensated(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.01, True)
    listed = native.select_outliers(weights, 0.95)
    assert listed.entries.size > 10
    encoded, decoded, outliers, _ = encode(weights, qtype, made, 1, listed)
    assert outliers is not None
    assert np.array_equal(outliers.row_pointers, listed.row_pointers)
    assert np.array_equal(outliers.columns, listed.columns)
    blocks = native.dequantize(encoded, qtype)
    assert (blocks[outliers.rows, outliers.columns] == 0).all()
    outliers.add_to(blocks)
    assert np.array_equal(blocks, decoded)
    # they take up errors of other columns, but remain what they were
    assert (outliers.values != listed.values).any()
    assert np.abs(outliers.values - listed.values).max() < 0.5 * np.abs(listed.values).min()
    without = encode(weights, qtype, made, 1)
    assert loss(weights - decoded, moments.double().numpy()) < loss(weights - without[1], moments.double().numpy())


def test_an_order_that_tears_blocks_apart_is_refused(weights: Floats, moments: torch.Tensor) -> None:
    made = factor(moments, T.BOF4_S, 0.01, False)
    order = made.order.copy()
    order[[0, 100]] = order[[100, 0]]
    with pytest.raises(native.NativeError, match="tears blocks"):
        native.gptq(weights, T.BOF4_S, order, made.feedback, made.curvature)


@pytest.mark.parametrize("qtype", [T.IQ3_S, T.MXFP4, T.TQ1_0, T.F16, T.Q8_K])
def test_other_types_are_refused(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, T.BOF4_S, 0.01, False)
    with pytest.raises(native.NativeError, match="does not encode"):
        native.gptq(weights, qtype, made.order, made.feedback, made.curvature)


STOCK = sorted(STOCK_TYPES, key=int)
BLOCK_SCALES = {T.Q4_0: (-8, 7), T.Q5_0: (-16, 15), T.Q8_0: (-127, 127), T.Q4_1: (0, 15), T.Q5_1: (0, 31)}
"""Levels of the types with one scale, or a scale and a minimum, for 32 weights."""


def scales_and_minimums(
    encoded: npt.NDArray[np.uint8], qtype: T
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each sub-block what a level of 1 is worth, what is subtracted, float64 [rows, sub-blocks], and the levels."""
    rows = len(encoded)
    blocks = encoded.reshape(rows, -1, gguf.GGML_QUANT_SIZES[qtype][1])
    halves = blocks[..., :4].copy().view(np.float16).astype(np.float64)
    if qtype in BLOCK_SCALES:
        low, high = BLOCK_SCALES[qtype]
        minimums = -halves[..., 1] if low == 0 else np.zeros(blocks.shape[:2])
        return halves[..., 0], minimums, np.arange(low, high + 1)
    packed = gguf.quants.Q4_K.get_scale_min(blocks[..., 4:16].reshape(-1, 12).copy())
    scales, minimums = (halves[..., i : i + 1] * packed[i].reshape(rows, -1, 8) for i in (0, 1))
    return scales.reshape(rows, -1), minimums.reshape(rows, -1), np.arange(16 if qtype == T.Q4_K else 32)


@pytest.mark.parametrize("qtype", STOCK)
def test_stock_types_are_packed_as_ggml_and_gguf_read_them(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    encoded, decoded, _, _ = encode(weights, qtype, factor(moments, qtype, 0.01, True), 2)
    native.validate(encoded, qtype)
    assert np.array_equal(native.dequantize(encoded, qtype), decoded)
    assert np.array_equal(gguf.quants.dequantize(encoded, qtype), decoded)


@pytest.mark.parametrize("qtype", [*BLOCK_SCALES, T.Q4_K, T.Q5_K])
def test_codes_of_stock_types_are_those_of_the_column_loop(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.01, True)
    encoded, decoded, _, _ = encode(weights, qtype, made)
    worth, minimums, levels = scales_and_minimums(encoded, qtype)
    m, q, errors = dense(made.feedback), np.zeros(weights.shape), np.zeros(weights.shape)
    for k, column in enumerate(made.order):
        target = weights[:, column] + errors[:, :k] @ m[:k, k]
        u, v = worth[:, column // 32, None], minimums[:, column // 32, None]
        choices = u * levels - v
        q[:, column] = np.take_along_axis(choices, np.abs(target[:, None] - choices).argmin(axis=1)[:, None], 1)[:, 0]
        errors[:, k] = weights[:, column] - q[:, column]
    # a target beside a midpoint may fall either way, and then the rest of its row differs; Q8_0 has the most midpoints
    assert (np.abs(decoded - q) < 1e-6).all(axis=1).mean() > (0.7 if qtype == T.Q8_0 else 0.9)


@pytest.mark.parametrize("qtype", STOCK)
def test_stock_types_lose_less_than_by_ggml(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.01, True)
    h, diagonal = moments.double().numpy(), moments.diagonal().numpy().copy()
    best = min(
        loss(weights - native.dequantize(native.quantize(weights, qtype, imatrix, 1), qtype), h)
        for imatrix in (None, diagonal)
    )
    _, columns, _, (reported, _) = encode(weights, qtype, made)
    assert reported == pytest.approx(loss((weights - columns)[:, made.order], dense(made.hessian)), rel=1e-4)
    assert loss(weights - columns, h) < 0.5 * best
    _, swept, _, (_, reported) = encode(weights, qtype, made, 2)
    assert reported == pytest.approx(loss((weights - swept)[:, made.order], dense(made.hessian)), rel=1e-4)
    assert loss(weights - swept, h) < loss(weights - columns, h)


@pytest.mark.parametrize("qtype", STOCK)
def test_threads_do_not_change_bytes_of_stock_types(weights: Floats, moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.01, True)
    encoded, _, _, losses = encode(weights, qtype, made, 1, threads=1)
    again, _, _, other = encode(weights, qtype, made, 1, threads=5)
    assert np.array_equal(again, encoded) and other == losses


@pytest.mark.parametrize("qtype", STOCK)
def test_constant_and_zero_blocks_of_stock_types(moments: torch.Tensor, qtype: T) -> None:
    constant = np.zeros((4, COLUMNS), dtype=np.float32)
    constant[1], constant[2], constant[3, 5] = 0.25, -0.25, 1.0
    made = factor(moments, qtype, 0.5, True)
    _, decoded, _, _ = encode(constant, qtype, made, 2)
    assert np.isfinite(decoded).all() and (decoded[0] == 0).all()
    assert np.abs(decoded - constant)[1:3].max() < 0.15  # errors are compensated, not absent
    assert decoded[3, 5] == pytest.approx(1.0, rel=0.2)


def test_what_stock_types_cannot_have_is_refused(weights: Floats, moments: torch.Tensor) -> None:
    made = factor(moments, T.Q4_K, 0.01, False)
    with pytest.raises(native.NativeError, match="q4_K have no outlier lists"):
        encode(weights, T.Q4_K, made, 0, native.select_outliers(weights, 0.95))
    order = made.order.copy()
    order[[0, 40]] = order[[40, 0]]  # of one superblock, but of two sub-blocks
    with pytest.raises(native.NativeError, match="tears blocks"):
        native.gptq(weights, T.Q4_K, order, made.feedback, made.curvature)


@pytest.mark.parametrize("qtype", TYPES)
def test_large_inputs_come_first_and_blocks_stay_together(moments: torch.Tensor, qtype: T) -> None:
    diagonal = moments.diagonal().numpy()
    order = processing_order(diagonal, qtype, True)
    assert sorted(order) == list(range(COLUMNS))
    block = SUB_BLOCKS[qtype.name]
    runs = order.reshape(-1, block)
    assert (runs // block == runs[:, :1] // block).all()
    assert (np.diff(diagonal[runs], axis=1) <= 0).all()
    whole = gguf.GGML_QUANT_SIZES[qtype][0]
    sums = diagonal[order].reshape(-1, whole).sum(axis=1)
    assert (np.diff(sums) <= 1e-3 * sums[:-1]).all()


def test_factors_multiply_to_the_damped_moments(moments: torch.Tensor) -> None:
    made = factor(moments, T.BOF4_S, 0.02, True)
    m = dense(made.feedback)
    assert (np.tril(m) == 0).all()
    unit = np.eye(COLUMNS) + m
    h = moments.double().numpy()[made.order][:, made.order]
    h += 0.02 * h.diagonal().mean() * np.eye(COLUMNS)
    np.testing.assert_allclose(unit @ np.diag(made.curvature.astype(np.float64)) @ unit.T, h, atol=1e-4 * h.max())
    np.testing.assert_allclose(dense(made.hessian), h, rtol=1e-5, atol=1e-6 * h.max())


def test_moments_that_are_singular_are_damped_more(weights: Floats) -> None:
    x = np.random.default_rng(3).standard_normal((3, COLUMNS)).astype(np.float32)
    x[:, :64] = 0  # inputs that are never seen
    made = factor(torch.from_numpy(x.T @ x), T.BOF4_S, 0.0, True)
    assert made.damping > 0
    _, decoded, _, _ = encode(weights, T.BOF4_S, made, 1)
    assert np.isfinite(decoded).all()
    assert np.abs(weights - decoded)[:, :64].max() < 0.1  # dead columns are quantized like any others


def test_inputs_that_are_always_zero_count_alike(weights: Floats) -> None:
    made = factor(torch.zeros(COLUMNS, COLUMNS), T.BOF4_S, 0.01, True)
    _, decoded, _, _ = encode(weights, T.BOF4_S, made, 1)
    plain = native.dequantize(native.quantize(weights, T.BOF4_S, encoder=native.BlockEncoder.SEARCH), T.BOF4_S)
    assert np.square(weights - decoded).mean() < 1.05 * np.square(weights - plain).mean()


@pytest.mark.parametrize("qtype", [T.BOF4_S, T.BOF4_K])
def test_panels_hold_the_hessian_and_its_factor_in_the_order_of_processing(moments: torch.Tensor, qtype: T) -> None:
    made = factor(moments, qtype, 0.25, True)
    assert (made.order != np.arange(COLUMNS)).any()
    ordered = moments.numpy().astype(np.float64)[made.order][:, made.order]
    ordered += 0.25 * np.diag(moments.numpy()).mean() * np.eye(COLUMNS)
    assert made.hessian.shape == made.feedback.shape == (COLUMNS // 64, COLUMNS, 64)
    assert made.hessian[3, 7, 5] == moments[made.order[7], made.order[3 * 64 + 5]]
    np.testing.assert_allclose(dense(made.hessian), ordered, rtol=1e-6)
    upper = np.eye(COLUMNS) + dense(made.feedback)
    assert not np.tril(dense(made.feedback)).any()
    np.testing.assert_allclose(upper * made.curvature @ upper.T, ordered, rtol=1e-4, atol=1e-4 * ordered.max())


def test_rows_are_found_whatever_their_order(weights: Floats) -> None:
    places = np.random.default_rng(4).permutation(ROWS)
    module = np.empty_like(weights)
    module[places] = weights
    assert np.array_equal(find_rows(weights, module), places)
    twice = np.concatenate([weights[:5], weights[:5]])
    found = find_rows(twice, twice[::-1].copy())
    assert found is not None
    assert sorted(found) == list(range(10))
    assert np.array_equal(twice[::-1][found], twice)


def test_rows_of_another_matrix_are_not_found(weights: Floats) -> None:
    other = weights.copy()
    other[17, 3] = np.nextafter(other[17, 3], np.float32(1))
    assert find_rows(weights, other) is None
    assert find_rows(weights, weights[:-1]) is None


def test_a_correction_brings_outputs_to_those_of_the_unquantized_model() -> None:
    """The least squares solution, by the drift of the inputs and by that of the outputs of permuted rows."""
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((6, 64)).astype(np.float32)
    x = generator.standard_normal((500, 64))
    y = x + 0.2 * generator.standard_normal((500, 64)) + 0.1 * np.roll(x, 1, axis=1)
    places = np.array([3, 1, 0, 2, 5, 4])
    hessian = torch.from_numpy(x.T @ x / 500).float()
    moved = (y - x).T @ x / 500
    module = np.empty_like(rows)
    module[places] = rows
    workers = Workers(2, torch.device("cpu"))
    by_inputs = drift(hessian, torch.from_numpy(moved).float(), 0.0).correction(rows, places, workers)
    by_outputs = drift(hessian, torch.from_numpy(module @ moved).float(), 0.0).correction(rows, places, workers)
    workers.close()
    wanted = np.linalg.lstsq(x, y @ rows.T, rcond=None)[0].T
    np.testing.assert_allclose(rows + by_inputs, wanted, atol=1e-4)
    np.testing.assert_allclose(rows + by_outputs, wanted, atol=1e-4)
