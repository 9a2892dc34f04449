"""Targets: bits per weight or a size of the file, and how many bytes a file has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model
from gguf_bof4.lists import list_name

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

ADDED_METADATA = 1024
"""Bytes for the keys that a conversion adds (bof4.*, quantize.imatrix.*), at most."""


@dataclass(frozen=True)
class Target:
    """What is asked for: one of the two.

    Attributes:
        bits: per weight of the matrices of the decoder layers, with their outlier lists.
        nbytes: of the whole file.
    """

    bits: float | None = None
    nbytes: int | None = None

    @property
    def name(self) -> str:
        """For names of files."""
        return f"{self.bits:g}-bits" if self.bits is not None else f"{self.nbytes}-bytes"


def parse_size(text: str) -> int:
    """Bytes of "900M", "3.9G" (powers of 1000, as in llama.cpp), "3.7GiB" (powers of 1024) or a number.

    Raises:
        UserError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(B|IB)?", text.strip().upper())
    if match is None or (match[3] == "IB" and not match[2]) or float(match[1]) == 0:
        raise UserError(f"--target-size {text}: give a number of bytes, or one followed by K, M or G, such as 3.9G")
    units = _BINARY_UNITS if match[3] == "IB" else _UNITS
    return int(float(match[1]) * units[match[2]])


def parse_target(bits: float | None, size: str | None) -> Target:
    """The target that the options name.

    Raises:
        UserError: none or both are given, or one is not possible.
    """
    if (bits is None) == (size is None):
        raise UserError("give one target: --target-bpw 4.4 (bits per weight) or --target-size 900M (of the file)")
    if size is not None:
        return Target(nbytes=parse_size(size))
    assert bits is not None
    if not 0 < bits <= 32:
        raise UserError(f"--target-bpw {bits:g}: give bits per weight, such as 4.4")
    return Target(bits=bits)


def _info_bytes(name: str, dimensions: int) -> int:
    """Bytes of a tensor in the header: name, dimensions, type, offset."""
    return 8 + len(name.encode(errors="surrogateescape")) + 4 + 8 * dimensions + 4 + 8


def padded(nbytes: int, alignment: int) -> int:
    """Rounded up to whole alignments."""
    return -(-nbytes // alignment) * alignment


def header_bytes(model: Model, listed: Iterable[str], alignment: int) -> int:
    """Bytes before the data of a file that is made of a model, at most.

    Args:
        model: the source.
        listed: names of the tensors that may get an outlier list.
    """
    infos = sum(_info_bytes(t.name, len(t.shape)) for t in model.tensors)
    lists = sum(_info_bytes(list_name(name), 1) for name in listed)
    return padded(model.readers[0].metadata_end + infos + lists + ADDED_METADATA, alignment)
