"""Formats of 16 levels under one scale for a block: NF4, AF4, BOF4 and BOF4-S, with and without OPQ."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch

from gguf_bof4.bench.nf4 import levels as nf4_levels
from gguf_bof4.codebook.law import Metric, Normalization
from gguf_bof4.errors import UserError
from gguf_bof4.lists import ENTRY_BITS, POINTER_BITS
from gguf_bof4.normal import normal_quantile
from gguf_bof4.study.levels import Levels, af4_levels, solved
from gguf_bof4.study.record import Format, Quantized, Tensor, choice, fraction, in_blocks, numbers, whole
from gguf_bof4.study.rounding import nearest, round_bf16, round_fp16


def outlier_threshold(block: int, quantile: float) -> float:
    """F_M^-1(q) of eq. 9: how many sample deviations of its block a weight exceeds to be an outlier."""
    return normal_quantile((quantile ** (1 / block) + 1) / 2)


def outliers(blocks: Tensor, quantile: float) -> Tensor:
    """Which weights are outliers of their block (eq. 9); boolean, shape of float32 [n, block]."""
    limit = outlier_threshold(blocks.shape[1], quantile)
    return blocks.abs() > blocks.to(torch.float64).std(dim=1, keepdim=True) * limit


@dataclass(frozen=True)
class LevelFormat(Format):
    """16 levels, and a scale for each block of I.

    Attributes:
        I: numbers in a block.
        scale: bits of a scale: 16 (float16), 32 (float32), or 0: float32 that is not counted, the no-cost scale of the
            papers' figures.
        opq: the quantile of outlier-preserving quantization; 0: no outliers are kept.
    """

    signed: ClassVar[bool] = False

    I: int = whole(64, 8, 4096)  # noqa: E741  (the papers' letter)
    scale: int = whole(16, 0, 32)
    opq: float = fraction(0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in {0, 16, 32}:
            raise UserError(f"format {self.family}: scale is {self.scale}, take 0 (not counted), 16 or 32 bits")

    @property
    def levels(self) -> Levels:
        """float32 [16], ascending."""
        raise NotImplementedError

    @property
    def multiple(self) -> int:
        return self.I

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        n = numbers(shape)
        pointers = POINTER_BITS * (n // shape[-1] + 1) if self.opq else 0
        return 4 * n + self.scale * n // self.I + pointers

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        blocks = in_blocks(x, self.I)
        bits = self.stored_bits(tuple(x.shape))
        kept = None
        if self.opq:
            kept = outliers(blocks, self.opq)
            bits += ENTRY_BITS * int(kept.sum())
            rest = blocks.masked_fill(kept, 0.0)
        else:
            rest = blocks
        values = self._block_values(rest)
        if kept is not None:
            values = torch.where(kept, round_bf16(blocks), values)
        return Quantized(values.reshape(x.shape), bits)

    def _block_values(self, blocks: Tensor) -> Tensor:
        scales = self._scales(blocks)
        inverse = torch.where(scales == 0, 0.0, 1 / scales)
        # 1/scale overflows for subnormal scales: divide there
        normalized = torch.where(inverse.isinf(), blocks / scales, blocks * inverse)
        return scales * nearest(normalized, torch.from_numpy(self.levels))

    def _scales(self, blocks: Tensor) -> Tensor:
        """The stored scale of each block, float32 [n, 1]."""
        magnitude = blocks.abs()
        if self.signed:
            scales = blocks.gather(1, magnitude.argmax(dim=1, keepdim=True))
        else:
            scales = magnitude.amax(dim=1, keepdim=True)
        return round_fp16(scales) if self.scale == 16 else scales


@dataclass(frozen=True)
class NF4(LevelFormat):
    """Quantiles of the normal distribution (arXiv 2305.14314)."""

    family: ClassVar[str] = "NF4"
    summary: ClassVar[str] = "normal quantiles, block maximum as scale (QLoRA, without double quantization)"

    @functools.cached_property
    def levels(self) -> Levels:
        return nf4_levels()


@dataclass(frozen=True)
class AF4(LevelFormat):
    """Levels for the absolute error of normalized weights."""

    family: ClassVar[str] = "AF4"
    summary: ClassVar[str] = "least absolute error of the normalized weights for blocks of I"

    @functools.cached_property
    def levels(self) -> Levels:
        return af4_levels(self.I)


@dataclass(frozen=True)
class BOF4(LevelFormat):
    """Block-wise optimal float with the block's largest magnitude as scale (arXiv 2505.06653).

    Attributes:
        metric: of the weights' error that the levels minimize.
        fixed: levels that are kept, separated by "/" in a name.
    """

    family: ClassVar[str] = "BOF4"
    summary: ClassVar[str] = "least error of the weights for blocks of I, unsigned normalization"
    normalization: ClassVar[Normalization] = "absolute"

    metric: str = choice("mse", "mae")
    fixed: str = choice("-1/0/1", "none", "0", "1", "-1/1", "0/1")

    @functools.cached_property
    def levels(self) -> Levels:
        metric: Metric = "mae" if self.metric == "mae" else "mse"
        fixed = () if self.fixed == "none" else tuple(float(level) for level in self.fixed.split("/"))
        return solved(self.I, self.normalization, metric, fixed, 16)


@dataclass(frozen=True)
class BOF4S(BOF4):
    """The same with the element of largest magnitude as scale, sign included."""

    family: ClassVar[str] = "BOF4-S"
    summary: ClassVar[str] = "the same, signed normalization: the formula behind BOF4_S"
    normalization: ClassVar[Normalization] = "signed"
    signed: ClassVar[bool] = True

    fixed: str = choice("0/1", "none", "0", "1", "-1/1", "-1/0/1")
