"""Sources of the rows of a tensor: a range of a file, an array that is computed when it is read, or a stack of these.

`gguf_bof4.gguf_files.model.Tensor` is a range of a GGUF or safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_NUMPY_TYPES = {
    np.dtype(np.float32): gguf.GGMLQuantizationType.F32,
    np.dtype(np.float16): gguf.GGMLQuantizationType.F16,
    np.dtype(np.float64): gguf.GGMLQuantizationType.F64,
    np.dtype(np.int8): gguf.GGMLQuantizationType.I8,
    np.dtype(np.int16): gguf.GGMLQuantizationType.I16,
    np.dtype(np.int32): gguf.GGMLQuantizationType.I32,
    np.dtype(np.int64): gguf.GGMLQuantizationType.I64,
}


class Source(Protocol):
    """A tensor that can be read in runs of rows, in ascending order, once."""

    @property
    def name(self) -> str: ...

    @property
    def qtype(self) -> gguf.GGMLQuantizationType: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows before columns, in weights."""

    @property
    def path(self) -> Path:
        """The file or folder that messages name."""

    def read_rows(self, first: int, count: int) -> Bytes:
        """uint8 [count, bytes of a row]; rows are counted over all dimensions above the first."""


def n_rows(source: Source) -> int:
    """Rows of a tensor, over all dimensions above the first."""
    return int(np.prod(source.shape[:-1], dtype=np.int64))


@dataclass
class Computed:
    """An array that is computed at the first read and freed after the last row was read.

    Attributes:
        compute: returns [..., n] floats or integers, or uint8 [..., bytes of a row] of a block type.
    """

    name: str
    qtype: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    path: Path
    compute: Callable[[], npt.NDArray[Any]]
    _array: npt.NDArray[Any] | None = field(default=None, repr=False)

    def read_rows(self, first: int, count: int) -> Bytes:
        """Rows [count, bytes of a row]."""
        if self._array is None:
            self._array = self.compute()
        rows = rows_of(self._array, first, count)
        if first + count == n_rows(self):
            self._array = None
        return rows


def type_of(array: npt.NDArray[Any]) -> gguf.GGMLQuantizationType:
    """The ggml type of the elements of an array, lazy or not.

    Raises:
        ValueError: ggml has no such type.
    """
    try:
        return _NUMPY_TYPES[np.dtype(array.dtype)]
    except KeyError:
        raise ValueError(f"{array.dtype} is no type of a GGUF tensor") from None


def rows_of(array: npt.NDArray[Any], first: int, count: int) -> Bytes:
    """Rows [count, bytes of a row] of an array of any strides; only those are copied."""
    if array.flags.c_contiguous:
        rows = array.reshape(-1, array.shape[-1])[first : first + count]
    else:
        # reshape would copy the whole of a transposed array
        index = np.unravel_index(np.arange(first, first + count), array.shape[:-1])
        rows = np.ascontiguousarray(array[index].reshape(count, array.shape[-1]))
    return rows.view(np.uint8)


@dataclass
class Stacked:
    """Sources of one type on top of each other, such as the experts of a layer.

    Attributes:
        parts: each with the same number of columns.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    parts: tuple[Source, ...]

    @property
    def qtype(self) -> gguf.GGMLQuantizationType:
        return self.parts[0].qtype

    def read_rows(self, first: int, count: int) -> Bytes:
        """Rows [count, bytes of a row], from as many parts as it takes."""
        pieces = []
        start = 0
        for part in self.parts:
            rows = n_rows(part)
            begin, end = max(first, start), min(first + count, start + rows)
            if begin < end:
                pieces.append(part.read_rows(begin - start, end - begin))
            start += rows
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
