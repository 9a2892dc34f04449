"""Rows of tensors that are not plain ranges of a file."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from gguf_bof4.convert.lazy import Chunked
from gguf_bof4.convert.sources import Computed, Source, Stacked, n_rows, type_of

HERE = Path()
X = np.arange(4 * 6 * 10, dtype=np.float32).reshape(4, 6, 10)


def read_in_runs(source: Source, run: int) -> np.ndarray:
    total = n_rows(source)
    runs = [source.read_rows(first, min(run, total - first)) for first in range(0, total, run)]
    assert all(len(rows) == min(run, total - i * run) for i, rows in enumerate(runs))
    return np.concatenate(runs).view(np.float32).reshape(source.shape)


@pytest.mark.parametrize("run", [1, 5, 7, 24, 100])
@pytest.mark.parametrize("array", [X, X.transpose(2, 0, 1), X[:, ::2, ::-1], X[0], X[0].T, X[0, 0]])
def test_arrays_of_any_strides(array: np.ndarray, run: int) -> None:
    computed = Computed("x", T.F32, array.shape, HERE, lambda: array)
    assert np.array_equal(read_in_runs(computed, run), array)


def test_an_array_is_computed_once_and_freed_after_its_last_row() -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def compute() -> np.ndarray:
        array = X.copy()
        made.append(weakref.ref(array))
        return array

    computed = Computed("x", T.F32, X.shape, HERE, compute)
    for first in range(0, 24, 5):
        rows = computed.read_rows(first, min(5, 24 - first)).copy()
        assert np.array_equal(rows.view(np.float32).reshape(-1, 10), X.reshape(24, 10)[first : first + 5])
        assert len(made) == 1
        assert (made[0]() is None) == (first == 20)


@pytest.mark.parametrize("run", [1, 5, 7, 24, 100])
def test_stacks_and_chunks(run: int) -> None:
    parts = tuple(Computed("x", T.F32, x.shape, HERE, lambda x=x: x) for x in X)
    assert np.array_equal(read_in_runs(Stacked("x", X.shape, HERE, parts), run), X)
    rows = X.reshape(24, 10)
    pieces = [rows[:3], rows[3:4], rows[4:20], rows[20:]]
    chunked = Chunked("x", rows.shape, HERE, [lambda piece=piece: piece for piece in pieces])
    assert np.array_equal(read_in_runs(chunked, run), rows)


def test_types_of_arrays() -> None:
    assert type_of(np.zeros(1, np.float16)) == T.F16
    assert type_of(np.zeros(1, np.int64)) == T.I64
    with pytest.raises(ValueError, match="complex64"):
        type_of(np.zeros(1, np.complex64))
