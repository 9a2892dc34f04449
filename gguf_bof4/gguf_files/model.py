"""Models of one or several GGUF files: opening them, and reading their tensors in runs of rows."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMAT_VERSION, FORMATS
from gguf_bof4.gguf_files.parts import part_paths
from gguf_bof4.gguf_files.reader import Reader
from gguf_bof4.lists import SUFFIX, OutlierList, check_weight, decode, parse


def bits_per_weight(nbytes: float, n_weights: int) -> float:
    """Bits per weight of this many bytes; 0 where there is no weight."""
    return 8 * nbytes / n_weights if n_weights else 0.0


@dataclass(frozen=True)
class Tensor:
    """A tensor of an open file.

    Attributes:
        shape: rows before columns, as numpy.
        path: the file that holds it.
        offset: of its first byte in `path`.
    """

    name: str
    qtype: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def n_weights(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def n_rows(self) -> int:
        return self.n_weights // self.shape[-1]

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.n_rows

    def read_rows(self, first: int = 0, count: int | None = None) -> npt.NDArray[np.uint8]:
        """Encoded rows, uint8 [count, bytes of a row]; rows are counted over all dimensions above the first.

        They are read, not mapped: a mapping of the whole file would count as memory used.

        Raises:
            UserError: the file ends within them.
        """
        count = self.n_rows - first if count is None else count
        data = np.fromfile(
            self.path, dtype=np.uint8, count=count * self.row_bytes, offset=self.offset + first * self.row_bytes
        )
        if data.size != count * self.row_bytes:
            raise UserError(f"{self.path}: tensor {self.name} ends early: the file was truncated while it was read")
        return data.reshape(count, self.row_bytes)


@dataclass(frozen=True)
class Model:
    """An open GGUF model, all parts of it.

    Attributes:
        readers: one a part, the first first.
        tensors: of all parts, in file order, without the outlier lists.
        lists: the outlier lists, each under the name of its weight.
    """

    path: Path
    readers: tuple[Reader, ...]
    tensors: tuple[Tensor, ...]
    lists: Mapping[str, Tensor]

    @property
    def fields(self) -> dict[str, gguf.gguf_reader.ReaderField]:
        """Metadata of the first part, which holds it all."""
        return dict(self.readers[0].fields)

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value, or `default`."""
        field = self.readers[0].fields.get(key)
        return default if field is None else field.contents()

    def outliers(self, tensor: Tensor) -> OutlierList | None:
        """The list of one of the tensors, read from the file; None where it has none.

        Raises:
            UserError: the list is not valid.
        """
        companion = self.lists.get(tensor.name)
        return None if companion is None else read_list(companion, tensor.name, tensor.shape)

    def n_outliers(self, tensor: Tensor) -> int:
        """Number of outliers in the list of one of the tensors; nothing is read."""
        companion = self.lists.get(tensor.name)
        return 0 if companion is None else companion.n_weights - tensor.n_rows - 1

    def list_nbytes(self, tensor: Tensor) -> int:
        """Bytes of the list of one of the tensors; 0 where it has none."""
        companion = self.lists.get(tensor.name)
        return 0 if companion is None else companion.nbytes

    def stored_nbytes(self, tensor: Tensor) -> int:
        """Bytes of one of the tensors, its list included."""
        return tensor.nbytes + self.list_nbytes(tensor)

    def bits_per_weight(self, tensors: Iterable[Tensor] | None = None) -> float:
        """Of some of the tensors, or of all, their lists included."""
        counted = list(self.tensors if tensors is None else tensors)
        return bits_per_weight(sum(self.stored_nbytes(t) for t in counted), sum(t.n_weights for t in counted))

    def read_weights(
        self,
        tensor: Tensor,
        dequantize: Callable[[Any, gguf.GGMLQuantizationType], npt.NDArray[np.float32]] = gguf.dequantize,
    ) -> npt.NDArray[np.float32]:
        """Decode one of the tensors, outliers included.

        Args:
            dequantize: gguf.dequantize (numpy) or native.dequantize.

        Returns:
            float32 [rows, n], rows counted over all dimensions above the first.

        Raises:
            UserError: the file ends early, or the list is not valid.
            NotImplementedError, native.NativeError: `dequantize` has no decoder for the type.
        """
        return decode(tensor.read_rows(), tensor.qtype, self.outliers(tensor), dequantize)


def read_list(companion: Tensor, name: str, shape: tuple[int, ...]) -> OutlierList:
    """Read and check the outlier list of the tensor `name` of this shape.

    Raises:
        UserError: it is not valid; the file and the tensor are named.
    """
    is_list = companion.qtype == gguf.GGMLQuantizationType.I32 and len(companion.shape) == 1
    numbers = np.empty((0,) if is_list else (0, 0), np.int32)
    if is_list and companion.n_weights > 0:
        numbers = companion.read_rows().reshape(-1).view(np.int32)
    try:
        return parse(numbers, name, shape)
    except UserError as error:
        raise UserError(f"{companion.path}: {error}") from error


def _without_lists(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The ordinary tensors, and the lists, checked, by the names of their weights."""
    ordinary = tuple(t for t in tensors if not t.name.endswith(SUFFIX))
    weights = {t.name: t for t in ordinary}
    lists = {t.name.removesuffix(SUFFIX): t for t in tensors if t.name.endswith(SUFFIX)}
    for name, companion in lists.items():
        weight = weights.get(name)
        try:
            check_weight(name, None if weight is None else weight.qtype)
        except UserError as error:
            raise UserError(f"{companion.path}: {error}") from error
        if weight is not None:
            read_list(companion, name, weight.shape)
    return ordinary, lists


def _open_part(path: Path) -> Reader:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if head[:4] != b"GGUF":
        raise UserError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    if len(head) < 24:
        raise UserError(f"{path} is truncated: its header ends after {len(head)} bytes")
    version, n_tensors = struct.unpack_from("<IQ", head, 4)
    # a tensor takes at least 24 bytes in the header: a count that cannot fit would be read for minutes
    if n_tensors * 24 > path.stat().st_size:
        raise UserError(f"{path} is truncated or damaged: its header promises {n_tensors} tensors (GGUF v{version})")
    try:
        return Reader(path)
    except (ValueError, struct.error, IndexError, KeyError, OverflowError, TypeError, MemoryError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from error


def _tensors_of(path: Path, reader: gguf.GGUFReader) -> Iterator[Tensor]:
    size = path.stat().st_size
    expected = reader.data_offset
    for t in reader.tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        if t.data_offset != expected:
            raise UserError(
                f"{path} is damaged: tensor {t.name} starts at byte {t.data_offset} instead of {expected}, "
                "so a size or an offset in its header is wrong"
            )
        expected += gguf.GGUFWriter.ggml_pad(int(t.n_bytes), reader.alignment)
        if t.data_offset + t.n_bytes > size:
            raise UserError(
                f"{path} is truncated: tensor {t.name} ends at byte {t.data_offset + t.n_bytes}, the file at {size}"
            )
        yield Tensor(t.name, t.tensor_type, shape, path, int(t.data_offset), int(t.n_bytes))


def _check_metadata(path: Path, reader: gguf.GGUFReader) -> None:
    version = reader.fields.get("bof4.version")
    if version is not None and version.contents() > FORMAT_VERSION:
        raise UserError(
            f"{path} has version {version.contents()} of the BOF4 formats, this gguf-bof4 reads up to "
            f"{FORMAT_VERSION}: update it"
        )
    for fmt in FORMATS:
        field = reader.fields.get(fmt.levels_key)
        if field is not None and (levels := tuple(field.contents())) != fmt.levels:
            raise UserError(
                f"{path}: {fmt.levels_key} is {list(levels)}, but {fmt.name} has the levels {list(fmt.levels)}: "
                "the file is damaged or was not written by this project"
            )


def open_model(path: Path) -> Model:
    """Open a GGUF file, or the first of several parts.

    Raises:
        UserError: a file is missing, unreadable, no GGUF, truncated or damaged, or made by a later version, or
            an outlier list is not valid.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a GGUF file")
    parts = part_paths(path)
    readers = tuple(_open_part(p) for p in parts)
    for p, reader in zip(parts, readers, strict=True):
        _check_metadata(p, reader)
    tensors = tuple(t for p, reader in zip(parts, readers, strict=True) for t in _tensors_of(p, reader))
    return Model(path, readers, *_without_lists(tensors))
