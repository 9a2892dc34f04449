"""The scale search: what it gains over absmax, and what it must not lose."""

from typing import Any

import gguf
import numpy as np
import pytest
import search_reference

from gguf_bof4 import native
from gguf_bof4.formats import BOF4_K, BOF4_S, FORMAT_OF_TYPE_ID, FORMATS, FP16_MAX, LEVEL_SCALE
from gguf_bof4.lists import select, without
from gguf_bof4.native import BlockEncoder

TYPE = gguf.GGMLQuantizationType.BOF4_S
ERRORS = {BOF4_S.type_id: (0.0064, 0.00650), BOF4_K.type_id: (0.0040, 0.00425)}
"""Relative squared error on Gaussian weights: what no search can reach, and what this one must reach."""

ERROR_OF_ANY_TYPE = (0.0, 0.00650)

every_type = pytest.mark.parametrize(
    "qtype", [gguf.GGMLQuantizationType(f.type_id) for f in FORMATS], ids=lambda t: t.name
)


def search(x: np.ndarray, qtype: gguf.GGMLQuantizationType, **options: Any) -> np.ndarray:
    return native.quantize(x, qtype, encoder=BlockEncoder.SEARCH, **options)


def weighted_error(
    x: np.ndarray, encoded: np.ndarray, qtype: gguf.GGMLQuantizationType, importance: np.ndarray | float = 1.0
) -> np.ndarray:
    """Squared error of each block of the type, weighted by the importance of its columns."""
    decoded = gguf.dequantize(encoded, qtype).astype(np.float64)
    return (importance * np.square(x - decoded)).reshape(-1, gguf.GGML_QUANT_SIZES[qtype][0]).sum(axis=1)


@pytest.fixture(scope="module")
def gaussian() -> np.ndarray:
    return np.random.default_rng(6).standard_normal((2048, 2048), dtype=np.float32)


@every_type
def test_error_on_gaussian_weights(gaussian: np.ndarray, qtype: gguf.GGMLQuantizationType) -> None:
    error = weighted_error(gaussian, search(gaussian, qtype), qtype).sum()
    lowest, highest = ERRORS.get(qtype, ERROR_OF_ANY_TYPE)
    assert lowest < error / np.square(gaussian, dtype=np.float64).sum() <= highest


@every_type
def test_no_block_is_worse_than_with_absmax_by_more_than_rounding(
    gaussian: np.ndarray, qtype: gguf.GGMLQuantizationType
) -> None:
    searched = weighted_error(gaussian, search(gaussian, qtype), qtype)
    absmax = weighted_error(gaussian, native.quantize(gaussian, qtype), qtype)
    # the scale of absmax itself is between two of the scales tried
    assert (searched > 1.05 * absmax).mean() < 0.001
    assert searched.sum() < 0.9 * absmax.sum()


@every_type
def test_importance_moves_the_error_to_where_it_matters_less(qtype: gguf.GGMLQuantizationType) -> None:
    generator = np.random.default_rng(7)
    x = generator.standard_normal((512, 1024), dtype=np.float32)
    importance = generator.gamma(0.3, size=1024).astype(np.float32)
    plain, weighted = search(x, qtype), search(x, qtype, imatrix=importance)
    errors = [weighted_error(x, encoded, qtype, importance).sum() for encoded in (plain, weighted)]
    assert errors[1] < 0.95 * errors[0]
    assert weighted_error(x, weighted, qtype).sum() > weighted_error(x, plain, qtype).sum()


@every_type
def test_importance_of_one_everywhere_is_none(qtype: gguf.GGMLQuantizationType) -> None:
    x = np.random.default_rng(11).standard_normal((16, 768), dtype=np.float32)
    assert np.array_equal(search(x, qtype), search(x, qtype, imatrix=np.ones(768, np.float32)))


@every_type
@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(qtype: gguf.GGMLQuantizationType, threads: int) -> None:
    x = np.random.default_rng(8).standard_normal((301, 768), dtype=np.float32)
    assert np.array_equal(search(x, qtype, threads=threads), search(x, qtype, threads=1))


@every_type
@pytest.mark.parametrize("x", [
    np.zeros((2, 256), np.float32), np.full((1, 256), 1e-9, np.float32), np.full((1, 256), 65519, np.float32),
    np.eye(1, 256, dtype=np.float32), -np.eye(1, 256, dtype=np.float32),
], ids=["zeros", "tiny", "huge", "one", "minus one"])  # fmt: skip
def test_unusual_blocks_keep_a_finite_scale(x: np.ndarray, qtype: gguf.GGMLQuantizationType) -> None:
    decoded = gguf.dequantize(search(x, qtype), qtype)
    assert np.isfinite(decoded).all()
    fmt = FORMAT_OF_TYPE_ID[qtype]
    unit = fmt.unit[0] / fmt.unit[1]
    largest = FP16_MAX * max(1, fmt.sub_scale_offset) * LEVEL_SCALE * unit
    assert np.abs(decoded - x).max() <= max(np.abs(x).max() - largest, 0.01 * np.abs(x).max(), 1e-7)


def rows_of_all_kinds() -> np.ndarray:
    """Ordinary rows, rows near both ends of fp16, rows with zeros, and one whose weights span many magnitudes."""
    generator = np.random.default_rng(9)
    x = generator.standard_normal((9, 1024), dtype=np.float32)
    x[1] *= 2.0**-20
    x[2] *= 1e4
    x[3], x[4, :512], x[5, ::2] = 0, 0, 0
    x[6] *= 1e-30
    x[7] *= 2.0 ** generator.integers(-30, 3, 1024)
    x[8] *= 3e4
    return np.clip(x, -65519, 65519).astype(np.float32)


def importances() -> dict[str, np.ndarray | None]:
    """Importances of 1024 columns: ordinary ones, and those that products of the search cannot hold."""
    generator = np.random.default_rng(12)
    gamma = generator.gamma(0.3, size=1024)
    column = np.arange(1024)
    found = {
        "ordinary": gamma,
        "zero": np.zeros(1024),
        "zero in every other 64": np.where(column // 64 % 2, 0, gamma),
        "subnormal": 1e-41 * generator.gamma(3, size=1024),
        "largest": np.full(1024, 3e38),
        "all magnitudes": 10.0 ** generator.uniform(-44, 38, 1024),
        "all magnitudes of sub-blocks": 10.0 ** generator.uniform(-44, 38, 1024)[column // 16] * (column // 16 % 3 > 0),
    }
    return {"none": None} | {name: w.astype(np.float32) for name, w in found.items()}


@every_type
@pytest.mark.parametrize("name", importances())
def test_c_finds_the_same_bytes_as_numpy(qtype: gguf.GGMLQuantizationType, name: str) -> None:
    x, importance = rows_of_all_kinds(), importances()[name]
    expected = search_reference.quantize(x, importance, FORMAT_OF_TYPE_ID[qtype])
    assert np.array_equal(search(x, qtype, imatrix=importance), expected)


@every_type
def test_no_importance_at_all_is_that_of_one(qtype: gguf.GGMLQuantizationType) -> None:
    x = rows_of_all_kinds()
    assert np.array_equal(search(x, qtype, imatrix=np.zeros(1024, np.float32)), search(x, qtype))


@every_type
def test_columns_without_importance_keep_their_weights(
    gaussian: np.ndarray, qtype: gguf.GGMLQuantizationType
) -> None:
    """Runs of 64 columns, which have scales of their own: they are encoded as well as the others."""
    importance = (np.arange(gaussian.shape[1]) // 64 % 2).astype(np.float32)
    x = gaussian[:256]
    encoded = [search(x, qtype, imatrix=w) for w in (importance, None)]
    weighted, plain = (weighted_error(x, e, qtype, 1 - importance) for e in encoded)
    assert 0 < weighted.sum() < 1.01 * plain.sum()


@every_type
def test_importance_that_only_zero_weights_have_is_none(qtype: gguf.GGMLQuantizationType) -> None:
    x = np.random.default_rng(13).standard_normal((16, 512), dtype=np.float32)
    importance = (np.arange(512) % 16 == 0).astype(np.float32)
    x[:, importance > 0] = 0
    assert np.array_equal(search(x, qtype, imatrix=importance), search(x, qtype))


@every_type
@pytest.mark.parametrize("exponent", [-144, -100, 100, 120])
def test_a_power_of_two_times_all_importances_changes_nothing(
    qtype: gguf.GGMLQuantizationType, exponent: int
) -> None:
    x = rows_of_all_kinds()[[0, 2, 5]]
    importance = np.random.default_rng(14).integers(1, 16, 1024).astype(np.float32)  # exact as subnormals, too
    scaled = np.ldexp(importance, exponent).astype(np.float32)
    assert np.array_equal(search(x, qtype, imatrix=scaled), search(x, qtype, imatrix=importance))


@every_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_an_importance_that_is_none_is_refused(bad: float, qtype: gguf.GGMLQuantizationType) -> None:
    importance = np.ones(512, np.float32)
    importance[300] = bad
    with pytest.raises(native.NativeError, match=f"column 300 is {str(bad)[:2]}"):
        search(np.ones((2, 512), np.float32), qtype, imatrix=importance)


@every_type
def test_outliers_are_zero_to_the_encoder(qtype: gguf.GGMLQuantizationType) -> None:
    x = np.random.default_rng(10).standard_t(3, (64, 512)).astype(np.float32)
    found = select(x, 0.95)
    for encoder in BlockEncoder:
        given = native.quantize(x, qtype, encoder=encoder, outliers=found)
        assert np.array_equal(given, native.quantize(without(x, found), qtype, encoder=encoder))


def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(native.NativeError, match="no encoder 99"):
        native.quantize(np.ones((1, 64), np.float32), TYPE, encoder=99)  # type: ignore[arg-type]


def test_encoders_have_the_numbers_of_the_library() -> None:
    _, lib = native.library()
    assert {e.name: e.value for e in BlockEncoder} == {
        e.name: getattr(lib, f"BOF4_ENCODER_{e.name}") for e in BlockEncoder
    }
