"""GGUFReader without its cost for large vocabularies.

GGUFReader makes three mapped arrays for each element of a metadata array: for a vocabulary of 260 000 tokens
and as many merges that takes 20 seconds and more than a gigabyte.
"""

from __future__ import annotations

import struct
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

_ValueType = gguf.GGUFValueType
_Arrays = list[npt.NDArray[Any]]


class Reader(gguf.GGUFReader):
    """GGUFReader whose metadata arrays are views of the mapped file: one of a numeric array, one of each string.

    Attributes:
        metadata_end: offset of the first byte behind the metadata.
    """

    metadata_end: int

    def _build_fields(self, offs: int, count: int) -> int:
        self.metadata_end = int(super()._build_fields(offs, count))
        return self.metadata_end

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, _Arrays, list[int], list[_ValueType]]:
        if raw_type != _ValueType.ARRAY or self.byte_order == "S":
            return super()._get_field_parts(orig_offs, raw_type)
        data = np.asarray(self.data)
        item, length = struct.unpack_from("<IQ", data.data, orig_offs)
        start = orig_offs + 12
        head: _Arrays = [data[orig_offs : orig_offs + 4].view(np.uint32), data[orig_offs + 4 : start].view(np.uint64)]
        if item == _ValueType.STRING:
            strings, end = self._strings(data, start, length)
            parts, indices = [*head, *strings], list(range(2, 2 + length))
        elif (scalar := self.gguf_scalar_to_np.get(item)) is not None:
            end = start + length * np.dtype(scalar).itemsize
            if end > data.size:
                raise ValueError(f"an array of {length} values at byte {orig_offs} goes beyond the end of the file")
            parts, indices = [*head, data[start:end].view(scalar)], [2]
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [_ValueType.ARRAY, _ValueType(item)] if length else [_ValueType.ARRAY]
        return end - orig_offs, parts, indices, types

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
