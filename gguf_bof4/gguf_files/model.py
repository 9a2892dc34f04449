"""Models of one or several GGUF files: opening them, and reading their tensors in runs of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMAT_VERSION, FORMATS
from gguf_bof4.gguf_files.header import escaped, tensor_bytes
from gguf_bof4.gguf_files.parts import Split, check_split, part_paths
from gguf_bof4.gguf_files.reader import Reader, contents
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
    def files(self) -> list[Path]:
        """The files of the parts, in order."""
        return [reader.path for reader in self.readers]

    @property
    def fields(self) -> dict[str, gguf.gguf_reader.ReaderField]:
        """Metadata of the first part, which holds it all; bytes of a key that are no UTF-8 are surrogates."""
        return dict(self.readers[0].metadata)

    def metadata(self) -> dict[str, Any]:
        """All metadata for display: in keys and strings, bytes that are no UTF-8 are escaped."""
        return {
            key.encode(errors="surrogateescape").decode(errors="backslashreplace"): contents(field)
            for key, field in self.readers[0].metadata.items()
        }

    def value(self, key: str, errors: str = "backslashreplace") -> Any:
        """A metadata value, or None.

        Args:
            errors: what becomes of bytes in strings that are no UTF-8, as in bytes.decode.
        """
        return self.readers[0].value(key, errors)

    def integer(self, key: str) -> int | None:
        """A whole number of the metadata, or None.

        Raises:
            UserError: the value is of another type.
        """
        return self.readers[0].integer(key)

    def integers(self, key: str) -> list[int] | None:
        """An array of whole numbers of the metadata, or None.

        Raises:
            UserError: the value is of another type.
        """
        return self.readers[0].integers(key)

    def strings(self, key: str, errors: str = "backslashreplace") -> list[str] | None:
        """An array of strings of the metadata, or None.

        Args:
            errors: what becomes of bytes that are no UTF-8, as in bytes.decode.

        Raises:
            UserError: the value is of another type.
        """
        return self.readers[0].strings(key, errors)

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


def _tensors_of(reader: Reader) -> Iterator[Tensor]:
    for info in reader.infos:
        qtype = gguf.GGMLQuantizationType(info.type_id)
        yield Tensor(info.name, qtype, info.shape, reader.path, reader.data_offset + info.offset, tensor_bytes(info))


def _check_names(tensors: Iterable[Tensor]) -> None:
    """Each part has every name once; here for all parts together."""
    found: dict[str, Tensor] = {}
    for t in tensors:
        if (other := found.setdefault(t.name, t)) is not t:
            raise UserError(
                f"{t.path} is damaged or no part of this model: tensor {escaped(t.name)} is in {other.path.name}, too"
            )


def _split(reader: Reader) -> Split:
    return Split(*(reader.integer(f"split.{key}") for key in ("count", "no", "tensors.count")))


def _check_metadata(reader: Reader) -> None:
    path, version = reader.path, reader.integer("bof4.version")
    if version is not None and version > FORMAT_VERSION:
        raise UserError(
            f"{path} has version {version} of the BOF4 formats, this gguf-bof4 reads up to {FORMAT_VERSION}: update it"
        )
    for fmt in FORMATS:
        levels = reader.integers(fmt.levels_key)
        if levels is not None and tuple(levels) != fmt.levels:
            raise UserError(
                f"{path}: {fmt.levels_key} is {levels[:16]}, but {fmt.name} has the levels {list(fmt.levels)}: "
                "the file is damaged or was not written by this project"
            )


def part_files(path: Path) -> list[Path]:
    """All files of a GGUF model: the file itself, or it and the other parts, which are not opened.

    Raises:
        UserError: the file cannot be read or is damaged, it is a later part, or a part is missing or was renamed.
    """
    return part_paths(path, _split(Reader(path)))


def open_model(path: Path) -> Model:
    """Open a GGUF file, or the first of several parts.

    Raises:
        UserError: a file is missing, unreadable, no GGUF, truncated or damaged, or made by a later version, the files
            are not the parts of one model, or an outlier list is not valid.
    """
    first = Reader(path)
    parts = part_paths(path, _split(first))
    readers = (first, *(Reader(part) for part in parts[1:]))
    for reader in readers:
        _check_metadata(reader)
    tensors = tuple(t for reader in readers for t in _tensors_of(reader))
    _check_names(tensors)
    check_split(parts, [_split(reader) for reader in readers], len(tensors))
    return Model(path, readers, *_without_lists(tensors))
