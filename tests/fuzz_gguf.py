"""GGUF files taken apart, mutated and put together again: a file may promise what it does not hold."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

STRING, ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

NUMBERS = [
    *(0, 1, 2, 3, 4, 5, 7, 31, 32, 33, 63, 64, 65, 127, 255, 256, 257, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
]
STRINGS = [
    *(b"", b"a", b"\x00", b"\xff\xfe", b"a\x00b", b"llama", b"clip", b"adapter", b"imatrix", b"%s%n", b"\xed\xa0\x80"),
    *(b"x" * 63, b"x" * 64, b"x" * 65, b"y" * 70000, "ü漢".encode(), b"../../x", b"\x1b[31m", b"\n"),
]
TYPES = [*range(45), 64, 176, 177, 178, 255, 2**31, 2**32 - 1]
"""Tensor types, known and unknown, some removed from ggml."""


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@dataclass
class Value:
    """A metadata value: its key, the number of its type, and its bytes."""

    key: bytes
    kind: int
    payload: bytes


@dataclass
class Entry:
    """A tensor: what the header says, and its data, which may be something else."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int
    data: bytes


@dataclass
class File:
    """A GGUF file; counts are those of `values` and `tensors` unless they are set."""

    version: int
    values: list[Value]
    tensors: list[Entry]
    alignment: int = 32
    magic: bytes = b"GGUF"
    n_values: int | None = None
    n_tensors: int | None = None
    changes: list[Callable[[bytearray], bytearray]] = field(default_factory=list)

    def packed(self) -> bytes:
        """The file, after the changes of single bytes."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_values = len(self.values) if self.n_values is None else self.n_values
        parts = [self.magic, struct.pack("<IQQ", self.version % 2**32, n_tensors % 2**64, n_values % 2**64)]
        for value in self.values:
            parts += [string(value.key), struct.pack("<I", value.kind), value.payload]
        for t in self.tensors:
            dims = struct.pack(f"<I{len(t.dims)}Q", len(t.dims), *(n % 2**64 for n in t.dims))
            parts += [string(t.name), dims, struct.pack("<IQ", t.kind, t.offset % 2**64)]
        head = b"".join(parts)
        raw = bytearray(head + bytes(-len(head) % self.alignment))
        for t in self.tensors:
            raw += t.data + bytes(-len(t.data) % self.alignment)
        for change in self.changes:
            raw = change(raw)
        return bytes(raw)


def _payload_end(raw: bytes, at: int, kind: int) -> int:
    if kind in _SCALARS:
        return at + struct.calcsize(_SCALARS[kind])
    if kind == STRING:
        return at + 8 + int(struct.unpack_from("<Q", raw, at)[0])
    item, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    for _ in range(count):
        at = _payload_end(raw, at, item)
    return at


def parse(raw: bytes) -> File:
    """Take a valid file apart."""
    version, n_tensors, n_values = struct.unpack_from("<IQQ", raw, 4)
    at, values, tensors = 24, [], []

    def text() -> bytes:
        nonlocal at
        size = struct.unpack_from("<Q", raw, at)[0]
        at += 8 + size
        return raw[at - size : at]

    for _ in range(n_values):
        key = text()
        kind = struct.unpack_from("<I", raw, at)[0]
        end = _payload_end(raw, at + 4, kind)
        values.append(Value(key, kind, raw[at + 4 : end]))
        at = end
    for _ in range(n_tensors):
        name = text()
        n_dims = struct.unpack_from("<I", raw, at)[0]
        *dims, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", raw, at + 4)
        at += 4 + 8 * n_dims + 12
        tensors.append(Entry(name, dims, kind, offset, b""))
    start = at + -at % 32
    ends = [t.offset for t in tensors[1:]] + [len(raw) - start]
    for t, end in zip(tensors, ends, strict=True):
        t.data = raw[start + t.offset : start + end]
    return File(version, values, tensors)


def random_value(rng: random.Random, depth: int = 0) -> tuple[int, bytes]:
    """The number of a type and bytes of a value, seldom invalid."""
    kind = rng.choice([*_SCALARS, STRING, ARRAY, ARRAY, rng.choice([13, 99, 2**32 - 1])])
    if kind == STRING:
        text = rng.choice(STRINGS)
        length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS)
        return kind, struct.pack("<Q", length) + text
    if kind == ARRAY:
        if depth == 0 and rng.random() < 0.02:  # nested beyond any recursion
            deep = rng.choice([3, 70, 3000])
            return kind, struct.pack("<IQ", ARRAY, 1) * deep + struct.pack("<IQ", 4, 0)
        items = [random_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2]) if depth < 3 else 0)]
        item = items[0][0] if items else rng.choice([0, 4, 6, STRING, ARRAY, 13])
        count = len(items) if rng.random() < 0.8 else rng.choice(NUMBERS)
        return kind, struct.pack("<IQ", item, count) + b"".join(payload for k, payload in items if k == item)
    if kind in _SCALARS:
        number = rng.choice([bytes(8), b"\xff" * 8, rng.randbytes(8), struct.pack("<Q", rng.choice(NUMBERS))])
        return kind, number[: struct.calcsize(_SCALARS[kind])]
    return kind, b""


KEYS = [
    b"general.architecture", b"general.alignment", b"general.name", b"general.type", b"general.file_type",
    b"general.quantization_version", b"split.no", b"split.count", b"split.tensors.count", b"bof4.version",
    b"bof4.levels.bof4_s", b"bof4.levels.bof4_k", b"bof4.encoder", b"bof4.opq.quantile", b"llama.block_count",
    b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges", b"GGUF.version", b"", b"\xff", b"x" * 70000,
    b"imatrix.datasets", b"imatrix.chunk_count", b"imatrix.chunk_size",
]  # fmt: skip


def _mutate_header(file: File, rng: random.Random) -> None:
    what = rng.randrange(4)
    if what == 0:
        file.magic = rng.choice([b"", b"GGU", b"FUGG", b"ggml", bytes(4), b"GGUF" * 2])
    elif what == 1:
        file.version = rng.choice([0, 1, 2, 4, 0x03000000, 2**32 - 1])
    elif what == 2:
        file.n_values = rng.choice([*NUMBERS, len(file.values) - 1, len(file.values) + 1])
    else:
        file.n_tensors = rng.choice([*NUMBERS, len(file.tensors) - 1, len(file.tensors) + 1])


def _mutate_value(file: File, rng: random.Random) -> None:
    at = rng.randrange(len(file.values)) if file.values else None
    what = rng.randrange(6)
    if what == 0 or at is None:
        kind, payload = random_value(rng)
        file.values.insert(rng.randrange(len(file.values) + 1), Value(rng.choice(KEYS), kind, payload))
    elif what == 1:
        del file.values[at]
    elif what == 2:
        file.values[at].key = rng.choice(KEYS)
    elif what == 3:
        file.values.insert(rng.randrange(len(file.values) + 1), file.values[at])
    elif what == 4:
        file.values[at].kind = rng.randrange(15)
    else:
        file.values[at].kind, file.values[at].payload = random_value(rng)


def _mutate_tensor(file: File, rng: random.Random) -> None:
    if not file.tensors:
        return
    t, other = rng.choice(file.tensors), rng.choice(file.tensors)
    what = rng.randrange(12)
    if what == 0:
        t.name = rng.choice([*STRINGS, other.name, t.name + b".opq", t.name.removesuffix(b".opq"), t.name + b"\xff"])
    elif what in {1, 2}:
        at = rng.randrange(max(1, len(t.dims)))
        near = [n + step for n in t.dims for step in (-1, 0, 1)]
        t.dims[at : at + 1] = [rng.choice([*NUMBERS, *near])]
    elif what == 3:
        longer = [[*t.dims, 1], [1, *t.dims], [1] * 4 + t.dims, t.dims * 3]
        t.dims = rng.choice([[], [1], *longer, t.dims[::-1], other.dims])
    elif what in {4, 5}:
        t.kind = rng.choice(TYPES)
    elif what == 6:
        t.offset = rng.choice([*NUMBERS, other.offset, t.offset + 32, t.offset - 32, t.offset + 1])
    elif what == 7:
        file.tensors.remove(t)
    elif what == 8:
        file.tensors.insert(rng.randrange(len(file.tensors) + 1), t)
    elif what == 9:
        rng.shuffle(file.tensors)
    elif what == 10:
        t.data = rng.randbytes(len(t.data))
    else:
        t.data = t.data[: rng.randrange(len(t.data) + 1)] if rng.random() < 0.5 else t.data + rng.randbytes(7)


def _mutate_list(file: File, rng: random.Random) -> None:
    """One number of an outlier list: a row pointer, a column, a value; or its length."""
    lists = [t for t in file.tensors if t.name.endswith(b".opq")]
    if not lists:
        return _mutate_tensor(file, rng)
    t = rng.choice(lists)
    numbers = list(struct.unpack(f"<{len(t.data) // 4}i", t.data[: len(t.data) // 4 * 4]))
    if not numbers:
        return None
    at, what = rng.randrange(len(numbers)), rng.randrange(6)
    if what == 0:
        numbers[at] = rng.choice([0, -1, 1, 2**31 - 1, -(2**31), numbers[at] + 1, numbers[at] - 1])
    elif what == 1:
        numbers[at] ^= 1 << rng.randrange(31)
    elif what == 2:
        rng.shuffle(numbers)
    elif what == 3:
        t.dims = [rng.choice([0, 1, len(numbers) - 1, len(numbers) + 1, 2**40])]
    elif what == 4:
        numbers[at] = numbers[at] & 0xFFFF | rng.choice([0x7F80, 0x7FC0, 0x7F7F, 0]) << 16
    else:
        t.dims = [len(numbers), 1]
    t.data = struct.pack(f"<{len(numbers)}i", *numbers) + t.data[4 * len(numbers) :]
    return None


def _mutate_bytes(file: File, rng: random.Random) -> None:
    seed, what = rng.randrange(2**32), rng.randrange(4)

    def change(raw: bytearray) -> bytearray:
        own = random.Random(seed)
        if what == 0:
            return raw[: own.randrange(len(raw) + 1)]
        if what == 1:
            return raw + own.randbytes(own.choice([1, 31, 4096]))
        end = len(raw) if what == 2 else min(len(raw), 1500)
        for _ in range(own.choice([1, 1, 2, 8])):
            if end:
                raw[own.randrange(end)] = own.choice([0, 0xFF, own.randrange(256)])
        return raw

    file.changes.append(change)


_MUTATIONS = (_mutate_header, _mutate_value, _mutate_value, _mutate_tensor, _mutate_tensor, _mutate_list, _mutate_bytes)


def mutate(file: File, rng: random.Random) -> None:
    """One to three mutations, in place."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        rng.choice(_MUTATIONS)(file, rng)
