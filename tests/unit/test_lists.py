"""Outlier lists in Python: the rule, the packing, and what is refused."""

import math

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from random_weights import student
from scipy.stats import norm

from gguf_bof4.errors import UserError
from gguf_bof4.lists import bfloat16, parse, select, threshold, without

TYPE = gguf.GGMLQuantizationType.BOF4_S

weights = npst.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.sampled_from([64, 192])),
    elements=st.floats(-1000, 1000, width=32),
)  # fmt: skip


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_threshold_is_the_quantile_of_the_largest_of_64_normals(quantile: float) -> None:
    t = threshold(quantile)
    assert (2 * norm.cdf(t) - 1) ** 64 == pytest.approx(quantile, rel=1e-9)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_a_quantile_outside_is_refused(quantile: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold(quantile)


def test_gaussian_blocks_have_an_outlier_as_often_as_the_quantile_says() -> None:
    """Nearly: a block's own outlier raises its sample deviation."""
    x = np.random.default_rng(1).standard_normal((4096, 64), dtype=np.float32)
    share = (np.diff(select(x, 0.9).row_pointers) > 0).mean()
    assert 0.05 < share < 0.10


@given(weights, st.sampled_from([0.5, 0.9, 0.99]))
def test_exactly_the_weights_beyond_the_threshold_are_chosen(x: np.ndarray, quantile: float) -> None:
    found = select(x, quantile)
    chosen = np.zeros(x.shape, dtype=bool)
    chosen[found.rows, found.columns] = True
    for block, mask in zip(x.reshape(-1, 64), chosen.reshape(-1, 64), strict=True):
        limit = np.std(block.astype(np.float64), ddof=1) * threshold(quantile)
        clear = np.abs(np.abs(block.astype(np.float64)) - limit) > 1e-9 * (limit + 1)
        assert (mask == (np.abs(block.astype(np.float64)) > limit))[clear].all()


@given(weights)
def test_packing_and_parsing_give_the_list_back(x: np.ndarray) -> None:
    found = select(x, 0.5)
    again = parse(found.packed(), "w", x.shape)
    assert np.array_equal(again.row_pointers, found.row_pointers)
    assert np.array_equal(again.entries, found.entries)


def test_bfloat16_rounds_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    x = student(64, 64).ravel()
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(bfloat16(x), expected)


def test_lists_lower_the_error_of_weights_with_outliers() -> None:
    x = student(256, 1024)

    def error(quantile: float | None) -> float:
        if quantile is None:
            decoded = gguf.dequantize(gguf.quantize(x, TYPE), TYPE)
        else:
            found = select(x, quantile)
            decoded = gguf.dequantize(gguf.quantize(without(x, found), TYPE), TYPE)
            found.add_to(decoded)
        return float(np.square(x - decoded).sum() / np.square(x).sum())

    assert error(0.95) < 0.5 * error(None)


def test_an_outlier_comes_back_as_its_bfloat16_exactly() -> None:
    x = student(32, 256)
    found = select(x, 0.95)
    decoded = gguf.dequantize(gguf.quantize(without(x, found), TYPE), TYPE)
    found.add_to(decoded)
    kept = (bfloat16(x).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(decoded[found.rows, found.columns], kept[found.rows, found.columns])


def good() -> np.ndarray:
    return select(student(8, 192), 0.9).packed()


DAMAGES = {
    "its row pointers descend": lambda p: p.__setitem__(slice(2, 4), p[[3, 2]] + [5, 0]),
    "first row pointer": lambda p: p.__setitem__(0, 1),
    "length is not": lambda p: p.__setitem__(8, p[8] + 1),
    "beyond the row": lambda p: p.__setitem__(9, (p[9] & ~0xFFFF) | 192),
    "NaN or infinite": lambda p: p.__setitem__(9, (p[9] & 0xFFFF) | 0x7FC0 << 16),
}


@pytest.mark.parametrize("why", DAMAGES)
def test_a_damaged_list_is_refused_by_name(why: str) -> None:
    packed = good()
    assert np.diff(packed[:9]).min() >= 0 and packed[8] > 3, "the sound list has outliers to damage"
    DAMAGES[why](packed)
    with pytest.raises(UserError, match=f"blk.0.x.weight.opq .*{why}"):
        parse(packed, "blk.0.x.weight", (8, 192))


def test_columns_out_of_order_are_refused() -> None:
    found = select(student(1, 192), 0.5)
    assert found.entries.size >= 2
    packed = found.packed()
    packed[[2, 3]] = packed[[3, 2]]
    with pytest.raises(UserError, match="ascending order"):
        parse(packed, "w", (1, 192))


@pytest.mark.parametrize("cut", [lambda p: p[:5], lambda p: p[:-1], lambda p: np.append(p, p[-1:])])
def test_a_wrong_length_is_refused(cut) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="not valid"):
        parse(cut(good()), "w", (8, 192))


def test_wrong_type_and_rows_too_long_are_refused() -> None:
    with pytest.raises(UserError, match="I32"):
        parse(good().astype(np.float32), "w", (8, 192))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="longer than 65536"):
        parse(good(), "w", (8, 65536 + 64))
