"""Size and types of a quantized file."""

from __future__ import annotations

from collections import Counter

import gguf

from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model, Tensor

ROUTER = "ffn_gate_inp.weight"
"""How the names of routers end, which llama-quantize leaves in F32."""


def block_matrices(model: Model) -> list[Tensor]:
    """The matrices that are quantized: those of the blocks, no embeddings, and no routers of experts."""
    return [
        t for t in model.tensors if t.name.startswith("blk.") and len(t.shape) > 1 and not t.name.endswith(ROUTER)
    ]


def bits_per_weight(model: Model) -> float:
    """Of the matrices of the blocks, with their outlier lists, as they are in the file."""
    return model.bits_per_weight(block_matrices(model))


def types_of(model: Model) -> dict[str, int]:
    """Types of the matrices of the blocks, the most frequent first, and how many of each."""
    return dict(Counter(t.qtype.name for t in block_matrices(model)).most_common())


def fallbacks(model: Model, wanted: str, mixed: bool = False) -> dict[str, int]:
    """Other types that matrices of the blocks got, and how many of each.

    Args:
        mixed: the program that made the file can only mix types.

    Raises:
        UserError: a matrix got another type although its rows divide into blocks of the type `wanted`; not if `mixed`.
    """
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]][0]
    others = [t for t in block_matrices(model) if t.qtype.name != wanted]
    for t in others:
        if t.shape[-1] % block == 0 and not mixed:
            raise UserError(
                f"{model.path}: {t.name} is {t.qtype.name} instead of {wanted}, although its rows of {t.shape[-1]} "
                "fit: this llama-quantize mixes types, so the figures would not be those of one type"
            )
    return dict(Counter(t.qtype.name for t in others))


def check_rest(model: Model, source: Model) -> None:
    """Check that nothing but the matrices of the blocks has another type than in the source.

    Raises:
        UserError: a tensor is missing or has another type.
    """
    types = {t.name: t.qtype for t in model.tensors}
    matrices = {t.name for t in block_matrices(source)}
    for t in source.tensors:
        found = types.get(t.name)
        if found is None or (t.name not in matrices and found != t.qtype):
            what = "missing" if found is None else f"{found.name} instead of {t.qtype.name}"
            raise UserError(f"{model.path}: {t.name} is {what}, so more than block matrices would be measured")
