"""Formats without a table of levels: integers, small floats, powers of two, and blocks that share an exponent.

The definitions of fixed point, MiniFloat, DMF, BFP, BM and BL are those of arXiv 2310.05079; MXFP4, MXFP6 and MXFP8
those of the OCP's microscaling specification 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gguf_bof4.study.record import Format, Quantized, Tensor, choice, in_blocks, numbers, whole
from gguf_bof4.study.rounding import (
    clamp_power,
    nearest_power,
    power_below,
    power_not_below,
    round_e4m3,
    round_float,
    round_fp16,
)

SHARED_BITS = 8
"""Of a shared exponent, or of the bias that blocks share."""

LOWEST, HIGHEST = -127, 127
"""Exponents that 8 bits hold, one value of them being reserved (E8M0's NaN)."""

SCALE_BITS = 16
TENSOR_SCALE_BITS = 32


class _Plain(Format):
    """A format whose bits follow from the shape, and whose values are computed in double precision."""

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        values = self._values(in_blocks(x.to(torch.float64), self._run(x)))
        return Quantized(values.to(torch.float32).reshape(x.shape), self.stored_bits(tuple(x.shape)))

    def _run(self, x: Tensor) -> int:
        """Numbers that `_values` gets in a row."""
        return self.multiple

    def _values(self, blocks: Tensor) -> Tensor:
        """Decoded float64 [n, run] of float64 [n, run]."""
        raise NotImplementedError


class _OfTensor(_Plain):
    """One without blocks: what numbers share, they share with the whole tensor."""

    @property
    def multiple(self) -> int:
        return 1

    def _run(self, x: Tensor) -> int:
        return x.shape[-1]


class _OfBlocks(_Plain):
    """One with blocks of I numbers."""

    I: int  # noqa: E741

    @property
    def multiple(self) -> int:
        return self.I


@dataclass(frozen=True)
class Identity(_OfTensor):
    """Numbers as they are: what a comparison is made with."""

    family: ClassVar[str] = "F32"
    summary: ClassVar[str] = "unquantized"

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return 32 * numbers(shape)

    def _values(self, blocks: Tensor) -> Tensor:
        return blocks


@dataclass(frozen=True)
class BFloat16(_OfTensor):
    """The upper half of a float32."""

    family: ClassVar[str] = "BF16"
    summary: ClassVar[str] = "bfloat16"

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return 16 * numbers(shape)

    def _values(self, blocks: Tensor) -> Tensor:
        return blocks.to(torch.float32).to(torch.bfloat16).to(torch.float64)


@dataclass(frozen=True)
class Integer(_OfBlocks):
    """Integers of w bits and a float16 scale for each group of I.

    Attributes:
        kind: "symmetric": from -(2^(w-1) - 1), the largest magnitude at its end. "asymmetric": from 0 with an integer
            zero point of w bits, the smallest and the largest number (and 0) at the ends.
    """

    family: ClassVar[str] = "INT"
    summary: ClassVar[str] = "integers with a float16 scale for each group of I"

    w: int = whole(4, 2, 8)
    I: int = whole(128, 1, 65536)  # noqa: E741
    kind: str = choice("symmetric", "asymmetric")

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        n = numbers(shape)
        zeros = self.w if self.kind == "asymmetric" else 0
        return self.w * n + (SCALE_BITS + zeros) * n // self.I

    def _values(self, blocks: Tensor) -> Tensor:
        if self.kind == "symmetric":
            top = 2 ** (self.w - 1) - 1
            scale = round_fp16((blocks.abs().amax(dim=1, keepdim=True) / top).to(torch.float32)).to(torch.float64)
            codes = torch.round(blocks / _nonzero(scale)).clamp(-top, top)
            return codes * scale
        top = 2**self.w - 1
        low = blocks.amin(dim=1, keepdim=True).clamp(max=0.0)
        high = blocks.amax(dim=1, keepdim=True).clamp(min=0.0)
        scale = round_fp16(((high - low) / top).to(torch.float32)).to(torch.float64)
        zero = torch.round(-low / _nonzero(scale)).clamp(0, top)
        codes = (torch.round(blocks / _nonzero(scale)) + zero).clamp(0, top)
        return (codes - zero) * scale


def _nonzero(scale: Tensor) -> Tensor:
    """A scale to divide by: 0 becomes 1, and everything under it is decoded to 0 all the same."""
    return torch.where(scale == 0, 1.0, scale)


@dataclass(frozen=True)
class FixedPoint(_OfTensor):
    """Integers of w bits times a power of two, one for the tensor: the finest that holds its largest magnitude."""

    family: ClassVar[str] = "FIXED"
    summary: ClassVar[str] = "fixed point, one number of fraction bits for a tensor"

    w: int = whole(8, 2, 16)

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return self.w * numbers(shape) + SHARED_BITS

    def _values(self, blocks: Tensor) -> Tensor:
        half = 2.0 ** (self.w - 1)
        step = clamp_power(power_not_below(blocks.abs().max()) / half, LOWEST, HIGHEST)
        return torch.round(blocks / step).clamp(-half, half - 1) * step


@dataclass(frozen=True)
class MiniFloat(_OfTensor):
    """Sign, E exponent bits, M mantissa bits behind an implicit one; subnormals; saturates; no infinity, no NaN."""

    family: ClassVar[str] = "MINIFLOAT"
    summary: ClassVar[str] = "small floats without a scale, saturating"

    E: int = whole(4, 2, 8)
    M: int = whole(3, 0, 7)

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return (1 + self.E + self.M) * numbers(shape)

    def _values(self, blocks: Tensor) -> Tensor:
        bias = 2 ** (self.E - 1) - 1
        largest = 2.0 ** (2**self.E - 1 - bias) * (2 - 2.0**-self.M)
        return round_float(blocks, self.M, 2.0 ** (1 - bias), largest)


@dataclass(frozen=True)
class DMF(_OfTensor):
    """Denormalized MiniFloat: no implicit one, so a number has several spellings and one bit less of precision."""

    family: ClassVar[str] = "DMF"
    summary: ClassVar[str] = "denormalized MiniFloat: small floats without an implicit one"

    E: int = whole(4, 2, 8)
    M: int = whole(3, 1, 7)

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return (1 + self.E + self.M) * numbers(shape)

    def _values(self, blocks: Tensor) -> Tensor:
        bias = 2 ** (self.E - 1) - 1
        # the mantissas of an exponent from a half on are a float with M - 1 bits behind its leading one
        largest = 2.0 ** (2**self.E - 1 - bias) * (1 - 2.0**-self.M)
        return round_float(blocks, self.M - 1, 2.0 ** (-bias - 1), largest)


def _log_values(x: Tensor, w: int, largest: Tensor) -> Tensor:
    """Signed powers of two of 2^(w-1) exponents, the highest being that of `largest`; 0 becomes the smallest one."""
    lowest = largest * 2.0 ** -(2 ** (w - 1) - 1)
    power = torch.minimum(torch.maximum(nearest_power(x), lowest), largest)
    return torch.where(x < 0, -power, power)


@dataclass(frozen=True)
class Log(_OfTensor):
    """Sign and w - 1 exponent bits, with one bias for the tensor; there is no zero."""

    family: ClassVar[str] = "LOG"
    summary: ClassVar[str] = "powers of two, one exponent bias for a tensor"

    w: int = whole(8, 2, 8)

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return self.w * numbers(shape) + SHARED_BITS

    def _values(self, blocks: Tensor) -> Tensor:
        return _log_values(blocks, self.w, clamp_power(nearest_power(blocks.abs().max()), LOWEST, HIGHEST))


@dataclass(frozen=True)
class BL(_OfBlocks):
    """Block logarithm: sign and w - 1 exponent bits, with a shared bias for each block of I; there is no zero."""

    family: ClassVar[str] = "BL"
    summary: ClassVar[str] = "block logarithm: powers of two with a shared exponent bias"

    w: int = whole(8, 2, 8)
    I: int = whole(16, 1, 4096)  # noqa: E741

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return self.w * numbers(shape) + SHARED_BITS * numbers(shape) // self.I

    def _values(self, blocks: Tensor) -> Tensor:
        largest = nearest_power(blocks.abs().amax(dim=1, keepdim=True))
        return _log_values(blocks, self.w, clamp_power(largest, LOWEST, HIGHEST))


@dataclass(frozen=True)
class BFP(_OfBlocks):
    """Block floating point: a shared exponent for each block of I, sign and w - 1 mantissa bits for a number."""

    family: ClassVar[str] = "BFP"
    summary: ClassVar[str] = "block floating point: sign, mantissa, a shared exponent"

    w: int = whole(6, 2, 16)
    I: int = whole(16, 1, 4096)  # noqa: E741

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return self.w * numbers(shape) + SHARED_BITS * numbers(shape) // self.I

    def _values(self, blocks: Tensor) -> Tensor:
        scale = clamp_power(power_not_below(blocks.abs().amax(dim=1, keepdim=True)), LOWEST, HIGHEST)
        steps = 2.0 ** (self.w - 1)
        return torch.round(blocks / scale * steps).clamp(1 - steps, steps - 1) / steps * scale


@dataclass(frozen=True)
class BM(_OfBlocks):
    """Block MiniFloat: a shared exponent bias for each block of I that puts its largest number at the top."""

    family: ClassVar[str] = "BM"
    summary: ClassVar[str] = "block MiniFloat: small floats with a shared exponent bias"

    E: int = whole(4, 1, 8)
    M: int = whole(3, 0, 7)
    I: int = whole(16, 1, 4096)  # noqa: E741

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        n = numbers(shape)
        return (1 + self.E + self.M) * n + SHARED_BITS * n // self.I

    def _values(self, blocks: Tensor) -> Tensor:
        top = clamp_power(power_below(blocks.abs().amax(dim=1, keepdim=True)), LOWEST, HIGHEST)
        # fields of the exponent are 0 (subnormal), 1 to 2^E - 1
        return round_float(blocks, self.M, top * 2.0 ** -(2**self.E - 2), top * (2 - 2.0**-self.M))


@dataclass(frozen=True)
class Element:
    """A small float of the OCP's specification.

    Attributes:
        exponent, mantissa: bits.
        largest: magnitude.
    """

    exponent: int
    mantissa: int
    largest: float

    @property
    def bits(self) -> int:
        """With the sign."""
        return 1 + self.exponent + self.mantissa

    @property
    def smallest(self) -> float:
        """The smallest normal number."""
        return float(2.0 ** (2 - 2 ** (self.exponent - 1)))

    @property
    def top(self) -> float:
        """The power of two of the largest numbers."""
        return float(power_below(torch.tensor(self.largest, dtype=torch.float64)))

    def round(self, x: Tensor) -> Tensor:
        """The nearest one, float64 to float64."""
        return round_float(x, self.mantissa, self.smallest, self.largest)


ELEMENTS = {
    "E2M1": Element(2, 1, 6.0),
    "E3M2": Element(3, 2, 28.0),
    "E2M3": Element(2, 3, 7.5),
    "E4M3": Element(4, 3, 448.0),
    "E5M2": Element(5, 2, 57344.0),
}


class _MX(_OfBlocks):
    """Small floats and a power of two (E8M0) for each block of I."""

    element: str

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return ELEMENTS[self.element].bits * numbers(shape) + SHARED_BITS * numbers(shape) // self.I

    def _values(self, blocks: Tensor) -> Tensor:
        element = ELEMENTS[self.element]
        largest = power_below(blocks.abs().amax(dim=1, keepdim=True))
        scale = clamp_power(largest / element.top, LOWEST, HIGHEST)
        return element.round(blocks / scale) * scale


@dataclass(frozen=True)
class MXFP4(_MX):
    """4-bit microscaling floats."""

    family: ClassVar[str] = "MXFP4"
    summary: ClassVar[str] = "OCP microscaling: 4-bit floats with a power of two for 32"

    element: str = choice("E2M1")
    I: int = whole(32, 1, 4096)  # noqa: E741


@dataclass(frozen=True)
class MXFP6(_MX):
    """6-bit microscaling floats."""

    family: ClassVar[str] = "MXFP6"
    summary: ClassVar[str] = "OCP microscaling: 6-bit floats with a power of two for 32"

    element: str = choice("E2M3", "E3M2")
    I: int = whole(32, 1, 4096)  # noqa: E741


@dataclass(frozen=True)
class MXFP8(_MX):
    """8-bit microscaling floats."""

    family: ClassVar[str] = "MXFP8"
    summary: ClassVar[str] = "OCP microscaling: 8-bit floats with a power of two for 32"

    element: str = choice("E4M3", "E5M2")
    I: int = whole(32, 1, 4096)  # noqa: E741


@dataclass(frozen=True)
class NVFP4(Format):
    """E2M1 with an E4M3 scale for each block of I, and a float32 scale for the tensor."""

    family: ClassVar[str] = "NVFP4"
    summary: ClassVar[str] = "4-bit floats, E4M3 scales for 16, a float32 scale for the tensor"

    I: int = whole(16, 1, 4096)  # noqa: E741

    @property
    def multiple(self) -> int:
        return self.I

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return 4 * numbers(shape) + 8 * numbers(shape) // self.I + TENSOR_SCALE_BITS

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        blocks, element = in_blocks(x.to(torch.float64), self.I), ELEMENTS["E2M1"]
        maxima = blocks.abs().amax(dim=1, keepdim=True)
        whole_scale = (maxima.max() / (element.largest * ELEMENTS["E4M3"].largest)).to(torch.float32).to(torch.float64)
        scale = round_e4m3(maxima / element.largest / _nonzero(whole_scale)) * whole_scale
        values = element.round(blocks / _nonzero(scale)) * scale
        return Quantized(values.to(torch.float32).reshape(x.shape), self.stored_bits(tuple(x.shape)))


@dataclass(frozen=True)
class MX4(_Plain):
    """Shared microexponents: 8 bits of exponent for 16 numbers, 1 bit for 2 that halves their unit, m bits and a sign.

    Attributes:
        m: bits of a magnitude. With 2 a number takes 4 bits in all, with 3 five.
    """

    family: ClassVar[str] = "MX4"
    summary: ClassVar[str] = "shared microexponents: 8 bits for 16, 1 bit for 2, sign and m bits"

    m: int = whole(2, 1, 8)

    _BLOCK: ClassVar[int] = 16
    _PAIR: ClassVar[int] = 2

    @property
    def multiple(self) -> int:
        return self._BLOCK

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        n = numbers(shape)
        return (1 + self.m) * n + SHARED_BITS * n // self._BLOCK + n // self._PAIR

    def _values(self, blocks: Tensor) -> Tensor:
        pairs = blocks.reshape(len(blocks), -1, self._PAIR)
        scale = clamp_power(2 * power_below(blocks.abs().amax(dim=1)), LOWEST, HIGHEST)[:, None, None]
        is_small = pairs.abs().amax(dim=2, keepdim=True) < scale / 2
        unit = torch.where(is_small, scale / 2, scale) * 2.0**-self.m
        top = 2**self.m - 1
        return (torch.round(pairs / unit).clamp(-top, top) * unit).reshape(blocks.shape)


@dataclass(frozen=True)
class VSQ(Format):
    """Per-vector scaled quantization: 4-bit integers, an integer scale of s bits for 16, a float32 scale for a row."""

    family: ClassVar[str] = "VSQ"
    summary: ClassVar[str] = "per-vector scaled INT4: integer scales for 16, a float32 scale for a row"

    s: int = whole(4, 1, 8)

    _VECTOR: ClassVar[int] = 16
    _TOP: ClassVar[int] = 7

    @property
    def multiple(self) -> int:
        return self._VECTOR

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        n = numbers(shape)
        return 4 * n + self.s * n // self._VECTOR + 32 * n // shape[-1]

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        vectors = x.to(torch.float64).reshape(-1, x.shape[-1] // self._VECTOR, self._VECTOR)
        wanted = vectors.abs().amax(dim=2, keepdim=True) / self._TOP
        of_row = (wanted.amax(dim=1, keepdim=True) / (2**self.s - 1)).to(torch.float32).to(torch.float64)
        scale = torch.round(wanted / _nonzero(of_row)).clamp(0, 2**self.s - 1) * of_row
        codes = torch.round(vectors / _nonzero(scale)).clamp(-self._TOP, self._TOP)
        values = torch.where(scale == 0, 0.0, codes * scale)
        return Quantized(values.to(torch.float32).reshape(x.shape), self.stored_bits(tuple(x.shape)))
