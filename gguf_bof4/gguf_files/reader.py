"""GGUFReader without its cost for large vocabularies, and safe with damaged files.

GGUFReader makes three mapped arrays for each element of a metadata array: for a vocabulary of 260 000 tokens
and as many merges that takes 20 seconds and more than a gigabyte. It also reads beyond the end of a file, takes every
string for UTF-8, and does not accept a key that begins like its own names for the numbers of the header.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.gguf_reader import ReaderField

from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.header import HEAD_BYTES, TensorInfo, escaped, fault_of_start, fault_of_tensors

_ValueType = gguf.GGUFValueType
_Arrays = list[npt.NDArray[Any]]

DEEPEST_ARRAY = 16
"""Levels of arrays in arrays. llama.cpp reads one level; each level here is a call within a call."""

_INTEGERS = {
    _ValueType.UINT8, _ValueType.INT8, _ValueType.UINT16, _ValueType.INT16, _ValueType.UINT32, _ValueType.INT32,
    _ValueType.UINT64, _ValueType.INT64,
}  # fmt: skip


def contents(field: ReaderField, errors: str = "backslashreplace") -> Any:
    """A metadata value; an array of arrays is flat.

    Args:
        errors: what becomes of bytes that are no UTF-8, as in bytes.decode. llama.cpp allows any bytes, and tokens of
            some vocabularies are such.
    """
    kind = field.types[-1]
    if kind == _ValueType.STRING:
        strings = [field.parts[i].tobytes().decode(errors=errors) for i in field.data]
        return strings if field.types[0] == _ValueType.ARRAY else strings[0]
    values = [value for i in field.data for value in field.parts[i].tolist()]
    return values if field.types[0] == _ValueType.ARRAY else values[0]


class Reader(gguf.GGUFReader):
    """The header of a GGUF file; metadata arrays are views of the mapped file: one of a numeric array, one of a string.

    Attributes:
        path: of the file.
        metadata: the values, by key. Bytes of a key that are no UTF-8 are surrogates.
        metadata_end: offset of the first byte behind the metadata.
        infos: the tensors; `tensors` is empty.
    """

    metadata_end: int

    def __init__(self, path: Path) -> None:
        """Read and check a header.

        Raises:
            UserError: the file cannot be read, is no GGUF file, or is truncated or damaged.
        """
        self.path = path
        self.metadata: dict[str, ReaderField] = {}
        self.infos: list[TensorInfo] = []
        self._depth = 0
        size = _check_start(path)
        try:
            super().__init__(path)
        except (ValueError, struct.error, IndexError, KeyError, OverflowError, TypeError, MemoryError) as error:
            raise UserError(f"{path} is truncated or damaged: {error}") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        # as read they are numpy integers of 32 bits, and so would be their sums
        self.alignment, self.data_offset = int(self.alignment), int(self.data_offset)
        if (fault := fault_of_tensors(self.infos, self.data_offset, self.alignment, size)) is not None:
            raise UserError(f"{path} {fault}")

    def value(self, key: str, errors: str = "backslashreplace") -> Any:
        """A metadata value as `contents` gives it; None where there is none."""
        field = self.metadata.get(key)
        return None if field is None else contents(field, errors)

    def _typed(
        self, key: str, kinds: set[_ValueType], is_array: bool, expected: str, errors: str = "backslashreplace"
    ) -> Any:
        field = self.metadata.get(key)
        if field is None:
            return None
        # an empty array has the type of no element
        found = (field.types[1:] or [min(kinds)]) if is_array else field.types
        if (field.types[0] == _ValueType.ARRAY) != is_array or len(found) != 1 or found[0] not in kinds:
            raise UserError(f"{self.path} is damaged: its metadata value {key} is not {expected}")
        return contents(field, errors)

    def integer(self, key: str) -> int | None:
        """A whole number of the metadata; None where there is none.

        Raises:
            UserError: the value is of another type.
        """
        found: int | None = self._typed(key, _INTEGERS, False, "a whole number")
        return found

    def integers(self, key: str) -> list[int] | None:
        """An array of whole numbers of the metadata; None where there is none.

        Raises:
            UserError: the value is of another type.
        """
        found: list[int] | None = self._typed(key, _INTEGERS, True, "an array of whole numbers")
        return found

    def strings(self, key: str, errors: str = "backslashreplace") -> list[str] | None:
        """An array of strings of the metadata; None where there is none.

        Args:
            errors: what becomes of bytes that are no UTF-8, as in bytes.decode.

        Raises:
            UserError: the value is of another type.
        """
        found: list[str] | None = self._typed(key, {_ValueType.STRING}, True, "an array of strings", errors)
        return found

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > self.data.size:
            raise ValueError(f"its header goes on to byte {end}, the file ends at {self.data.size}")
        return super()._get(offset, dtype, count, override_order)

    def _build_fields(self, offs: int, count: int) -> int:
        for _ in range(int(count)):
            start = offs
            length, letters = self._get_str(offs)
            offs += length.nbytes + letters.nbytes
            kind = self._get(offs, np.uint32)
            offs += kind.nbytes
            name = letters.tobytes().decode(errors="surrogateescape")
            if not name:
                raise ValueError(f"the key at byte {start} is empty")
            if name in self.metadata:
                raise ValueError(f"the key {escaped(name)} is there twice")
            try:
                size, parts, indices, types = self._get_field_parts(offs, int(kind[0]))
            except (ValueError, struct.error) as error:
                raise ValueError(f"the value of {escaped(name)}: {error}") from error
            head: _Arrays = [length, letters, kind]
            field = ReaderField(start, name, head + parts, [i + len(head) for i in indices], types)
            self.metadata[name] = field
            self.fields.setdefault(name, field)  # GGUFReader looks for general.alignment there
            offs += size
        self.metadata_end = offs
        return offs

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[ReaderField]]:
        for _ in range(int(count)):
            length, letters = self._get_str(offs)
            offs += length.nbytes + letters.nbytes
            n_dimensions = self._get(offs, np.uint32)
            offs += n_dimensions.nbytes
            dimensions = self._get(offs, np.uint64, int(n_dimensions[0]))
            offs += dimensions.nbytes
            kind = self._get(offs, np.uint32)
            offs += kind.nbytes
            offset = self._get(offs, np.uint64)
            offs += offset.nbytes
            name = letters.tobytes().decode(errors="surrogateescape")
            self.infos.append(TensorInfo(name, tuple(dimensions.tolist()), int(kind[0]), int(offset[0])))
        return offs, []

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, _Arrays, list[int], list[_ValueType]]:
        if raw_type != _ValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = np.asarray(self.data)
        item, length = struct.unpack_from("<IQ", data.data, orig_offs)
        start = orig_offs + 12
        head: _Arrays = [data[orig_offs : orig_offs + 4].view(np.uint32), data[orig_offs + 4 : start].view(np.uint64)]
        item_type = _ValueType(item)
        if item_type == _ValueType.ARRAY:
            return self._nested(orig_offs, raw_type)
        if item_type == _ValueType.STRING:
            strings, end = self._strings(data, start, length)
            parts, indices = [*head, *strings], list(range(2, 2 + length))
        else:
            scalar = self.gguf_scalar_to_np[item_type]
            end = start + length * np.dtype(scalar).itemsize
            if end > data.size:
                raise ValueError(f"an array of {length} values at byte {orig_offs} goes beyond the end of the file")
            parts, indices = [*head, data[start:end].view(scalar)], [2]
        types = [_ValueType.ARRAY, item_type] if length else [_ValueType.ARRAY]
        return end - orig_offs, parts, indices, types

    def _nested(self, offset: int, raw_type: int) -> tuple[int, _Arrays, list[int], list[_ValueType]]:
        """An array of arrays."""
        if self._depth == DEEPEST_ARRAY:
            raise ValueError(f"arrays are nested deeper than {DEEPEST_ARRAY}")
        self._depth += 1
        try:
            return super()._get_field_parts(offset, raw_type)
        finally:
            self._depth -= 1

    @staticmethod
    def _strings(data: npt.NDArray[np.uint8], start: int, count: int) -> tuple[_Arrays, int]:
        strings: _Arrays = []
        raw = data.data
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            # struct.error where the file ends here
            end = start + 8 + unpack(raw, start)[0]
            if end > data.size:
                raise ValueError(f"a string at byte {start} goes beyond the end of the file")
            strings.append(data[start + 8 : end])
            start = end
        return strings, start


def _check_start(path: Path) -> int:
    """Check the first bytes of a file; returns its size."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a GGUF file")
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    size = path.stat().st_size
    if (fault := fault_of_start(head, size)) is not None:
        raise UserError(f"{path} {fault}")
    return size
