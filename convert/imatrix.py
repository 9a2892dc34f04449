"""Importance matrices of llama-imatrix: the mean squared input of each column, by which errors are weighted.

Both forms are read as llama-quantize reads them: GGUF, with sums of squared inputs and the number of uses of each
matrix; and the older .dat, which has means times the number of chunks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.convert.options import RANDOM_TOKENS, SELF, Options
from gguf_bof4.convert.policy import is_embedding
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model, Tensor, open_model

Floats = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
RANDOM_TOKENS_FILE, OWN_TEXT_FILE = "random tokens", "own text"
"""The datasets of matrices that are made for one conversion in a temporary folder."""

_REMEDY = "make it again with llama-imatrix"


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        entries: float32 [matrices * n] by the name of the tensor: the mean square of each input.
        dataset: the text that it was made from, where the file says so.
        chunks: of that text; 0 where the file does not say.
    """

    path: Path
    entries: Mapping[str, Floats]
    dataset: str | None
    chunks: int

    def of(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """Importance of each column of each matrix of a tensor, float32 [matrices, n]; None where it has none.

        Args:
            shape: rows before columns; experts, where there are some, in front.

        Raises:
            UserError: the entry is of another size. (Token embeddings are looked up, not multiplied: what a file says
                of them is not about their columns, and llama-quantize ignores it, too.)
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        matrices = int(np.prod(shape[:-2], dtype=np.int64))
        if entry.size == matrices * shape[-1]:
            return entry.reshape(matrices, shape[-1])
        if is_embedding(name):
            return None
        raise UserError(
            f"{self.path}: the importance of tensor {name} is of {entry.size} columns, but the tensor has "
            f"{matrices * shape[-1]}: the importance matrix belongs to another model; make one of this model with "
            "llama-imatrix"
        )

    def metadata(self) -> dict[str, str | int]:
        """The metadata that llama-quantize adds to a file made with it."""
        temporary = self.dataset in {RANDOM_TOKENS_FILE, OWN_TEXT_FILE}
        found: dict[str, str | int] = {"quantize.imatrix.file": self.path.name if temporary else str(self.path)}
        if self.dataset is not None:
            found["quantize.imatrix.dataset"] = self.dataset
        found["quantize.imatrix.entries_count"] = len(self.entries)
        if self.chunks > 0:
            found["quantize.imatrix.chunks_count"] = self.chunks
        return found


def _checked(path: Path, name: str, values: Floats) -> Floats:
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise UserError(
            f"{path}: the importance of tensor {name} is {values.ravel()[at]} at column {at}, but must be 0 or more: "
            f"the file is damaged, {_REMEDY}"
        )
    return values


def _read_values(tensor: Tensor) -> Floats:
    if tensor.qtype != gguf.GGMLQuantizationType.F32:
        raise UserError(f"{tensor.path}: {tensor.name} is of type {tensor.qtype.name}, not F32; {_REMEDY}")
    return tensor.read_rows().reshape(-1).view(np.float32)


def _means(path: Path, name: str, sums: Floats, counts: Floats) -> Floats:
    """Mean squared inputs from sums and numbers of uses; 1 for all columns of a matrix that was never used."""
    _checked(path, name, sums)
    uses = np.floor(_checked(path, name, counts) + np.float32(0.5))
    if sums.size % uses.size:
        raise UserError(f"{path}: {sums.size} sums and {uses.size} counts of tensor {name} do not match; {_REMEDY}")
    rows = sums.reshape(uses.size, -1)
    means = np.where(uses[:, None] > 0, rows / np.maximum(uses, 1)[:, None], np.float32(1))
    return np.asarray(means, dtype=np.float32).ravel()


def _from_gguf(path: Path, model: Model) -> Imatrix:
    tensors = {t.name: t for t in model.tensors}
    names = [t.name.removesuffix(_SUMS) for t in model.tensors if t.name.endswith(_SUMS)]
    alone = [n for n in tensors if n.endswith(_COUNTS) and n.removesuffix(_COUNTS) + _SUMS not in tensors]
    if not names and not alone:
        raise UserError(f"{path} is a GGUF file, but no importance matrix: give one that llama-imatrix made")
    datasets, chunks = model.strings("imatrix.datasets"), model.integer("imatrix.chunk_count")
    if datasets is None or chunks is None or model.integer("imatrix.chunk_size") is None:
        raise UserError(
            f"{path} does not say what it was made from (imatrix.datasets, chunk_count, chunk_size); {_REMEDY}"
        )
    entries = {}
    for name in names:
        if name + _COUNTS not in tensors:
            alone.append(name + _SUMS)
            continue
        entries[name] = _means(path, name, _read_values(tensors[name + _SUMS]), _read_values(tensors[name + _COUNTS]))
    if alone:
        raise UserError(f"{path}: {alone[0]} is without its counterpart: sums and counts belong together; {_REMEDY}")
    if not 0 <= chunks < 1 << 32:
        raise UserError(f"{path} is damaged: it was made from {chunks} chunks; {_REMEDY}")
    return Imatrix(path, entries, datasets[0] if datasets else None, chunks)


class _Bytes:
    """The bytes of a .dat file, read in order.

    Raises:
        UserError: they end too early.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = path.read_bytes()
        self._at = 0

    def take(self, count: int, what: str) -> bytes:
        if count < 0 or count > self.left:
            raise UserError(f"{self._path} is no importance matrix, or it is truncated: it ends in {what}; {_REMEDY}")
        self._at += count
        return self._data[self._at - count : self._at]

    def integer(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def _from_dat(path: Path) -> Imatrix:
    data = _Bytes(path)
    count = data.integer("the number of entries")
    if count < 1:
        raise UserError(f"{path} is no importance matrix: it has {count} entries; {_REMEDY}")
    entries = {}
    for i in range(count):
        where = f"entry {i + 1} of {count}"
        name = data.take(data.integer(where), where).split(b"\0")[0].decode(errors="replace")
        calls, size = data.integer(where), data.integer(where)
        if size < 1:
            raise UserError(f"{path}: tensor {name} has {size} columns there: the file is damaged, {_REMEDY}")
        values = np.frombuffer(data.take(4 * size, where), dtype="<f4").astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # what is wrong in a damaged file is said below
            means = values / np.float32(calls) if calls > 0 else values
        entries[name] = _checked(path, name, means)
    # older files end here
    chunks = data.integer("the number of chunks") if data.left else 0
    dataset = data.take(data.integer("the dataset"), "the dataset").decode(errors="replace") if data.left else ""
    return Imatrix(path, entries, dataset or None, chunks)


def chosen(options: Options) -> Imatrix | None:
    """The importance matrix that the options name; None where they name none, or it is not made in a dry run.

    Raises:
        UserError: as `load`.
    """
    if options.imatrix in {None, RANDOM_TOKENS, SELF}:
        return None
    return load(Path(str(options.imatrix)))


def load(path: Path) -> Imatrix:
    """Read an importance matrix of either form.

    Raises:
        UserError: the file cannot be read, is none, or is damaged.
    """
    if not path.is_file():
        raise UserError(f"the importance matrix {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        return _from_gguf(path, open_model(path)) if is_gguf else _from_dat(path)
    except OSError as error:
        raise UserError(f"the importance matrix {path} cannot be read: {error.strerror}") from error
