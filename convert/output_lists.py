"""Outlier lists of the output, whose lengths are known only after their weights are encoded.

Reading the source twice would cost more than everything else. So the header is written first, with a list for every
weight that may have one; then the data, each list after its weight; and at the end the header again, with the actual
lengths and offsets. The length of the header does not depend on these numbers. Only a weight without any outlier makes
it shorter, because it has no list: the data of that file is then moved forward. A list is in memory only while its
weight is written.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import numpy.typing as npt
from gguf.gguf_writer import TensorInfo, WriterState

from gguf_bof4.convert.report import size_text
from gguf_bof4.errors import UserError
from gguf_bof4.formats import OPQ_BLOCK
from gguf_bof4.lists import SUFFIX, OutlierList, from_counts, list_name
from gguf_bof4.outlier_choice import Budget, OutlierRule

_MOVED_AT_ONCE = 1 << 24


def list_room(shape: tuple[int, ...], rule: OutlierRule) -> int:
    """An upper bound of the bytes of a trained tensor's list, for planning before it is known.

    By the paper's rule, 1 - q^(1/64) of Gaussian weights are outliers; trained tensors have up to seven per mille more.
    """
    n_weights = int(np.prod(shape, dtype=np.int64))
    if isinstance(rule, Budget):
        outliers = rule.count(n_weights)
    else:
        outliers = int(min(1.0, 2 * (1 - rule.value ** (1 / OPQ_BLOCK)) + 0.01) * n_weights)
    return 4 * (n_weights // shape[-1] + 1 + outliers)


class PlannedList:
    """A list of the output, filled while its weight is encoded; an array of int32 to GGUFWriter.

    Attributes:
        name: of the list.
        rule: by which outliers are chosen; None for a list that is copied from the source.
        n_outliers: None until the list is written.
        room: bytes to plan with until then.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, weight: str, rule: OutlierRule | None, room: int) -> None:
        """Plan a list of the outliers that `rule` chooses, or with None, of those of the source's list."""
        self.name = list_name(weight)
        self.rule = rule
        self.room = room
        self.n_outliers: int | None = None
        self.shape: tuple[int, ...] = (0,)
        self._counts: list[npt.NDArray[np.int32]] = []
        self._entries: list[npt.NDArray[np.int32]] = []
        self._part: dict[str, TensorInfo] = {}
        self._limit = 0

    @property
    def nbytes(self) -> int:
        return 4 * self.shape[0]

    def add(self, rows: OutlierList) -> None:
        """Append the outliers of the next rows."""
        self._counts.append(np.diff(rows.row_pointers))
        self._entries.append(rows.entries)

    def place(self, part: dict[str, TensorInfo], limit: int) -> None:
        """Set the part of the file that holds the list, of at most `limit` bytes unless that is 0."""
        self._part, self._limit = part, limit

    def _check_limit(self) -> None:
        size = sum(info.nbytes for info in self._part.values())
        n_weights = sum(not name.endswith(SUFFIX) for name in self._part)
        if self._limit and size > self._limit and n_weights > 1:
            raise UserError(
                f"the outlier lists up to {self.name} are longer than lists of trained models: with them, a part has "
                f"{size_text(size)}, more than --split-max-size allows. Give a larger one, or an --opq nearer to 1"
            )

    def found(self) -> OutlierList:
        """All that was added."""
        return from_counts(np.concatenate(self._counts), np.concatenate(self._entries))

    def tofile(self, file: BinaryIO) -> None:
        """Append the list and store its length in its part; nothing is appended where there is no outlier.

        Raises:
            UserError: the part gets too large.
        """
        found = self.found()
        self.n_outliers = found.entries.size
        if self.n_outliers:
            packed = found.packed()
            self.shape = packed.shape
            file.write(packed.data)
        self._counts, self._entries = [], []
        self._part[self.name].shape, self._part[self.name].nbytes = self.shape, self.nbytes
        self._check_limit()


def _headers(writer: gguf.GGUFWriter) -> list[bytes]:
    """The header of each part, up to its data, in the current state of the writer."""
    buffers = [io.BytesIO() for _ in writer.tensors]
    files: Any = buffers
    writer.fout, writer.state = files, WriterState.EMPTY
    del writer.kv_data[1:]  # the writer adds what belongs to the other parts again
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for buffer in buffers:
        writer.write_padding(buffer, buffer.tell())
    return [buffer.getvalue() for buffer in buffers]


def _move(file: BinaryIO, start: int, to: int) -> None:
    """Move all bytes from `start` on to the smaller offset `to`, and truncate the file after them."""
    while True:
        file.seek(start)
        chunk = file.read(_MOVED_AT_ONCE)
        if not chunk:
            break
        file.seek(to)
        file.write(chunk)
        start, to = start + len(chunk), to + len(chunk)
    file.truncate(to)


def finish(writer: gguf.GGUFWriter, paths: Sequence[Path], lists: Sequence[PlannedList]) -> None:
    """Rewrite the headers of complete, closed files with the actual lengths of all lists.

    Args:
        paths: one a part.
        lists: all that the writer was given.
    """
    for part in writer.tensors:
        for planned in lists:
            if planned.n_outliers == 0:
                part.pop(planned.name, None)
    for path, part, header in zip(paths, writer.tensors, _headers(writer), strict=True):
        data = sum(writer.ggml_pad(info.nbytes, writer.data_alignment) for info in part.values())
        with path.open("r+b") as file:
            start = path.stat().st_size - data
            if start != len(header):
                _move(file, start, len(header))
            file.seek(0)
            file.write(header)
