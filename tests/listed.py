"""Models with outlier lists, written with gguf alone, and what the built programs compute with them."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as T
from gguf_writing import finish
from llama import THREADS, succeed

from gguf_bof4.formats import BOF4_S
from gguf_bof4.lists import SUFFIX, list_name, read_tensor, select, without

Floats = npt.NDArray[np.float32]
Encoded = tuple[npt.NDArray[Any], T]
"""Numbers or encoded rows, and their type."""

QUANTILE = 0.95

_WRITTEN_BY_WRITER = ("general.architecture", "general.file_type")


def write(
    target: Path,
    like: gguf.GGUFReader,
    tensors: Iterable[tuple[str, Encoded]],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A file of these tensors with the metadata of another.

    Args:
        metadata: values that replace those of `like`; new ones are unsigned numbers.
    """
    replaced = metadata or {}
    writer = gguf.GGUFWriter(target, contents(like, "general.architecture"))
    for field in like.fields.values():
        if not field.name.startswith(("GGUF.", "split.")) and field.name not in _WRITTEN_BY_WRITER:
            value = replaced.get(field.name) or field.contents()
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, value, field.types[0], sub_type=field.types[-1] if is_array else None)
    for key in replaced.keys() - like.fields.keys():
        writer.add_uint32(key, replaced[key])
    writer.add_file_type(BOF4_S.file_type)
    for name, (array, qtype) in tensors:
        writer.add_tensor(name, array, raw_dtype=qtype if array.dtype == np.uint8 else None)
    finish(writer)
    return target


def contents(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def tensors_of(source: Path) -> dict[str, Encoded]:
    """What a file holds; encoded rows as bytes."""
    return {t.name: (t.data, t.tensor_type) for t in gguf.GGUFReader(source).tensors}


def quantized(name: str, weights: Floats, quantile: float | None = QUANTILE) -> Iterator[tuple[str, Encoded]]:
    """A weight in BOF4_S and, unless the quantile is None, its list."""
    if quantile is None:
        yield name, (gguf.quantize(weights, T.BOF4_S), T.BOF4_S)
        return
    rows = weights.reshape(-1, weights.shape[-1])
    outliers = select(rows, quantile)
    rest = without(rows, outliers).reshape(weights.shape)
    yield name, (gguf.quantize(rest, T.BOF4_S), T.BOF4_S)
    yield list_name(name), (outliers.packed(), T.I32)


def write_listed(
    source: Path,
    target: Path,
    quantile: float | None = QUANTILE,
    chosen: Callable[[str], bool] = lambda name: name.startswith("blk."),
) -> Path:
    """A copy of an unquantized model, chosen matrices in BOF4_S with lists."""
    reader = gguf.GGUFReader(source)

    def tensors() -> Iterator[tuple[str, Encoded]]:
        for t in reader.tensors:
            if len(t.shape) > 1 and chosen(t.name):
                yield from quantized(t.name, np.asarray(t.data, dtype=np.float32), quantile)
            else:
                yield t.name, (t.data, t.tensor_type)

    return write(target, reader, tensors())


def write_decoded(source: Path, target: Path) -> Path:
    """The same weights in F32, as Python decodes them, outliers applied; no lists."""
    reader = gguf.GGUFReader(source)
    names = [t.name for t in reader.tensors if not t.name.endswith(SUFFIX)]
    return write(target, reader, ((name, (read_tensor(reader, name), T.F32)) for name in names))


def write_changed(source: Path, target: Path, changes: Mapping[str, Encoded | None]) -> Path:
    """A copy with tensors replaced, added, or removed (None)."""
    kept = {**tensors_of(source), **changes}
    return write(target, gguf.GGUFReader(source), [(name, t) for name, t in kept.items() if t is not None])


def write_without_lists(source: Path, target: Path) -> Path:
    """A copy whose weights have lost their outliers."""
    return write_changed(source, target, {name: None for name in tensors_of(source) if name.endswith(SUFFIX)})


def write_mixture(vocabulary_of: Path, target: Path, seed: int = 0) -> Path:
    """A small random mixture-of-experts model (Mixtral's layout) in F32, with the first tokens of a real model's.

    Outliers are rare and large, as in trained models.
    """
    reader = gguf.GGUFReader(vocabulary_of)
    rng = np.random.default_rng(seed)
    width, feed_forward, experts, vocabulary = 128, 192, 4, 2048
    tokens = contents(reader, "tokenizer.ggml.tokens")[:vocabulary]
    known = set(tokens)
    merges = [m for m in contents(reader, "tokenizer.ggml.merges") if m.replace(" ", "") in known]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": contents(reader, "tokenizer.ggml.token_type")[:vocabulary],
        "tokenizer.ggml.merges": merges,
        "llama.vocab_size": vocabulary,
        "llama.block_count": 2,
        "llama.embedding_length": width,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": width // 4,
        "llama.expert_count": experts,
        "llama.expert_used_count": 2,
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width)}
    for i in range(2):
        shapes |= {
            f"blk.{i}.attn_q.weight": (width, width),
            f"blk.{i}.attn_k.weight": (width // 2, width),
            f"blk.{i}.attn_v.weight": (width // 2, width),
            f"blk.{i}.attn_output.weight": (width, width),
            f"blk.{i}.ffn_gate_inp.weight": (experts, width),
            f"blk.{i}.ffn_gate_exps.weight": (experts, feed_forward, width),
            f"blk.{i}.ffn_up_exps.weight": (experts, feed_forward, width),
            f"blk.{i}.ffn_down_exps.weight": (experts, width, feed_forward),
        }
    norms = ["output_norm.weight", *(f"blk.{i}.{part}_norm.weight" for i in range(2) for part in ("attn", "ffn"))]

    def tensors() -> Iterator[tuple[str, Encoded]]:
        for name, shape in shapes.items():
            weights = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
            yield name, (np.where(rng.random(shape) < 0.01, 6 * weights, weights), T.F32)
        for name in norms:
            yield name, (np.ones(width, dtype=np.float32), T.F32)

    return write(target, reader, tensors(), metadata)


@dataclass(frozen=True)
class Prediction:
    """What a model says of the tokens of a text.

    Attributes:
        tokens: int32 [chunks, length].
        log_probabilities: float32 [chunks, positions, vocabulary], of the tokens that follow those from the
            middle of a chunk to its last but one.
    """

    tokens: npt.NDArray[np.int32]
    log_probabilities: Floats


def predict(model: Path, text: Path, *arguments: str | Path, length: int = 128, chunks: int = 2) -> Prediction:
    """Run llama-perplexity over the first tokens of a text."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "logits"
        succeed(
            "perplexity", "-m", model, "-f", text, "-c", str(length), "-b", str(length), "--chunks", str(chunks),
            "--save-all-logits", file, *THREADS, *arguments,
        )  # fmt: skip
        data = file.read_bytes()
    magic, n_tokens, n_vocabulary, n_chunks = struct.unpack_from("<8sIii", data)
    assert (magic, n_tokens, n_chunks) == (b"_logits_", length, chunks)
    tokens = np.frombuffer(data, dtype=np.int32, count=chunks * length, offset=20).reshape(chunks, length)
    # of each token: scale and smallest log probability as floats, then 16 bits a token of the vocabulary
    rows = np.frombuffer(data, dtype=np.uint16, offset=20 + tokens.nbytes).reshape(chunks, length - 1 - length // 2, -1)
    scale, smallest = (np.ascontiguousarray(rows[..., i : i + 2]).view(np.float32) for i in (0, 2))
    return Prediction(tokens, smallest + scale * rows[..., 4 : 4 + n_vocabulary].astype(np.float32))


def divergence(of: Prediction, against: Prediction) -> Floats:
    """Kullback-Leibler divergence at each position: float32 [positions]."""
    assert (of.tokens == against.tokens).all()
    p, q = (x.log_probabilities.reshape(-1, x.log_probabilities.shape[-1]) for x in (against, of))
    return (np.exp(p) * (p - q)).sum(axis=1)
