"""OPQ: outlier-preserving quantization (eq. 9, appendix E), and the lists that carry the outliers in a file.

A weight of more than sigma_b * F_M^-1(q) is kept in bfloat16, in a list beside its tensor, and set to zero
before its block is encoded. sigma_b is the sample deviation of the block (divisor I - 1), F_M^-1(q) the
q-quantile of the largest of I standard normal magnitudes; I is 64, whichever type encodes the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMATS

BLOCK = 64
"""Weights over which sigma_b is taken."""

SUFFIX = ".opq"
"""A weight's name and this make the name of its list."""

LONGEST_ROW = 1 << 16
"""Columns are stored in 16 bits."""

LISTED_TYPES = frozenset(f.type_id for f in FORMATS)
"""Types whose tensors may have a list."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def threshold(quantile: float) -> float:
    """F_M^-1(q) = G^-1((q^(1/I) + 1) / 2): how many deviations a weight must exceed to be an outlier.

    Raises:
        ValueError: the quantile is not between 0 and 1.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"the OPQ quantile is {quantile}: it must lie between 0 and 1, 0.95 for example")
    from scipy.special import ndtri  # a third of a second, which reading a file need not wait for

    return float(ndtri((quantile ** (1 / BLOCK) + 1) / 2))


def bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@dataclass(frozen=True)
class OutlierList:
    """The outliers of a tensor, in the order of rows and columns.

    Attributes:
        row_pointers: int32 [rows + 1]; outliers of row r are entries row_pointers[r] to row_pointers[r + 1].
        entries: int32 [outliers], column | bf16(value) << 16.
    """

    row_pointers: Ints
    entries: Ints

    @property
    def n_rows(self) -> int:
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
        """The companion tensor: int32 [rows + 1 + outliers]."""
        return np.concatenate([self.row_pointers, self.entries])

    def part(self, first: int, count: int) -> OutlierList:
        """The list of `count` rows from row `first` on."""
        pointers = self.row_pointers[first : first + count + 1]
        return OutlierList(pointers - pointers[0], self.entries[pointers[0] : pointers[-1]])

    def add_to(self, weights: Floats) -> None:
        """Add the outliers to decoded block values, float32 [rows, columns], in place."""
        weights[self.rows, self.columns] += self.values


def from_counts(counts: npt.NDArray[np.integer], entries: Ints) -> OutlierList:
    """A list from the number of outliers in each row and all entries."""
    pointers = np.zeros(counts.size + 1, dtype=np.int32)
    np.cumsum(counts, out=pointers[1:])
    return OutlierList(pointers, entries)


def select(weights: Floats, quantile: float) -> OutlierList:
    """The outliers of float32 [rows, n] weights; n is a multiple of 64.

    The native library selects the same ones (native.select_outliers); this is the reference.
    """
    rows, n = weights.shape
    blocks = weights.reshape(rows, n // BLOCK, BLOCK).astype(np.float64)
    sigma = np.sqrt(np.square(blocks - blocks.mean(axis=2, keepdims=True)).sum(axis=2, keepdims=True) / (BLOCK - 1))
    found = (np.abs(blocks) > sigma * threshold(quantile)).reshape(rows, n)
    at_rows, at_columns = np.nonzero(found)
    bits = bfloat16(weights[at_rows, at_columns]).astype(np.uint32) << 16 | at_columns.astype(np.uint32)
    return from_counts(np.bincount(at_rows, minlength=rows), bits.view(np.int32))


def without(weights: Floats, outliers: OutlierList) -> Floats:
    """A copy of the weights with zeros where the outliers are: what the block encoder gets."""
    rest = weights.copy()
    rest[outliers.rows, outliers.columns] = 0
    return rest


def _invalid(name: str, why: str) -> UserError:
    return UserError(f"outlier list {name}{SUFFIX} is not valid: {why}")


def check_weight(name: str, qtype: gguf.GGMLQuantizationType | None) -> None:
    """A list must belong to a tensor of the file that may have one.

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
    """The list of the tensor `name` of this shape (rows before columns), checked.

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
    """The weights of a tensor, whatever its type, outliers applied: float32, rows before columns.

    Raises:
        UserError: the file has no such tensor, its type has no decoder in Python, or its outlier list is not valid.
    """
    tensors = {t.name: t for t in reader.tensors}
    if name not in tensors:
        raise UserError(f"the file has no tensor {name}")
    tensor = tensors[name]
    shape = tuple(int(n) for n in reversed(tensor.shape))
    try:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type) if tensor.data.dtype == np.uint8 else tensor.data
    except NotImplementedError as error:
        raise UserError(f"tensor {name} of type {tensor.tensor_type.name} has no decoder in Python") from error
    weights = np.array(numbers, dtype=np.float32).reshape(shape)
    companion = tensors.get(list_name(name))
    if companion is not None:
        check_weight(name, tensor.tensor_type)
        parse(companion.data, name, shape).add_to(weights.reshape(-1, shape[-1]))
    return weights
