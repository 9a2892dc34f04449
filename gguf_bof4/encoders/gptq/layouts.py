"""How many columns of a row share scales, in each type that gptq encodes: columns that do are processed together."""

from __future__ import annotations

import gguf
from gguf import GGMLQuantizationType as TensorType

from gguf_bof4.formats import FORMATS, Kernels

SUB_BLOCKS: dict[TensorType, int] = {
    **{TensorType(fmt.type_id): fmt.sub_block_size for fmt in FORMATS if Kernels.GPTQ in fmt.kernels},
    **dict.fromkeys((TensorType.Q2_K, TensorType.Q3_K, TensorType.Q6_K), 16),
    **dict.fromkeys((TensorType.Q4_K, TensorType.Q5_K, TensorType.IQ4_XS, TensorType.IQ4_NL), 32),
    **dict.fromkeys((TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0), 32),
}
"""Weights under the innermost scale, of each type (ggml_patch/src/bindings/bof4-gptq-types.h for llama.cpp's own)."""

STOCK_TYPES = frozenset(SUB_BLOCKS) - {TensorType(fmt.type_id) for fmt in FORMATS}
"""Those that an unpatched llama.cpp knows."""


def block_size(qtype: TensorType) -> int:
    """Weights in a block, or superblock."""
    return int(gguf.GGML_QUANT_SIZES[qtype][0])
