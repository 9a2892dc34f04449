"""The patched library against the numpy reference, through cffi."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gguf_bof4 import native
from gguf_bof4.errors import TooLargeWeightError
from gguf_bof4.formats import FORMATS, Format
from gguf_bof4.lists import select
from gguf_bof4.verify import product_tolerance

TYPE = gguf.GGMLQuantizationType.BOF4_S
Q8_0 = gguf.GGMLQuantizationType.Q8_0

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)


def type_of(fmt: Format) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(fmt.type_id)


def finite_rows(fmt: Format) -> st.SearchStrategy[np.ndarray]:
    """Any float32 that the types can hold: subnormals and negative zero, too."""
    shapes = st.tuples(st.integers(1, 3), st.sampled_from([fmt.block_size, 2 * fmt.block_size]))
    return npst.arrays(np.float32, shapes, elements=st.floats(-65519, 65519, width=32))


def bits(floats: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(floats).view(np.uint32)


@every_format
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(data=st.data())
def test_c_encodes_the_same_bytes_as_numpy(fmt: Format, data: st.DataObject) -> None:
    x, qtype = data.draw(finite_rows(fmt)), type_of(fmt)
    assert np.array_equal(native.quantize(x, qtype), gguf.quantize(x, qtype))


@every_format
@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-4, 1.0, 3e4])
def test_c_encodes_the_same_bytes_as_numpy_for_many_gaussian_weights(fmt: Format, scale: float) -> None:
    x = np.random.default_rng(1).standard_normal((512, 1024), dtype=np.float32) * np.float32(scale)
    x = np.clip(x, -65519, 65519)
    assert np.array_equal(native.quantize(x, type_of(fmt)), gguf.quantize(x, type_of(fmt)))


@every_format
def test_c_encodes_the_same_bytes_as_numpy_where_blocks_differ_in_magnitude(fmt: Format) -> None:
    generator = np.random.default_rng(2)
    x = generator.standard_normal((256, 64, 16), dtype=np.float32)
    # up to beyond what block scales of 6 bits span; some blocks of zeros
    x *= 2.0 ** generator.integers(-9, 1, (256, 64, 1)) * (generator.random((256, 64, 1)) > 0.1)
    x = x.reshape(256, 1024)
    assert np.array_equal(native.quantize(x, type_of(fmt)), gguf.quantize(x, type_of(fmt)))


@every_format
def test_ties_between_levels_are_broken_alike(fmt: Format) -> None:
    midpoints = (np.array(fmt.levels[:-1]) + np.array(fmt.levels[1:])) / 2
    x = np.zeros((2, fmt.block_size), dtype=np.float32)
    x[:, 0] = 127, -127
    x[0, 1:16], x[1, 1:16] = midpoints, -midpoints
    assert np.array_equal(native.quantize(x, type_of(fmt)), gguf.quantize(x, type_of(fmt)))


@every_format
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_c_decodes_any_bytes_to_the_same_bits_as_numpy(fmt: Format, data: st.DataObject) -> None:
    row_bytes = st.sampled_from([fmt.block_bytes, 2 * fmt.block_bytes])
    encoded = data.draw(npst.arrays(np.uint8, st.tuples(st.integers(1, 3), row_bytes)))
    in_numpy, in_c = gguf.dequantize(encoded, type_of(fmt)), native.dequantize(encoded, type_of(fmt))
    finite = np.isfinite(in_numpy)
    assert np.array_equal(finite, np.isfinite(in_c))
    assert np.array_equal(bits(in_numpy)[finite], bits(in_c)[finite])


@every_format
def test_every_scale_decodes_to_the_same_bits(fmt: Format) -> None:
    scales = np.arange(1 << 16, dtype=np.uint16)
    scales = scales[scales & 0x7C00 != 0x7C00]
    # behind the scale, bytes of all values: codes, and block scales where the type has some
    data = np.arange(scales.size * fmt.block_bytes, dtype=np.int64).astype(np.uint8).reshape(scales.size, -1)
    data[:, :2] = scales[:, None].view(np.uint8)
    assert np.array_equal(bits(native.dequantize(data, type_of(fmt))), bits(gguf.dequantize(data, type_of(fmt))))


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_sources_encode_like_their_float32(fmt: Format, dtype: torch.dtype) -> None:
    x = torch.randn(64, 5 * fmt.block_size, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert np.array_equal(native.quantize(x, type_of(fmt)), native.quantize(x.float().numpy(), type_of(fmt)))


@every_format
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_number_of_threads_changes_nothing(fmt: Format, threads: int) -> None:
    x = np.random.default_rng(4).standard_normal((999, 768), dtype=np.float32)
    assert np.array_equal(native.quantize(x, type_of(fmt), threads=threads), gguf.quantize(x, type_of(fmt)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_weight_that_is_not_finite_is_named(bad: float, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 400, 64, dtype=dtype)
    x[1, 7, 5] = bad
    x[1, 300, 0] = bad
    with pytest.raises(native.NonFiniteWeightError) as caught:
        native.quantize(x, TYPE)
    assert caught.value.position == (1, 7, 5)
    assert repr(caught.value.value) == repr(float(bad))


@every_format
@pytest.mark.parametrize("encoder", native.BlockEncoder)
@pytest.mark.parametrize("bad", [65520.0, -1e5, 1e30])
def test_the_first_weight_that_is_too_large_is_named(bad: float, encoder: native.BlockEncoder, fmt: Format) -> None:
    x = np.zeros((3, 400, 2 * fmt.block_size), dtype=np.float32)
    x[0, 0, 0], x[1, 7, 5], x[2, 0, 0] = 65519, bad, bad
    with pytest.raises(TooLargeWeightError) as caught:
        native.quantize(x, type_of(fmt), encoder=encoder)
    assert caught.value.position == (1, 7, 5)
    rows = x.reshape(1200, -1)
    outliers = select(rows, 0.95)
    native.quantize(x, type_of(fmt), encoder=encoder, outliers=outliers)  # the list holds it
    assert {(7 + 400, 5), (800, 0)} <= set(zip(outliers.rows.tolist(), outliers.columns.tolist(), strict=True))


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ3_S"])
def test_a_weight_that_is_too_large_for_a_type_of_ggml_is_named(name: str) -> None:
    x = np.random.default_rng(5).standard_normal((40, 512), dtype=np.float32)
    x[17, 300] = 1e30
    with pytest.raises(TooLargeWeightError) as caught:
        native.quantize(x, gguf.GGMLQuantizationType[name], imatrix=np.ones(512, np.float32))
    assert caught.value.position == (17, 300)


def test_an_outlier_that_bf16_cannot_hold_is_named() -> None:
    x = np.random.default_rng(6).standard_normal((4, 128), dtype=np.float32)
    x[2, 70] = np.finfo(np.float32).max
    for find in (select, native.select_outliers):
        with pytest.raises(TooLargeWeightError) as caught:
            find(x, 0.95)
        assert caught.value.position == (2, 70)


@every_format
def test_validation_refuses_a_scale_that_is_not_finite(fmt: Format) -> None:
    data = gguf.quantize(np.ones((4, 2 * fmt.block_size), dtype=np.float32), type_of(fmt))
    native.validate(data, type_of(fmt))
    for scale in (np.nan, np.inf, -np.inf):
        damaged = data.copy()
        damaged[2, fmt.block_bytes : fmt.block_bytes + 2] = np.array([scale], dtype=np.float16).view(np.uint8)
        with pytest.raises(native.NativeError, match="not valid"):
            native.validate(damaged, type_of(fmt))


@every_format
@pytest.mark.parametrize("n_blocks", [1, 2, 9, 64, 129])
def test_vec_dot_equals_float64_to_the_accuracy_of_the_activations(fmt: Format, n_blocks: int) -> None:
    n, qtype = n_blocks * fmt.block_size, type_of(fmt)
    generator = np.random.default_rng(n)
    row = native.quantize(generator.standard_normal((1, n), dtype=np.float32), qtype)
    a = generator.standard_normal(n, dtype=np.float32)
    exact = a.astype(np.float64) @ gguf.dequantize(row, qtype)[0].astype(np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(gguf.dequantize(row, qtype))
    assert abs(native.vec_dot(row, qtype, a) - exact) / norms < product_tolerance(qtype, n)


@every_format
def test_the_tolerance_of_products_is_a_few_deviations(fmt: Format) -> None:
    """Errors of many products have the deviation that the tolerance is a multiple of."""
    n, qtype = 8 * fmt.block_size, type_of(fmt)
    generator = np.random.default_rng(12)
    weights = native.quantize(generator.standard_normal((64, n), dtype=np.float32), qtype)
    a = generator.standard_normal((64, n), dtype=np.float32)
    decoded = gguf.dequantize(weights, qtype).astype(np.float64)
    norms = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(decoded, axis=1))
    errors = (native.mul_mat(weights, qtype, a) - a.astype(np.float64) @ decoded.T) / norms
    assert errors.std() == pytest.approx(product_tolerance(qtype, n) / 7.5, rel=0.1)


@every_format
@pytest.mark.parametrize("n_blocks", [1, 9, 32])
def test_vec_dot_is_exact_up_to_float32_when_the_activations_are(fmt: Format, n_blocks: int) -> None:
    """Activations that Q8_0 and Q8_K hold exactly leave nothing but the rounding of float sums."""
    n, qtype = n_blocks * fmt.block_size, type_of(fmt)
    generator = np.random.default_rng(n)
    a = generator.integers(-127, 128, n).astype(np.float32)
    a[::32] = 127  # so the scale of every block of activations is 1
    row = native.quantize(generator.standard_normal((1, n), dtype=np.float32), qtype)
    weights = gguf.dequantize(row, qtype)[0].astype(np.float64)
    error = abs(native.vec_dot(row, qtype, a) - a.astype(np.float64) @ weights)
    assert error / (np.abs(a) @ np.abs(weights)) < 1e-6


@every_format
@pytest.mark.parametrize(("rows", "n_blocks", "columns"), [(1, 1, 1), (7, 3, 3), (33, 9, 8), (64, 24, 65)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_mul_mat_equals_float64_to_the_accuracy_of_the_activations(
    fmt: Format, rows: int, n_blocks: int, columns: int, threads: int
) -> None:
    n, qtype = n_blocks * fmt.block_size, type_of(fmt)
    generator = np.random.default_rng(rows)
    weights = native.quantize(generator.standard_normal((rows, n), dtype=np.float32), qtype)
    a = generator.standard_normal((columns, n), dtype=np.float32)
    decoded = gguf.dequantize(weights, qtype).astype(np.float64)
    norms = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(decoded, axis=1))
    errors = np.abs(native.mul_mat(weights, qtype, a, threads) - a.astype(np.float64) @ decoded.T) / norms
    assert errors.max() < product_tolerance(qtype, n)


def test_other_types_go_through_the_same_calls() -> None:
    x = np.random.default_rng(5).standard_normal((16, 512), dtype=np.float32)
    assert np.array_equal(native.quantize(x, Q8_0), gguf.quantize(x, Q8_0))
    q6_k = native.quantize(x, gguf.GGMLQuantizationType.Q6_K)
    assert np.abs(gguf.dequantize(q6_k, gguf.GGMLQuantizationType.Q6_K) - x).max() < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native.quantize(np.ones((2, 96), np.float32), TYPE), "96 do not divide"),
        (lambda: native.row_bytes(TYPE, 0), "0 do not divide"),
        (lambda: native.row_bytes(100, 64), "no ggml type"),  # type: ignore[arg-type]
        (lambda: native.quantize(np.ones((1, 256), np.float32), gguf.GGMLQuantizationType.IQ2_XXS), "importance"),
        (lambda: native.quantize(np.ones((2, 320), np.float32), gguf.GGMLQuantizationType.BOF4_K), "320 do not divide"),
        (lambda: native.quantize(np.ones((2, 64), np.float32), TYPE, imatrix=np.ones(32, np.float32)), "rows of 64"),
        (lambda: native.vec_dot(np.zeros(34, np.uint8), TYPE, np.zeros(128, np.float32)), "not a row of 128"),
        (lambda: native.allows_quantization("no-such-arch", "x.weight", (64, 64)), "no-such-arch"),
    ],
)
def test_a_call_that_cannot_be_answered_is_refused_with_a_message(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(native.NativeError, match=message):
        call()


def test_llama_quantizes_rules_are_asked() -> None:
    assert native.allows_quantization("llama", "blk.0.ffn_up.weight", (128, 64))
    assert not native.allows_quantization("llama", "blk.0.ffn_norm.weight", (64,))
    assert not native.allows_quantization("llama", "blk.0.ffn_gate_inp.weight", (8, 64))
    assert not native.allows_quantization("bert", "position_embd.weight", (512, 64))
