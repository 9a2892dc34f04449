"""The numpy reference of every type, in the form of gguf's quants.py: one class a type.

Each float operation stands in ggml_patch/src/format/bof4-quants.c too, in the same order, so the two agree
bit for bit. Importing `gguf_bof4` registers these classes with the gguf package.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.formats import BOF4_K as FORMAT_K
from gguf_bof4.formats import BOF4_S as FORMAT_S
from gguf_bof4.formats import LEVEL_SCALE, Format
from gguf_bof4.gguf_files.types import register_type

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


def stored_scale(m: Weights) -> npt.NDArray[np.float16]:
    """The fp16 that is stored for a scale; NaN stays NaN, so that validation refuses the block."""
    d = np.clip(m, -FP16_MAX, FP16_MAX).astype(np.float16)
    d.view(np.uint16)[np.isnan(m)] = 0x7E00
    return d


def nearest_codes(blocks: Weights, unit: Weights, fmt: Format) -> npt.NDArray[np.uint8]:
    """Codes of the nearest levels; the zero level everywhere where a level of 1 is worth 0 or NaN.

    Args:
        blocks: float32 [n, block size].
        unit: float32 [n, 1], what a level of 1 is worth.

    Returns:
        uint8 [n, block size].
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        y = blocks * (np.float32(1) / unit)
    codes = np.zeros(blocks.shape, dtype=np.uint8)
    for midpoint in midpoints(fmt):
        codes += y > midpoint
    return np.where(np.abs(unit) > 0, codes, np.uint8(fmt.zero_code))


for _format in (FORMAT_S, FORMAT_K):
    register_type(_format)


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
        d = stored_scale(signed_maximum(blocks))
        # the codes are those for the stored scale, not for m: that is what the decoder multiplies with
        codes = nearest_codes(blocks, d.astype(np.float32) / np.float32(LEVEL_SCALE), cls.format)
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


class BOF4_K(_Quant, qtype=gguf.GGMLQuantizationType(FORMAT_K.type_id)):  # type: ignore[misc,call-arg]
    """256 weights in 142 bytes: fp16 scale of the superblock, 16 signed 6-bit block scales, 256 codes.

    README, "Formats", says where every bit stands.
    """

    format = FORMAT_K
    levels = np.array(FORMAT_K.levels, dtype=np.float32)

    BLOCK = 16
    """Weights under one block scale."""

    UNIT = np.float32(1 / 4096)
    """What a block scale of 1 is worth where d is 1."""

    @classmethod
    def quantize(cls, tensor: Any) -> Any:
        """Encode [..., n] weights (numpy or torch) into uint8 [..., bytes of a row]."""
        return super().quantize(as_array(tensor))

    @classmethod
    def pack_scales(cls, scales: npt.NDArray[np.int8]) -> Blocks:
        """int8 [n, 16] of -32 to 31 to uint8 [n, 12]: low four bits of two scales a byte, then high two of four."""
        stored = (scales + np.int8(32)).astype(np.uint8)
        low = stored[:, :8] & np.uint8(15) | (stored[:, 8:] & np.uint8(15)) << np.uint8(4)
        high = (stored >> np.uint8(4)).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
        return np.concatenate([low, np.bitwise_or.reduce(high, axis=1)], axis=1)

    @classmethod
    def unpack_scales(cls, packed: Blocks) -> npt.NDArray[np.int8]:
        """uint8 [n, 12] to int8 [n, 16]."""
        low = np.concatenate([packed[:, :8] & np.uint8(15), packed[:, :8] >> np.uint8(4)], axis=1)
        high = packed[:, None, 8:] >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & np.uint8(3)
        stored = (low | high.reshape(-1, 16) << np.uint8(4)).astype(np.int8)
        return np.asarray(stored - np.int8(32), dtype=np.int8)

    @classmethod
    def quantize_blocks(cls, blocks: Weights) -> Blocks:
        """The absmax encoder with two levels of scales: float32 [n, 256] to uint8 [n, 142].

        The largest maximum gets the block scale -32, which has no positive counterpart. A superblock with a NaN or an
        infinity gets the scale NaN, which validation refuses.
        """
        with np.errstate(over="ignore"):
            d = stored_scale(signed_maximum(blocks) * np.float32(-4096 / (32 * LEVEL_SCALE)))
        unit = d.astype(np.float32) * cls.UNIT
        small = blocks.reshape(-1, cls.BLOCK)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            maxima = signed_maximum(small).reshape(-1, 16)
            scales = np.clip(np.rint(maxima / (unit * np.float32(LEVEL_SCALE))), -32, 31)
            scales = np.where(np.abs(unit) > 0, scales, 0).astype(np.int8)
            worth = (unit * scales.astype(np.float32)).reshape(-1, 1)
        codes = nearest_codes(small, worth, cls.format).reshape(-1, 2, 2, 64)
        qs = (codes[:, :, 0] | codes[:, :, 1] << np.uint8(4)).reshape(-1, 128)
        return np.concatenate([d.view(np.uint8), cls.pack_scales(scales), qs], axis=1)

    @classmethod
    def dequantize_blocks(cls, blocks: Blocks) -> Weights:
        """uint8 [n, 142] to float32 [n, 256]; exact: 11 bits of d, 5 of a block scale and 7 of a level."""
        d = blocks[:, :2].copy().view(np.float16).astype(np.float32) * cls.UNIT
        qs = blocks[:, 14:].reshape(-1, 2, 1, 64)
        codes = np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=2).reshape(-1, 16, cls.BLOCK)
        with np.errstate(invalid="ignore"):
            unit = d * cls.unpack_scales(blocks[:, 2:14]).astype(np.float32)
            return (unit[:, :, None] * cls.levels[codes]).reshape(-1, 256)  # type: ignore[no-any-return]


REFERENCES: dict[int, type[BOF4_S] | type[BOF4_K]] = {FORMAT_S.type_id: BOF4_S, FORMAT_K.type_id: BOF4_K}
"""The reference class of each type number."""
