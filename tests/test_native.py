"""The patched library against the numpy reference, through cffi."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gguf_bof4 import native
from gguf_bof4.formats import BOF4_S
from gguf_bof4.verify import product_tolerance

TYPE = gguf.GGMLQuantizationType.BOF4_S
Q8_0 = gguf.GGMLQuantizationType.Q8_0

# any float32 at all: NaN, infinities, subnormals, negative zero
anything = npst.arrays(
    np.uint32, st.tuples(st.integers(1, 3), st.sampled_from([64, 128])), elements=st.integers(0, 2**32 - 1)
)
anything_finite = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([64, 128])),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def bits(floats: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(floats).view(np.uint32)


@settings(max_examples=300)
@given(anything_finite)
def test_c_encodes_the_same_bytes_as_numpy(x: np.ndarray) -> None:
    assert np.array_equal(native.quantize(x, TYPE), gguf.quantize(x, TYPE))


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 3e4, 1e30])
def test_c_encodes_the_same_bytes_as_numpy_for_many_gaussian_weights(scale: float) -> None:
    x = np.random.default_rng(1).standard_normal((512, 1024), dtype=np.float32) * np.float32(scale)
    assert np.array_equal(native.quantize(x, TYPE), gguf.quantize(x, TYPE))


def test_ties_between_levels_are_broken_alike() -> None:
    midpoints = (np.array(BOF4_S.levels[:-1]) + np.array(BOF4_S.levels[1:])) / 2
    x = np.zeros((2, 64), dtype=np.float32)
    x[:, 0] = 127, -127
    x[0, 1:16], x[1, 1:16] = midpoints, -midpoints
    assert np.array_equal(native.quantize(x, TYPE), gguf.quantize(x, TYPE))


@settings(max_examples=200)
@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 3), st.sampled_from([34, 68]))))
def test_c_decodes_any_bytes_to_the_same_bits_as_numpy(data: np.ndarray) -> None:
    in_numpy, in_c = gguf.dequantize(data, TYPE), native.dequantize(data, TYPE)
    finite = np.isfinite(in_numpy)
    assert np.array_equal(finite, np.isfinite(in_c))
    assert np.array_equal(bits(in_numpy)[finite], bits(in_c)[finite])


def test_every_scale_decodes_to_the_same_bits() -> None:
    scales = np.arange(1 << 16, dtype=np.uint16)
    scales = scales[scales & 0x7C00 != 0x7C00]
    codes = np.arange(16, dtype=np.uint8) * 0x11
    data = np.zeros((scales.size, 34), dtype=np.uint8)
    data[:, :2] = scales[:, None].view(np.uint8)
    data[:, 2:] = np.tile(codes, 2)
    assert np.array_equal(bits(native.dequantize(data, TYPE)), bits(gguf.dequantize(data, TYPE)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_sources_encode_like_their_float32(dtype: torch.dtype) -> None:
    x = torch.randn(64, 320, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert np.array_equal(native.quantize(x, TYPE), native.quantize(x.float().numpy(), TYPE))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    x = np.random.default_rng(4).standard_normal((999, 640), dtype=np.float32)
    assert np.array_equal(native.quantize(x, TYPE, threads=threads), gguf.quantize(x, TYPE))


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


def test_validation_refuses_a_scale_that_is_not_finite() -> None:
    data = gguf.quantize(np.ones((4, 128), dtype=np.float32), TYPE)
    native.validate(data, TYPE)
    for scale in (np.nan, np.inf, -np.inf):
        damaged = data.copy()
        damaged[2, 34:36] = np.array([scale], dtype=np.float16).view(np.uint8)
        with pytest.raises(native.NativeError, match="not valid"):
            native.validate(damaged, TYPE)


@pytest.mark.parametrize("n", [64, 128, 576, 4096, 64 * 129])
def test_vec_dot_equals_float64_to_the_accuracy_of_q8_0(n: int) -> None:
    generator = np.random.default_rng(n)
    row = native.quantize(generator.standard_normal((1, n), dtype=np.float32), TYPE)
    a = generator.standard_normal(n, dtype=np.float32)
    exact = a.astype(np.float64) @ gguf.dequantize(row, TYPE)[0].astype(np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(gguf.dequantize(row, TYPE))
    assert abs(native.vec_dot(row, TYPE, a) - exact) / norms < product_tolerance(n)


@pytest.mark.parametrize("n", [64, 576, 2048])
def test_vec_dot_is_exact_up_to_float32_when_the_activations_are(n: int) -> None:
    """Activations that Q8_0 holds exactly leave nothing but the rounding of float sums."""
    generator = np.random.default_rng(n)
    a = generator.integers(-127, 128, n).astype(np.float32)
    a[::32] = 127  # so the scale of every Q8_0 block is 1
    row = native.quantize(generator.standard_normal((1, n), dtype=np.float32), TYPE)
    weights = gguf.dequantize(row, TYPE)[0].astype(np.float64)
    error = abs(native.vec_dot(row, TYPE, a) - a.astype(np.float64) @ weights)
    assert error / (np.abs(a) @ np.abs(weights)) < 1e-6


@pytest.mark.parametrize(("rows", "n", "columns"), [(1, 64, 1), (7, 192, 3), (33, 576, 8), (64, 1536, 65)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_mul_mat_equals_float64_to_the_accuracy_of_q8_0(rows: int, n: int, columns: int, threads: int) -> None:
    generator = np.random.default_rng(rows)
    weights = native.quantize(generator.standard_normal((rows, n), dtype=np.float32), TYPE)
    a = generator.standard_normal((columns, n), dtype=np.float32)
    decoded = gguf.dequantize(weights, TYPE).astype(np.float64)
    norms = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(decoded, axis=1))
    errors = np.abs(native.mul_mat(weights, TYPE, a, threads) - a.astype(np.float64) @ decoded.T) / norms
    assert errors.max() < product_tolerance(n)


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
        (lambda: native.library()[1] and native._checked(native.library()[1].bof4_row_size(100, 64)), "no ggml type"),
        (lambda: native.quantize(np.ones((1, 256), np.float32), gguf.GGMLQuantizationType.IQ2_XXS), "importance"),
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
