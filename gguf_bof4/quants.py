"""The numpy reference of every type, in the form of gguf's quants.py: one class per type.

Every operation on floats is in ggml_patch/src/format/ too, in the same order, so the two agree bit for bit. Importing
`gguf_bof4` registers the classes with the gguf package.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.formats import BOF4_K as FORMAT_K
from gguf_bof4.formats import BOF4_S as FORMAT_S
from gguf_bof4.formats import FORMATS, LEVEL_SCALE, SCALE_BYTES, Format
from gguf_bof4.gguf_files.types import register_type, register_upstream_types

Blocks = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float32]

FP16_MAX = np.float32(65504)

_Quant: Any = getattr(gguf.quants, "__Quant")

register_upstream_types()
for _format in FORMATS:
    register_type(_format)


def as_array(weights: Any) -> npt.NDArray[Any]:
    """Weights as numpy: torch tensors of float32, float16 and bfloat16 become float32.

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
    """Codes of the nearest levels; the code of level 0 everywhere where the unit is 0 or NaN.

    Args:
        blocks: float32 [n, weights under one scale].
        unit: float32 [n, 1], the weight that a level of 1 stands for.

    Returns:
        uint8 [n, weights under one scale].
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        y = blocks * (np.float32(1) / unit)
    codes = np.zeros(blocks.shape, dtype=np.uint8)
    for midpoint in midpoints(fmt):
        codes += y > midpoint
    return np.where(np.abs(unit) > 0, codes, np.uint8(fmt.zero_code))


class Reference:
    """What the reference classes of all types share; each also derives from gguf's own base class.

    A class gives `format`, and quantize_blocks and dequantize_blocks as gguf calls them.
    """

    format: ClassVar[Format]
    levels: ClassVar[Weights]
    """float32 [16], the levels times 127."""

    unit: ClassVar[np.float32]
    """The weight that a level of 1 stands for where every scale is 1."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        cls.levels = np.array(cls.format.levels, dtype=np.float32)
        numerator, denominator = cls.format.unit
        cls.unit = np.float32(numerator) / np.float32(denominator)
        super().__init_subclass__(**arguments)

    @classmethod
    def quantize(cls, tensor: Any) -> Any:
        """Encode [..., n] weights (numpy or torch) into uint8 [..., bytes of a row], by absmax."""
        return super().quantize(as_array(tensor))  # type: ignore[misc]

    @classmethod
    def dequantize(cls, tensor: Any) -> Any:
        """Decode uint8 [..., bytes of a row] into float32 [..., n]."""
        return super().dequantize(tensor)  # type: ignore[misc]

    @classmethod
    def quantize_blocks(cls, blocks: Weights) -> Blocks:
        """float32 [n, block size] to uint8 [n, block bytes]."""
        raise NotImplementedError

    @classmethod
    def dequantize_blocks(cls, blocks: Blocks) -> Weights:
        """uint8 [n, block bytes] to float32 [n, block size]."""
        raise NotImplementedError

    @classmethod
    def stored_scales(cls, blocks: Blocks) -> Weights:
        """The fp16 scale of each block, as float32 [n, 1]."""
        return blocks[:, :SCALE_BYTES].copy().view(np.float16).astype(np.float32)


class BOF4_S(Reference, _Quant, qtype=gguf.GGMLQuantizationType(FORMAT_S.type_id)):  # type: ignore[misc]
    """64 weights in 34 bytes: fp16 signed block maximum, then 32 bytes of codes.

    Low nibbles hold weights 0 to 31, high nibbles weights 32 to 63.
    """

    format = FORMAT_S

    @classmethod
    def quantize_blocks(cls, blocks: Weights) -> Blocks:
        """The paper's absmax encoder: float32 [n, 64] to uint8 [n, 34].

        A block with a NaN or an infinity gets the scale NaN, which validation refuses.
        """
        d = stored_scale(signed_maximum(blocks))
        # the codes are those for the stored scale, not for m: the decoder multiplies by the stored one
        codes = nearest_codes(blocks, d.astype(np.float32) / np.float32(LEVEL_SCALE), cls.format)
        half = cls.format.block_size // 2
        qs = codes[:, :half] | codes[:, half:] << np.uint8(4)
        return np.concatenate([d.view(np.uint8), qs], axis=1)

    @classmethod
    def dequantize_blocks(cls, blocks: Blocks) -> Weights:
        """uint8 [n, 34] to float32 [n, 64]."""
        qs = blocks[:, cls.format.codes_at :]
        codes = np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=1)
        # scale * level is exact (11 + 7 bits), so there is one rounding, and level 127 gives exactly the scale
        with np.errstate(invalid="ignore"):
            return np.asarray(cls.stored_scales(blocks) * cls.levels[codes] * cls.unit)


class BOF4_K(Reference, _Quant, qtype=gguf.GGMLQuantizationType(FORMAT_K.type_id)):  # type: ignore[misc]
    """256 weights in 142 bytes: fp16 scale of the superblock, 16 signed 6-bit sub-block scales, 256 codes.

    Sub-blocks are runs of 16 weights. The format specification has the place of every bit.
    """

    format = FORMAT_K

    _CHUNK = 128
    """Weights whose codes are packed together: those of the first 64 in low nibbles, of the others in high ones."""

    @classmethod
    def pack_scales(cls, scales: npt.NDArray[np.int8]) -> Blocks:
        """int8 [n, 16] of -32 to 31 to uint8 [n, 12]: low four bits of two scales a byte, then high two of four."""
        stored = (scales + np.int8(cls.format.sub_scale_offset)).astype(np.uint8)
        low = stored[:, :8] & np.uint8(15) | (stored[:, 8:] & np.uint8(15)) << np.uint8(4)
        high = (stored >> np.uint8(4)).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
        return np.concatenate([low, np.bitwise_or.reduce(high, axis=1)], axis=1)

    @classmethod
    def unpack_scales(cls, packed: Blocks) -> npt.NDArray[np.int8]:
        """uint8 [n, 12] to int8 [n, 16]."""
        low = np.concatenate([packed[:, :8] & np.uint8(15), packed[:, :8] >> np.uint8(4)], axis=1)
        high = packed[:, None, 8:] >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & np.uint8(3)
        stored = (low | high.reshape(-1, cls.format.n_sub_blocks) << np.uint8(4)).astype(np.int8)
        return np.asarray(stored - np.int8(cls.format.sub_scale_offset), dtype=np.int8)

    @classmethod
    def quantize_blocks(cls, blocks: Weights) -> Blocks:
        """The absmax encoder with scales of two levels: float32 [n, 256] to uint8 [n, 142].

        The largest maximum gets the sub-block scale -32, which has no positive counterpart. A superblock with a NaN or
        an infinity gets the scale NaN, which validation refuses.
        """
        fmt = cls.format
        offset, (numerator, denominator) = fmt.sub_scale_offset, fmt.unit
        with np.errstate(over="ignore"):
            d = stored_scale(signed_maximum(blocks) * np.float32(-denominator / (numerator * offset * LEVEL_SCALE)))
        unit = d.astype(np.float32) * cls.unit
        small = blocks.reshape(-1, fmt.sub_block_size)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            maxima = signed_maximum(small).reshape(-1, fmt.n_sub_blocks)
            scales = np.clip(np.rint(maxima / (unit * np.float32(LEVEL_SCALE))), -offset, offset - 1)
            scales = np.where(np.abs(unit) > 0, scales, 0).astype(np.int8)
            units = (unit * scales.astype(np.float32)).reshape(-1, 1)
        codes = nearest_codes(small, units, fmt).reshape(-1, fmt.block_size // cls._CHUNK, 2, cls._CHUNK // 2)
        qs = (codes[:, :, 0] | codes[:, :, 1] << np.uint8(4)).reshape(-1, fmt.block_size // 2)
        return np.concatenate([d.view(np.uint8), cls.pack_scales(scales), qs], axis=1)

    @classmethod
    def dequantize_blocks(cls, blocks: Blocks) -> Weights:
        """uint8 [n, 142] to float32 [n, 256]; exact: 11 bits of the scale, 5 of a sub-block scale, 7 of a level."""
        fmt = cls.format
        qs = blocks[:, fmt.codes_at :].reshape(-1, fmt.block_size // cls._CHUNK, 1, cls._CHUNK // 2)
        codes = np.concatenate([qs & np.uint8(15), qs >> np.uint8(4)], axis=2)
        codes = codes.reshape(-1, fmt.n_sub_blocks, fmt.sub_block_size)
        scales = cls.unpack_scales(blocks[:, SCALE_BYTES : fmt.codes_at])
        with np.errstate(invalid="ignore"):
            unit = cls.stored_scales(blocks) * cls.unit * scales.astype(np.float32)
            return np.asarray((unit[:, :, None] * cls.levels[codes]).reshape(-1, fmt.block_size))


REFERENCES: dict[int, type[Reference]] = {cls.format.type_id: cls for cls in Reference.__subclasses__()}
"""The reference class of each type number."""
