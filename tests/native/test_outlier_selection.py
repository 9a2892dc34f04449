"""The library finds the outliers that the reference finds, and encodes the rest as the reference does."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from random_weights import student

from gguf_bof4 import native
from gguf_bof4.formats import BOF4_S
from gguf_bof4.lists import OutlierList, parse, select, threshold, without

TYPE = gguf.GGMLQuantizationType(BOF4_S.type_id)

weights = npst.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.sampled_from([64, 192])), elements=st.floats(-1000, 1000, width=32)
)
quantiles = st.sampled_from([0.3, 0.9, 0.95, 0.99])


def has_ties(x: np.ndarray, quantile: float) -> bool:
    """Is a weight so near its threshold that the order of summation decides?"""
    blocks = np.abs(x.reshape(-1, 64).astype(np.float64))
    limits = np.std(x.reshape(-1, 64).astype(np.float64), axis=1, ddof=1, keepdims=True) * threshold(quantile)
    return bool(((np.abs(blocks - limits) <= 1e-12 * limits) & (limits > 0)).any())


def same(a: OutlierList, b: OutlierList) -> bool:
    return np.array_equal(a.row_pointers, b.row_pointers) and np.array_equal(a.entries, b.entries)


@settings(max_examples=200, deadline=None)
@given(weights, quantiles)
def test_any_weights(x: np.ndarray, quantile: float) -> None:
    assume(not has_ties(x, quantile))
    found = native.select_outliers(x, quantile)
    assert same(found, select(x, quantile))
    parse(found.packed(), "w", x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_heavy_tails_in_every_source_type(dtype: torch.dtype, quantile: float) -> None:
    x = torch.from_numpy(student(300, 320)).to(dtype)
    assert same(native.select_outliers(x, quantile), select(x.float().numpy(), quantile))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_nothing(threads: int) -> None:
    x = student(999, 640, 1)
    assert same(native.select_outliers(x, 0.95, threads), select(x, 0.95))


@settings(max_examples=100, deadline=None)
@given(weights, quantiles)
def test_outliers_are_zero_to_the_encoder(x: np.ndarray, quantile: float) -> None:
    found = native.select_outliers(x, quantile)
    assert np.array_equal(native.quantize(x, TYPE, outliers=found), gguf.quantize(without(x, found), TYPE))


@pytest.mark.parametrize("columns", [1, 2, 16, 33])
def test_products_hold_the_outliers(columns: int) -> None:
    """Exactly, up to float32 sums: where all else is 0, and the activations are what Q8_0 holds exactly."""
    x = student(500, 256, 2)
    found = native.select_outliers(x, 0.9)
    activations = np.random.default_rng(3).integers(-127, 128, (columns, 256)).astype(np.float32)
    activations[:, ::32] = 127  # so the scale of every Q8_0 block is 1
    zeros = native.quantize(np.zeros_like(x), TYPE)
    dense = np.zeros_like(x)
    found.add_to(dense)
    exact = activations.astype(np.float64) @ dense.astype(np.float64).T
    scale = (np.abs(activations).astype(np.float64) @ np.abs(dense).astype(np.float64).T).max()
    assert np.abs(native.mul_mat(zeros, TYPE, activations, outliers=found) - exact).max() < 2**-20 * scale


def test_what_has_no_list_is_refused() -> None:
    with pytest.raises(native.NativeError, match="multiple of 64 and at most 65536"):
        native.select_outliers(student(2, 96), 0.95)
    with pytest.raises(native.NativeError, match="multiple of 64 and at most 65536"):
        native.select_outliers(np.zeros((1, 65536 + 64), np.float32), 0.95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        native.select_outliers(student(2, 64), 1.0)
    with pytest.raises(native.NativeError, match="list of 2 rows"):
        native.quantize(student(3, 64), TYPE, outliers=select(student(2, 64), 0.95))
