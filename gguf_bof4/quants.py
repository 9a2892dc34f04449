"""The numpy reference of every type, in the form of gguf's quants.py: one class a type.

Each float operation stands in ggml_patch/src/bof4-quants.c too, in the same order, so the two agree
bit for bit. Importing `gguf_bof4` registers these classes with the gguf package.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.formats import BOF4_S as FORMAT_S
from gguf_bof4.formats import LEVEL_SCALE, Format
from gguf_bof4.registration import register_type

Blocks = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]

FP16_MAX = np.float32(65504)

_Quant: Any = getattr(gguf.quants, "__Quant")


def as_array(weights: Any) -> npt.NDArray[Any]:
    """Weights as numpy: torch tensors of float32, float16 and bfloat16 are taken too.

    gguf's lazy tensors pass through, still lazy.
    """
    if hasattr(weights, "detach"):
        return np.asarray(weights.detach().float().cpu().numpy())
    return weights  # type: ignore[no-any-return]


def midpoints(fmt: Format) -> npt.NDArray[np.float32]:
    """The 15 boundaries between neighbouring levels, in level units."""
    levels = np.array(fmt.levels, dtype=np.float32)
    return np.asarray((levels[:-1] + levels[1:]) / 2, dtype=np.float32)


def signed_maximum(blocks: Weights) -> Weights:
    """The element of largest magnitude of each block, sign included; the first of equals (eq. 4).

    NaN where any element of the block is not finite.

    Args:
        blocks: float32 [n, block size].

    Returns:
        float32 [n, 1].
    """
    magnitude = np.abs(blocks)
    m = np.take_along_axis(blocks, magnitude.argmax(axis=1)[:, None], axis=1)
    return np.where(np.isfinite(blocks).all(axis=1, keepdims=True), m, np.float32(np.nan))


register_type(FORMAT_S)


class BOF4_S(_Quant, qtype=gguf.GGMLQuantizationType(FORMAT_S.type_id)):  # type: ignore[misc,call-arg]
    """64 weights in 34 bytes: fp16 signed block maximum, then 32 bytes of codes (README, "Formats").

    Low nibbles hold weights 0 to 31, high nibbles weights 32 to 63.
    """

    format = FORMAT_S
    levels = np.array(FORMAT_S.levels, dtype=np.float32)

    @classmethod
    def quantize(cls, tensor: Any) -> Any:
        """Encode [..., n] weights (numpy or torch) into uint8 [..., bytes of a row]."""
        return super().quantize(as_array(tensor))

    @classmethod
    def quantize_blocks(cls, blocks: Weights) -> Blocks:
        """The paper's absmax encoder: float32 [n, 64] to uint8 [n, 34].

        A block with a NaN or an infinity gets the scale NaN, which validation refuses.
        """
        m = signed_maximum(blocks)
        bad = np.isnan(m)
        d = np.clip(m, -FP16_MAX, FP16_MAX).astype(np.float16)
        # normalize by the stored scale, not by m: that is what the decoder multiplies with
        d32 = d.astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inverse = np.where(d32 != 0, np.float32(LEVEL_SCALE) / d32, np.float32(0))
            y = np.where(bad, np.float32(0), blocks * inverse)
        codes = np.zeros(blocks.shape, dtype=np.uint8)
        for midpoint in midpoints(cls.format):
            codes += y > midpoint
        d.view(np.uint16)[bad] = 0x7E00
        half = cls.block_size // 2
        qs = codes[:, :half] | codes[:, half:] << np.uint8(4)
        return np.concatenate([d.view(np.uint8), qs], axis=1)

    @classmethod
    def dequantize_blocks(cls, blocks: Blocks) -> Weights:
        """uint8 [n, 34] to float32 [n, 64]."""
        d = blocks[:, :2].view(np.float16).astype(np.float32)
        qs = blocks[:, 2:]
        codes = np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=1)
        # d * level is exact (11 + 7 bits), so one rounding is left and level 127 gives exactly d
        with np.errstate(invalid="ignore"):
            return d * cls.levels[codes] * np.float32(1 / np.float32(LEVEL_SCALE))  # type: ignore[no-any-return]


REFERENCES: dict[int, type[BOF4_S]] = {FORMAT_S.type_id: BOF4_S}
"""The reference class of each type number."""
