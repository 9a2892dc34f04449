"""OPQ, outlier-preserving quantization (arXiv 2505.06653, eq. 9 and appendix E), and the lists that store outliers.

A weight whose magnitude exceeds sigma_b * F_M^-1(q) is an outlier: it is stored in bfloat16, in a list beside its
tensor, and set to zero before its block is encoded. sigma_b is the sample deviation of the 64 weights around it
(divisor 63), F_M^-1(q) the q-quantile of the largest of 64 standard normal magnitudes; 64 whatever the type is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.formats import FORMATS, OPQ_BLOCK
from gguf_bof4.normal import normal_quantile

SUFFIX = ".opq"
"""Of the name of a list; the name of its weight precedes it."""

ENTRY_BITS = 32
"""Of an outlier: 16 for its column, 16 for its value in BF16."""

POINTER_BITS = 32
"""Of a row pointer; a list has one more than the tensor has rows."""

LONGEST_ROW = 1 << 16
"""An entry has 16 bits for the column."""

LONGEST_NAME = 63
"""Bytes of the longest name of a tensor, and so of a list, that llama.cpp loads (GGML_MAX_NAME is 64)."""

LISTED_TYPES = frozenset(f.type_id for f in FORMATS)
"""Types whose tensors may have a list."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def threshold(quantile: float) -> float:
    """F_M^-1(q) = G^-1((q^(1/64) + 1) / 2): how many sample deviations an outlier exceeds.

    Raises:
        ValueError: the quantile is not between 0 and 1.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"the OPQ quantile is {quantile}: it must lie between 0 and 1, 0.95 for example")
    return normal_quantile((quantile ** (1 / OPQ_BLOCK) + 1) / 2)


def bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even.

    Args:
        values: float32, any shape; the result has the same.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def entry(columns: npt.NDArray[np.integer[Any]], values: Floats) -> Ints:
    """Entries of a list: column | bf16(value) << 16.

    Args:
        columns: integers [outliers], below 65536.
        values: float32 [outliers], rounded to bfloat16 here.

    Returns:
        int32 [outliers].
    """
    return (bfloat16(values).astype(np.uint32) << 16 | columns.astype(np.uint32)).view(np.int32)


@dataclass(frozen=True)
class OutlierList:
    """The outliers of a tensor, ordered by row and column.

    Attributes:
        row_pointers: int32 [rows + 1]; outliers of row r are entries row_pointers[r] to row_pointers[r + 1].
        entries: int32 [outliers], column | bf16(value) << 16.
    """

    row_pointers: Ints
    entries: Ints

    @property
    def n_rows(self) -> int:
        """Rows of the weight."""
        return self.row_pointers.size - 1

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """int64 [outliers]."""
        return (self.entries & 0xFFFF).astype(np.int64)

    @property
    def values(self) -> Floats:
        """float32 [outliers]."""
        return (self.entries.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """int64 [outliers], the row of each."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.row_pointers))

    def packed(self) -> Ints:
        """The list as a tensor of a file: int32 [rows + 1 + outliers]."""
        return np.concatenate([self.row_pointers, self.entries])

    def part(self, first: int, count: int) -> OutlierList:
        """The list of rows `first` to `first + count`."""
        pointers = self.row_pointers[first : first + count + 1]
        return OutlierList(pointers - pointers[0], self.entries[pointers[0] : pointers[-1]])

    def add_to(self, weights: Floats) -> None:
        """Add the outliers to decoded weights, float32 [rows, columns], in place."""
        weights[self.rows, self.columns] += self.values


@dataclass(frozen=True)
class ListedRows:
    """Encoded rows and their outliers, as data for gguf.dequantize, which decodes both.

    No array, so that whatever knows nothing of lists fails instead of losing one.

    Attributes:
        rows: uint8 [..., bytes of a row].
        outliers: of these rows.
    """

    rows: npt.NDArray[np.uint8]
    outliers: OutlierList


def from_counts(counts: npt.NDArray[np.integer[Any]], entries: Ints) -> OutlierList:
    """A list from the number of outliers of each row, [rows], and all entries, int32 [outliers]."""
    pointers = np.zeros(counts.size + 1, dtype=np.int32)
    np.cumsum(counts, out=pointers[1:])
    return OutlierList(pointers, entries)


def refuse_large_outliers(outliers: OutlierList, shape: tuple[int, ...]) -> None:
    """Refuse a list with a value that BF16 rounds to infinity.

    Args:
        shape: of the weights, rows before columns.

    Raises:
        TooLargeWeightError: there is one.
    """
    if not (finite := np.isfinite(outliers.values)).all():
        at = int(finite.argmin())
        row = np.unravel_index(int(outliers.rows[at]), shape[:-1])
        raise TooLargeWeightError((*(int(i) for i in row), int(outliers.columns[at])))


def select(weights: Floats, quantile: float) -> OutlierList:
    """The outliers of weights; the reference of native.select_outliers.

    Args:
        weights: float32 [rows, n], n a multiple of 64.
        quantile: q of eq. 9.

    Raises:
        ValueError: the quantile is not between 0 and 1.
        TooLargeWeightError: an outlier is too large for BF16.
    """
    rows, n = weights.shape
    blocks = weights.reshape(rows, n // OPQ_BLOCK, OPQ_BLOCK).astype(np.float64)
    squares = np.square(blocks - blocks.mean(axis=2, keepdims=True))
    sigma = np.sqrt(squares.sum(axis=2, keepdims=True) / (OPQ_BLOCK - 1))
    found = (np.abs(blocks) > sigma * threshold(quantile)).reshape(rows, n)
    at_rows, at_columns = np.nonzero(found)
    outliers = from_counts(np.bincount(at_rows, minlength=rows), entry(at_columns, weights[at_rows, at_columns]))
    refuse_large_outliers(outliers, weights.shape)
    return outliers


def without(weights: Floats, outliers: OutlierList) -> Floats:
    """A copy of float32 [rows, n] weights with zeros in place of the outliers: the input of the block encoder."""
    rest = weights.copy()
    rest[outliers.rows, outliers.columns] = 0
    return rest


def decode(
    rows: npt.NDArray[Any],
    qtype: gguf.GGMLQuantizationType,
    outliers: OutlierList | None = None,
    dequantize: Callable[[Any, gguf.GGMLQuantizationType], npt.NDArray[np.float32]] = gguf.dequantize,
) -> Floats:
    """Decode rows of a tensor and add their outliers.

    Args:
        rows: uint8 [rows, bytes of a row], or [rows, n] numbers of a float type.
        outliers: the list of these rows, where there is one.
        dequantize: gguf.dequantize (numpy) or native.dequantize.

    Returns:
        float32 [rows, n].

    Raises:
        NotImplementedError, native.NativeError: `dequantize` has no decoder for the type.
    """
    weights = np.asarray(dequantize(rows, qtype), dtype=np.float32)
    if outliers is not None:
        outliers.add_to(weights)
    return weights


def _invalid(name: str, why: str) -> UserError:
    return UserError(f"outlier list {name}{SUFFIX} is not valid: {why}")


def check_weight(name: str, qtype: gguf.GGMLQuantizationType | None) -> None:
    """Check that the weight of a list is in the file and may have a list.

    Args:
        name: of the weight.
        qtype: its type; None where the file does not hold it.

    Raises:
        UserError: the weight is missing, or of a type that has no lists.
    """
    if qtype is None:
        raise _invalid(name, f"the file has no tensor {name}")
    if int(qtype) not in LISTED_TYPES:
        raise _invalid(name, f"its weight is of type {qtype.name}, which has no lists")


def parse(packed: Ints, name: str, shape: tuple[int, ...]) -> OutlierList:
    """Check and unpack the list of a weight.

    Args:
        packed: the list as a tensor of a file, int32 [rows + 1 + outliers].
        name: of the weight.
        shape: of the weight, rows before columns.

    Raises:
        UserError: pointers descend or overrun, columns are out of range or out of order, or the length is wrong.
    """
    n_rows, n_columns = math.prod(shape[:-1]), shape[-1]

    def refuse(why: str) -> None:
        raise _invalid(name, why)

    if n_columns > LONGEST_ROW:
        refuse(f"rows of its weight are longer than {LONGEST_ROW}")
    if packed.dtype != np.int32 or packed.ndim != 1:
        refuse("it is not a one-dimensional tensor of type I32")
    if packed.size < n_rows + 1:
        refuse("it is shorter than its row pointers")
    found = OutlierList(packed[: n_rows + 1], packed[n_rows + 1 :])
    if found.row_pointers[0] != 0:
        refuse("its first row pointer is not 0")
    if (np.diff(found.row_pointers.astype(np.int64)) < 0).any():
        refuse("its row pointers descend")
    if found.row_pointers[-1] != found.entries.size:
        refuse("its length is not what its row pointers say")
    if (found.columns >= n_columns).any():
        refuse("a column is beyond the row")
    if (np.diff(found.rows * n_columns + found.columns) <= 0).any():
        refuse("columns of a row are not in ascending order")
    if not np.isfinite(found.values).all():
        refuse("a value is NaN or infinite")
    return found


def list_name(weight: str) -> str:
    """The name of a weight's list."""
    return weight + SUFFIX


def read_tensor(reader: gguf.GGUFReader, name: str) -> Floats:
    """Decode a tensor of any type, with its outliers.

    Args:
        reader: of a file of one part.

    Returns:
        float32, rows before columns.

    Raises:
        UserError: the file has no such tensor, its type has no decoder in Python, or its outlier list is not valid.
    """
    tensors = {t.name: t for t in reader.tensors}
    if name not in tensors:
        raise UserError(f"the file has no tensor {name}")
    tensor = tensors[name]
    shape = tuple(int(n) for n in reversed(tensor.shape))
    companion = tensors.get(list_name(name))
    outliers = None
    if companion is not None:
        check_weight(name, tensor.tensor_type)
        outliers = parse(companion.data, name, shape)
    if tensor.data.dtype != np.uint8:
        return np.array(tensor.data, dtype=np.float32).reshape(shape)
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    try:
        return decode(rows, tensor.tensor_type, outliers).reshape(shape)
    except NotImplementedError as error:
        raise UserError(f"tensor {name} of type {tensor.tensor_type.name} has no decoder in Python") from error
