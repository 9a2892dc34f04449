"""A llama of random weights for measuring speed, which depends on shapes only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from gguf_bof4.bench.disk import check_disk
from gguf_bof4.bench.measure import ROUTER
from gguf_bof4.paths import atomic_path, models_folder

RECIPE = 1
"""Part of the cache's key: to be raised with every change of what this module writes."""

_SEED = 11
_SLICE = 2**22  # weights at a time
_CONTEXT = 8192


@dataclass(frozen=True)
class Shape:
    """A llama; token embeddings are the output matrix, too.

    Attributes:
        embedding: length of the residual stream, a multiple of 256 and of the heads.
        feed_forward: width of the feed-forward layers, a multiple of 256.
        vocabulary: tokens.
        experts, used_experts: of a mixture, and how many of them a token uses; 0: no mixture.
    """

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    experts: int = 0
    used_experts: int = 0

    @property
    def head(self) -> int:
        return self.embedding // self.heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, rows before columns, in the order of the file."""
        n, ff, kv = self.embedding, self.feed_forward, self.kv_heads * self.head
        yield "token_embd.weight", (self.vocabulary, n)
        for i in range(self.layers):
            yield f"blk.{i}.attn_norm.weight", (n,)
            yield f"blk.{i}.attn_q.weight", (n, n)
            yield f"blk.{i}.attn_k.weight", (kv, n)
            yield f"blk.{i}.attn_v.weight", (kv, n)
            yield f"blk.{i}.attn_output.weight", (n, n)
            yield f"blk.{i}.ffn_norm.weight", (n,)
            if self.experts:
                yield f"blk.{i}.ffn_gate_inp.weight", (self.experts, n)
            kind, experts = ("_exps", (self.experts,)) if self.experts else ("", ())
            yield f"blk.{i}.ffn_gate{kind}.weight", (*experts, ff, n)
            yield f"blk.{i}.ffn_up{kind}.weight", (*experts, ff, n)
            yield f"blk.{i}.ffn_down{kind}.weight", (*experts, n, ff)
        yield "output_norm.weight", (n,)

    @property
    def n_weights(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.tensors())


LLAMA_1B = Shape(layers=16, embedding=2048, feed_forward=8192, heads=32, kv_heads=8, vocabulary=49152)
"""The blocks of Llama 3.2 1B. With its vocabulary of 128256 tokens a quarter of the file would be the output matrix,
which is of another type; this one makes 1.07 billion weights."""

LLAMA_8B = Shape(layers=32, embedding=4096, feed_forward=14336, heads=32, kv_heads=8, vocabulary=49152)
"""The blocks of Llama 3 8B, for GPUs: 7.2 billion weights."""

MIXTURE = replace(LLAMA_1B, layers=12, embedding=1024, feed_forward=1792, heads=16, experts=16, used_experts=2)
"""A mixture of 1.1 billion weights, of which a token uses 0.2."""

SHAPES = {"1b": LLAMA_1B, "8b": LLAMA_8B, "moe": MIXTURE}


def synthetic_name(size: str) -> str:
    """What the model of a size is called."""
    return f"llama-{size}"


def _header(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_name("random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used_experts)
    # llama.cpp then invents the tokens
    writer.add_tokenizer_model("none")


def _dtype(name: str, dims: tuple[int, ...]) -> np.dtype[np.float32] | np.dtype[np.float16]:
    """Of a tensor: norms and routers stay float32, as in every model."""
    is_matrix = len(dims) > 1 and not name.endswith(ROUTER)
    return np.dtype(np.float16) if is_matrix else np.dtype(np.float32)


def write_synthetic(shape: Shape, target: Path) -> None:
    """Write a model whose matrices are normal numbers in F16, of variance 1/n in rows of n; norm weights are 1.

    Routers are float32. The same bytes every time; no more than a few million weights are in memory.
    """
    writer = gguf.GGUFWriter(target, "llama")
    _header(writer, shape)
    for name, dims in shape.tensors():
        dtype = _dtype(name, dims)
        writer.add_tensor_info(name, dims, dtype, int(np.prod(dims)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    rng = np.random.default_rng(_SEED)
    with target.open("ab") as file:
        for name, dims in shape.tensors():
            # the data begins, and every tensor in it, at a multiple of the alignment
            file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
            if len(dims) == 1:
                np.ones(dims, np.float32).tofile(file)
                continue
            rows, n = int(np.prod(dims[:-1])), dims[-1]
            step = max(1, _SLICE // n)
            for first in range(0, rows, step):
                block = rng.standard_normal((min(step, rows - first), n), dtype=np.float32) / np.float32(np.sqrt(n))
                block.astype(_dtype(name, dims)).tofile(file)
        file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))


def synthetic_model(size: str) -> Path:
    """The model of this size, one of SHAPES, from the cache; made there the first time.

    Raises:
        UserError: the disk is too small.
    """
    shape = SHAPES[size]
    fields = {name: value for name, value in asdict(shape).items() if value}
    key = hashlib.sha256(json.dumps([RECIPE, _SEED, fields], sort_keys=True).encode()).hexdigest()[:8]
    target = models_folder() / f"synthetic-{key}" / f"{synthetic_name(size)}.gguf"
    if not target.exists():
        needed = 2.01 * shape.n_weights
        check_disk(target.parent, needed, "a model of random weights", "set BOF4_CACHE to another folder")
        with atomic_path(target) as partial:
            write_synthetic(shape, partial)
    return target
