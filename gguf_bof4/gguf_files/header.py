"""Faults of GGUF headers: checked before anything is computed from their numbers.

What llama.cpp loads (ggml/src/gguf.cpp) is no fault. A fault is the end of a sentence that begins with the file.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import gguf

HEAD_BYTES = 24
"""Magic, version, number of tensors, number of metadata values."""

MOST_DIMENSIONS = 4
"""GGML_MAX_DIMS"""

_VERSIONS = (2, 3)
_SMALLEST_TENSOR = 24
"""Bytes of a tensor in the header: lengths of the name and of the shape, type, offset."""
_SMALLEST_VALUE = 13
"""Bytes of a metadata value: length of the key, type, a value of one byte."""
_LARGEST = 2**63 - 1

_OTHER_FORMATS = {
    b"lmgg": "it has the format before GGUF (GGML), which llama.cpp no longer reads: convert the original model again",
    b"fmgg": "it has the format before GGUF (GGMF), which llama.cpp no longer reads: convert the original model again",
    b"tjgg": "it has the format before GGUF (GGJT), which llama.cpp no longer reads: convert the original model again",
    b"PK\x03\x04": "it is a ZIP archive, as PyTorch writes; give the Hugging Face folder that it belongs to",
    b"version https://git-lfs": "it is a pointer of Git LFS; run `git lfs pull` in its folder",
    b"<!DOCTYPE": "it is a web page; download the file itself",
    b"<html": "it is a web page; download the file itself",
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header has it.

    Attributes:
        name: bytes that are no UTF-8 are surrogates.
        dimensions: columns first, as in the file.
        type_id: number of its ggml type.
        offset: of its first byte behind the header.
    """

    name: str
    dimensions: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows before columns; a scalar is a row of one weight, as in llama.cpp."""
        return tuple(reversed(self.dimensions)) or (1,)


def _escaped_letter(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"  # a byte that is no UTF-8, as Python decodes it
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def escaped(text: str, longest: int = 200) -> str:
    """Text for a terminal: bytes that are no UTF-8 and control characters are escaped, and the rest is cut off."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(map(_escaped_letter, text))


def _fault_of_version(version: int) -> str | None:
    newest = max(_VERSIONS)
    fault = None
    if version & 0xFFFF == 0 and version != 0:
        here, there = sys.byteorder, "big" if sys.byteorder == "little" else "little"
        fault = (
            f"is a {there}-endian GGUF file, for machines of the other byte order: give a {here}-endian file, or "
            f"change a copy of it with `python -m gguf.scripts.gguf_convert_endian COPY {here}`"
        )
    elif version == 1:
        fault = (
            "is a GGUF file of version 1, which llama.cpp no longer reads: convert the original model again with "
            "convert_hf_to_gguf.py, or download a newer file"
        )
    elif version > newest:
        fault = f"is a GGUF file of version {version}, and versions up to {newest} are read here: update gguf-bof4"
    elif version not in _VERSIONS:
        fault = f"is damaged: it says that it is a GGUF file of version {version}"
    return fault


def _fault_of_counts(n_tensors: int, n_values: int, size: int) -> str | None:
    # counts that cannot fit would be read for minutes
    if n_tensors * _SMALLEST_TENSOR + n_values * _SMALLEST_VALUE <= size:
        return None
    return (
        f"is truncated or damaged: its header promises {n_tensors} tensors and {n_values} metadata values, and the "
        f"file has {size} bytes"
    )


def fault_of_start(head: bytes, size: int) -> str | None:
    """What is wrong with the first bytes of a file; None where they begin a GGUF file that can be read here.

    Args:
        head: its first bytes, HEAD_BYTES where it has as many.
        size: bytes of the file.
    """
    if head[:4] != b"GGUF":
        kind = next((text for magic, text in _OTHER_FORMATS.items() if head.startswith(magic)), None)
        return f"is not a GGUF file: {kind or 'it does not begin with the letters GGUF'}"
    if len(head) < HEAD_BYTES:
        return f"is truncated: its header ends after {len(head)} bytes"
    version, n_tensors, n_values = struct.unpack("=IQQ", head[4:])
    return _fault_of_version(version) or _fault_of_counts(n_tensors, n_values, size)


def _fault_of_name(name: str) -> str | None:
    if "\0" in name:
        return f"the name of tensor {escaped(name)} has a NUL in it"
    if any("\udc80" <= c <= "\udcff" for c in name):
        return f"the name of tensor {escaped(name)} is no UTF-8"
    return None


def _fault_of_shape(info: TensorInfo) -> str | None:
    where = f"tensor {escaped(info.name)}"
    if len(info.dimensions) > MOST_DIMENSIONS:
        return f"{where} has {len(info.dimensions)} dimensions, and ggml has at most {MOST_DIMENSIONS}"
    shape = " x ".join(str(n) for n in info.shape)
    if math.prod(info.shape) == 0:
        return f"{where} of shape {shape} has no weights"
    if math.prod(info.shape) > _LARGEST:
        return f"{where} of shape {shape} is larger than any file"
    return None


def _fault_of_type(info: TensorInfo) -> str | None:
    where = f"tensor {escaped(info.name)}"
    try:
        qtype = gguf.GGMLQuantizationType(info.type_id)
        block, _ = gguf.GGML_QUANT_SIZES[qtype]
    except (ValueError, KeyError):
        return (
            f"{where} has type {info.type_id}, which the installed gguf package does not know; if the file is new and "
            "sound, update gguf-bof4"
        )
    if (columns := info.shape[-1]) % block:
        return f"{where} has rows of {columns} weights, which is no multiple of {qtype.name}'s {block}"
    return None


def tensor_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor whose shape and type were found sound."""
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.type_id)]
    return math.prod(info.shape) // block * nbytes


def fault_of_tensors(infos: Iterable[TensorInfo], data_start: int, alignment: int, size: int) -> str | None:
    """What is wrong with the tensors of a header; None where each is sound, in its place and in the file.

    Args:
        data_start: offset of the first byte of the first tensor.
        alignment: of tensors, bytes.
        size: bytes of the file.
    """
    names: set[str] = set()
    expected = data_start
    for info in infos:
        fault = _fault_of_name(info.name) or _fault_of_shape(info) or _fault_of_type(info)
        if fault is None and info.name in names:
            fault = f"tensor {escaped(info.name)} is there twice"
        start = data_start + info.offset
        if fault is None and start != expected:
            fault = (
                f"tensor {escaped(info.name)} starts at byte {start} instead of {expected}, so a size or an offset in "
                "its header is wrong"
            )
        if fault is not None:
            return f"is damaged: {fault}"
        names.add(info.name)
        end = start + tensor_bytes(info)
        if end > size:
            return f"is truncated: tensor {escaped(info.name)} ends at byte {end}, the file at {size}"
        expected = start + -(-(end - start) // alignment) * alignment
    return None
