"""GGUF files byte by byte, so that they can have what no writer writes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

V = gguf.GGUFValueType
F32 = int(gguf.GGMLQuantizationType.F32)

_FORMATS = {
    V.UINT8: "B", V.INT8: "b", V.UINT16: "H", V.INT16: "h", V.UINT32: "I", V.INT32: "i", V.FLOAT32: "f",
    V.UINT64: "Q", V.INT64: "q", V.FLOAT64: "d", V.BOOL: "?",
}  # fmt: skip


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def scalar(kind: V, value: Any) -> bytes:
    """Type and value of a number."""
    return struct.pack("<I" + _FORMATS[kind], kind, value)


def text(value: bytes) -> bytes:
    """Type and value of a string."""
    return struct.pack("<I", V.STRING) + string(value)


def numbers(kind: V, values: Sequence[Any]) -> bytes:
    """Type and value of an array of numbers."""
    packed = (struct.pack("<" + _FORMATS[kind], value) for value in values)
    return struct.pack("<IIQ", V.ARRAY, kind, len(values)) + b"".join(packed)


def texts(*values: bytes) -> bytes:
    """Type and value of an array of strings."""
    return struct.pack("<IIQ", V.ARRAY, V.STRING, len(values)) + b"".join(map(string, values))


def nested(levels: int) -> bytes:
    """Type and value of an array in as many arrays, the innermost of one number."""
    inside = struct.pack("<IQB", V.UINT8, 1, 7)
    for _ in range(levels):
        inside = struct.pack("<IQ", V.ARRAY, 1) + inside
    return struct.pack("<I", V.ARRAY) + inside


UNUSUAL = {
    b"general.name": text(b"caf\xe9"),
    b"tokenizer.ggml.tokens": texts(b"\xff\xfe", b"ok", b"\x00\x1b[31m", b""),
    b"GGUF.version": scalar(V.UINT32, 7),
    b"GGUF.other": text(b"kept"),
    b"key\xff": scalar(V.BOOL, True),
    b"empty": numbers(V.FLOAT32, []),
    b"no.strings": texts(),
    b"deep": nested(16),
    b"not.a.number": scalar(V.FLOAT32, float("nan")),
    b"split.count": scalar(V.UINT16, 0),
}
"""All of it is legal, and loads in llama.cpp; but for arrays in arrays, which other programs write."""


@dataclass
class T:
    """A tensor of a header; columns first."""

    name: bytes = b"a.weight"
    dimensions: tuple[int, ...] = (64,)
    type_id: int = F32
    offset: int | None = None
    nbytes: int = 256


def header(
    values: Mapping[bytes, bytes], tensors: Sequence[T] = (), version: int = 3, n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:  # fmt: skip
    """The header with its padding; tensors without an offset follow each other."""
    made = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(values))
    made += b"".join(string(key) + value for key, value in values.items())
    at = 0
    for t in tensors:
        made += string(t.name) + struct.pack("<I", len(t.dimensions))
        made += b"".join(struct.pack("<Q", n) for n in t.dimensions)
        made += struct.pack("<IQ", t.type_id, at if t.offset is None else t.offset)
        at += -(-t.nbytes // alignment) * alignment
    return made + bytes(-len(made) % alignment)


def write(
    path: Path,
    values: Mapping[bytes, bytes] | None = None,
    tensors: Sequence[T] = (T(),),
    alignment: int = 32,
    **options: Any,
) -> Path:
    """A file of the architecture llama, with zeros for data."""
    all_values = {b"general.architecture": text(b"llama")} | dict(values or {})
    data = b"".join(bytes(-(-t.nbytes // alignment) * alignment) for t in tensors)
    path.write_bytes(header(all_values, tensors, alignment=alignment, **options) + data)
    return path
