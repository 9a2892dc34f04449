"""Outlier lists of the output: which tensors get one, and how they get into the file.

How long a list is shows only when its weight is encoded, and reading the source twice would cost more than all
the rest. So the header is written first with a list beside every weight that may have one, the data is streamed,
each list behind its weight, and at the end the header is written again, with the lengths and offsets that came
out. Its own length does not depend on the numbers in it. Only a weight that turned out to have no outlier makes
it shorter, because then it has no list: that file's data is moved towards its beginning. No list is in memory
longer than its weight is being written.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import numpy.typing as npt
from gguf.gguf_writer import TensorInfo, WriterState

from gguf_bof4 import lists as opq
from gguf_bof4.convert.policy import split_pattern
from gguf_bof4.convert.report import size_text
from gguf_bof4.errors import UserError

_MOVED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class ListRules:
    """What the user asked for; None stands for no list.

    Attributes:
        default: the quantile for tensors that no pattern is found in.
        patterns: (regular expression, quantile); the first that is found in a tensor's name counts.
    """

    default: float | None
    patterns: tuple[tuple[str, float | None], ...] = ()

    def quantile(self, name: str) -> float | None:
        """The quantile of the outliers of a tensor."""
        return next((q for pattern, q in self.patterns if re.search(pattern, name)), self.default)


def _parse_quantile(text: str, value: str) -> float | None:
    if value.lower() == "off":
        return None
    try:
        quantile = float(value)
        opq.threshold(quantile)
    except ValueError as error:
        raise UserError(f"--opq {text}: give a quantile between 0 and 1, such as 0.95, or off") from error
    return quantile


def parse_rules(texts: Sequence[str], default: str) -> ListRules:
    """The values of --opq: at most one "Q" or "off", any number of PATTERN=Q and PATTERN=off.

    Args:
        default: the value where no text is a bare one.

    Raises:
        UserError: a quantile is not between 0 and 1, a pattern is malformed, or there are two bare values.
    """
    bare = [text for text in texts if "=" not in text]
    if len(bare) > 1:
        raise UserError(f"--opq {bare[0]} and --opq {bare[1]}: give one value for all tensors, others with a PATTERN=")
    patterns = []
    for text in texts:
        if "=" in text:
            pattern, value = split_pattern("--opq", text, "PATTERN=Q, such as attn_v=0.99, or PATTERN=off")
            patterns.append((pattern, _parse_quantile(text, value)))
    chosen = bare[0] if bare else default
    return ListRules(_parse_quantile(chosen, chosen), tuple(patterns))


def ample_nbytes(shape: tuple[int, ...], quantile: float) -> int:
    """Bytes that the list of a trained tensor stays below: for planning, before it is known.

    Of Gaussian weights 1 - q^(1/64) are outliers; trained tensors have up to seven per mille more.
    """
    share = min(1.0, 2 * (1 - quantile ** (1 / opq.BLOCK)) + 0.01)
    n_weights = int(np.prod(shape, dtype=np.int64))
    return 4 * (n_weights // shape[-1] + 1 + int(share * n_weights))


class PlannedList:
    """A list of the output, which grows while its weight is encoded; GGUFWriter takes it for an array of int32.

    Attributes:
        name: of the list.
        n_outliers: known when it is written; None before.
        room: bytes to plan with until then.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, weight: str, quantile: float | None, room: int) -> None:
        """A list of the outliers that `quantile` finds, or with None, of those that the source has."""
        self.name = opq.list_name(weight)
        self.quantile = quantile
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

    def add(self, rows: opq.OutlierList) -> None:
        """Append the outliers of the next rows."""
        self._counts.append(np.diff(rows.row_pointers))
        self._entries.append(rows.entries)

    def place(self, part: dict[str, TensorInfo], limit: int) -> None:
        """Say where the list stands: `part` is to be of at most `limit` bytes, unless that is 0."""
        self._part, self._limit = part, limit

    def _check_limit(self) -> None:
        size = sum(info.nbytes for info in self._part.values())
        n_weights = sum(not name.endswith(opq.SUFFIX) for name in self._part)
        if self._limit and size > self._limit and n_weights > 1:
            raise UserError(
                f"the outlier lists up to {self.name} are longer than lists of trained models: with them, a part has "
                f"{size_text(size)}, more than --split-max-size allows. Give a larger one, or an --opq nearer to 1"
            )

    def found(self) -> opq.OutlierList:
        """All that was added."""
        return opq.from_counts(np.concatenate(self._counts), np.concatenate(self._entries))

    def tofile(self, file: BinaryIO) -> None:
        """Append the list, and note its length where it was placed; the file gets nothing where there is no outlier.

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
    """The header of each part, up to its data, as the writer now has it."""
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
    """Move all bytes from `start` on to the place `to` before it, and end the file behind them."""
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
    """Write the headers of complete, closed files again, now that all lists are known.

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
