"""Write a llama of random blocks straight in a quantized type, for measuring speed: it depends on shapes only.

    make_llama.py TYPE[+opq] FILE [layers=32] [n=4096] [ff=14336] [heads=32] [kv=8] [vocab=49152]

numpy is all that it needs, and quantizing takes no time: a machine that is lent for minutes has neither this project
nor that time. `bof4 bench speed --size 8b` measures a model that is quantized from random weights.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

ALIGNMENT = 32
LIST_TYPE = 26  # I32
LISTED = 0.002  # of the weights of a row
POOL = 1 << 18  # random blocks, at most; they are repeated


@dataclass(frozen=True)
class Type:
    """A ggml type.

    Attributes:
        number: in ggml.
        weights, size: of a block, in weights and bytes.
        scales: offset in the block and largest value of each fp16 scale.
    """

    number: int
    weights: int
    size: int
    scales: tuple[tuple[int, float], ...] = ()


TYPES = {
    "bof4_s": Type(176, 64, 34, ((0, 0.05),)),
    "bof4_k": Type(177, 256, 142, ((0, 0.05),)),
    "q4_0": Type(2, 32, 18, ((0, 0.005),)),
    "iq4_nl": Type(20, 32, 18, ((0, 0.0003),)),
    "iq4_xs": Type(23, 256, 136, ((0, 0.00002),)),
    "q4_k": Type(12, 256, 144, ((0, 0.0002), (2, 0.001))),
    "mxfp4": Type(39, 32, 17),
    "q6_k": Type(14, 256, 210, ((208, 0.00002),)),
    "f32": Type(0, 1, 4),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file, rows before columns; of a list, the shape of its weight."""

    name: str
    of: str
    shape: tuple[int, ...]

    @property
    def listed(self) -> int:
        """Outliers in each row of the weight."""
        return max(1, round(LISTED * self.shape[-1]))

    @property
    def words(self) -> int:
        """Words of a list: row pointers and entries."""
        return self.shape[0] * (1 + self.listed) + 1

    @property
    def n_bytes(self) -> int:
        if self.of == "list":
            return 4 * self.words
        return int(np.prod(self.shape)) // TYPES[self.of].weights * TYPES[self.of].size

    def information(self, offset: int) -> bytes:
        """Its entry in the header of the file."""
        dims = (self.words,) if self.of == "list" else self.shape[::-1]
        number = LIST_TYPE if self.of == "list" else TYPES[self.of].number
        return _string(self.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(key: str, value: int | float | str) -> bytes:
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", 8) + _string(value)
    if isinstance(value, int):
        return _string(key) + struct.pack("<II", 4, value)
    return _string(key) + struct.pack("<If", 6, value)


def tensors(of: str, with_lists: bool, size: dict[str, int]) -> Iterator[Tensor]:
    """The tensors of a llama, each list behind its weight."""
    n, ff, kv = size["n"], size["ff"], size["kv"] * (size["n"] // size["heads"])
    yield Tensor("token_embd.weight", "q6_k", (size["vocab"], n))
    for i in range(size["layers"]):
        for part, shape in {
            "attn_norm": (n,), "attn_q": (n, n), "attn_k": (kv, n), "attn_v": (kv, n), "attn_output": (n, n),
            "ffn_norm": (n,), "ffn_gate": (ff, n), "ffn_up": (ff, n), "ffn_down": (n, ff),
        }.items():  # fmt: skip
            name = f"blk.{i}.{part}.weight"
            yield Tensor(name, of if len(shape) > 1 else "f32", shape)
            if with_lists and len(shape) > 1:
                yield Tensor(f"{name}.opq", "list", shape)
    yield Tensor("output_norm.weight", "f32", (n,))


def random_blocks(of: str, count: int, rng: np.random.Generator) -> Bytes:
    """Blocks with random codes and positive scales: uint8 [count * bytes of a block]."""
    kind = TYPES[of]
    data = rng.integers(0, 256, (count, kind.size), dtype=np.uint8)
    for at, value in kind.scales:
        half = (value * rng.uniform(0.5, 1.0, count)).astype(np.float16)
        data[:, at : at + 2] = half.view(np.uint8).reshape(count, 2)
    if of == "mxfp4":
        data[:, 0] = rng.integers(117, 121, count)  # powers of two near 2**-8
    return data.reshape(-1)


def random_list(weight: Tensor, rng: np.random.Generator) -> Bytes:
    """A list with equally many outliers in every row, one in each of as many equal parts of it."""
    (rows, length), listed = weight.shape, weight.listed
    part = length // listed
    columns = (np.arange(listed) * part)[None] + rng.integers(0, part, (rows, listed))
    values = (rng.standard_normal((rows, listed)) * 0.05).astype(np.float32).view(np.uint32) & 0xFFFF0000
    pointers: npt.NDArray[Any] = (np.arange(rows + 1) * listed).astype("<u4")
    return np.concatenate([pointers, (columns.astype(np.uint32) | values).astype("<u4").ravel()]).view(np.uint8)


def write_data(file: BinaryIO, tensor: Tensor, pools: Mapping[str, Bytes], rng: np.random.Generator) -> None:
    """Write the data of a tensor and the bytes that align the next."""
    if tensor.of == "list":
        random_list(tensor, rng).tofile(file)
    elif tensor.of == "f32":
        np.ones(tensor.shape, np.float32).tofile(file)
    else:
        pool, rest = pools[tensor.of], tensor.n_bytes
        while rest > 0:
            pool[:rest].tofile(file)
            rest -= min(rest, pool.size)
    file.write(bytes(-tensor.n_bytes % ALIGNMENT))


def write_llama(name: str, target: Path, size: dict[str, int]) -> int:
    """Write a model; returns its size in bytes.

    Args:
        name: one of TYPES, with "+opq" for outlier lists.
        size: layers, n (width), ff, heads, kv (heads of keys and values), vocab.
    """
    of, _, lists = name.partition("+")
    all_tensors = list(tensors(of, bool(lists), size))
    metadata: dict[str, int | float | str] = {
        "general.architecture": "llama", "general.name": f"random {name}", "general.alignment": ALIGNMENT,
        "llama.block_count": size["layers"], "llama.context_length": 8192, "llama.embedding_length": size["n"],
        "llama.feed_forward_length": size["ff"], "llama.attention.head_count": size["heads"],
        "llama.attention.head_count_kv": size["kv"], "llama.rope.dimension_count": size["n"] // size["heads"],
        "llama.rope.freq_base": 500000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": size["vocab"], "tokenizer.ggml.model": "none",
    }  # fmt: skip
    header = struct.pack("<IIQQ", 0x46554747, 3, len(all_tensors), len(metadata))
    header += b"".join(_value(key, value) for key, value in metadata.items())
    offset = 0
    for tensor in all_tensors:
        header += tensor.information(offset)
        offset += -(-tensor.n_bytes // ALIGNMENT) * ALIGNMENT
    rng = np.random.default_rng(7)
    largest: dict[str, int] = {}
    for tensor in all_tensors:
        if tensor.of not in {"list", "f32"}:
            largest[tensor.of] = max(largest.get(tensor.of, 0), tensor.n_bytes // TYPES[tensor.of].size)
    pools = {kind: random_blocks(kind, min(count, POOL), rng) for kind, count in largest.items()}
    with target.open("wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for tensor in all_tensors:
            write_data(file, tensor, pools, rng)
        return file.tell()


def main(arguments: list[str]) -> None:
    """Write the file that the arguments name."""
    name, path = arguments[:2]
    size = {"layers": 32, "n": 4096, "ff": 14336, "heads": 32, "kv": 8, "vocab": 49152}
    size |= {key: int(value) for key, _, value in (argument.partition("=") for argument in arguments[2:])}
    print(f"{path}: {write_llama(name, Path(path), size) / 1e9:.2f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
