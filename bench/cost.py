"""Estimates of what a measurement takes: seconds on two cores of a server, and bytes of disk."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_bof4.bench.nf4 import NF4
from gguf_bof4.bench.variants import Variant
from gguf_bof4.divergence import CONTEXT


@dataclass(frozen=True)
class Size:
    """Of a reference model, known before it is fetched.

    Attributes:
        weights: in the matrices of the blocks.
        embeddings: weights of the token embeddings, which are the output matrix, too; always F16.
        vocabulary: tokens.
        matrix_bytes: bytes of a weight in the unquantized model.
    """

    weights: float
    embeddings: float
    vocabulary: int
    matrix_bytes: int


SIZES = {
    "smol": Size(106e6, 28e6, 49152, 4),
    "gemma": Size(100e6, 168e6, 262144, 4),
    "qwen": Size(1310e6, 233e6, 151936, 2),
}

_CHUNK_SECONDS = 7e-9
"""Of a chunk in llama-perplexity, for a weight; every second token is multiplied by the output matrix."""

_TOKEN_SECONDS = 3e-6
"""Seconds to compare the distributions of a chunk for each token of the vocabulary."""

_ENCODING_SECONDS = {
    "none": 3e-8, "absmax": 1e-8, "search": 3e-8, "random": 6e-8, "imatrix": 6e-8, "gptq": 1.3e-6,
    "auto-round": 1.4e-5, "auto-round:rtn": 3e-6,
}  # fmt: skip
"""Seconds for each weight: llama-quantize ("none"), this project's encoders, AutoRound. gptq and AutoRound run the
model, too."""

_SEARCH_SECONDS = 1e-6
"""Seconds for each weight: gradients, and encoding a part of each tensor in every candidate type."""


def measuring_seconds(model: str, chunks: int) -> float:
    """To measure one file on one text, or to run the unquantized model on it."""
    size = SIZES[model]
    return chunks * (_CHUNK_SECONDS * (size.weights + size.embeddings / 2) + _TOKEN_SECONDS * size.vocabulary) + 1


def making_seconds(model: str, variant: Variant) -> float:
    """To make the quantized file."""
    name = variant.encoder if variant.encoder in _ENCODING_SECONDS else variant.base_encoder
    return (_ENCODING_SECONDS[name] + variant.variation.seconds) * SIZES[model].weights + 1


def search_seconds(model: str) -> float:
    """To measure the losses of all tensors in all candidate types, once for a model."""
    return _SEARCH_SECONDS * SIZES[model].weights


def imatrix_seconds(model: str, chunks: int) -> float:
    """To make an importance matrix from `chunks` chunks of 512 tokens."""
    return chunks * _CHUNK_SECONDS * SIZES[model].weights


def logits_bytes(model: str, chunks: int) -> int:
    """The unquantized model's distributions on one text: 16 bits for each token of the vocabulary and judged token."""
    return chunks * (CONTEXT // 2 - 1) * (2 * SIZES[model].vocabulary + 8) + chunks * CONTEXT * 4


def file_bytes(model: str, variant: Variant) -> int:
    """An upper bound for the quantized file: fallbacks and outlier lists are included, and what AutoRound reads and
    writes (the model in float32, and its own file)."""
    size = SIZES[model]
    beside = 5 * (size.weights + size.embeddings) if variant.base_encoder == "auto-round" else 0
    return round(size.weights * (size.matrix_bytes if variant.type == NF4 else 0.75) + 2.1 * size.embeddings + beside)
