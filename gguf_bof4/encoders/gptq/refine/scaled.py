"""Matrices of which only the scales of blocks can be trained: what an encoded tensor is the product of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gguf_bof4 import native
from gguf_bof4.encoders.encoder import Encoded
from gguf_bof4.formats import FP16_MAX, SCALE_BYTES, Format
from gguf_bof4.lists import OutlierList

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """An encoded tensor as factors: weight = scale * unit * multiplier, plus outliers.

    Attributes:
        scales: of blocks, float32 [rows, blocks of a row].
        multipliers: levels times scales of sub-blocks, integers [rows, n].
        unit: what a multiplier of 1 is worth where the scale is 1.
    """

    scales: Floats
    multipliers: npt.NDArray[np.int8] | npt.NDArray[np.int16]
    unit: float


def _blocks(data: npt.NDArray[np.uint8], fmt: Format) -> npt.NDArray[np.uint8]:
    return data.reshape(len(data), -1, fmt.block_bytes)


def factors(data: npt.NDArray[np.uint8], fmt: Format) -> Factors:
    """Take the scales of blocks out of an encoded tensor.

    Args:
        data: uint8 [rows, bytes of a row].
    """
    blocks = _blocks(data, fmt)
    scales = blocks[..., :SCALE_BYTES].copy().view(np.float16)[..., 0].astype(np.float32)
    of_one = blocks.copy()
    of_one[..., :SCALE_BYTES] = np.array([1], dtype=np.float16).view(np.uint8)
    numerator, denominator = fmt.unit
    unit = numerator / denominator
    decoded = native.dequantize(of_one.reshape(data.shape), gguf.GGMLQuantizationType(fmt.type_id))
    multipliers = np.rint(decoded / np.float32(unit)).astype(np.int16)
    small = multipliers.astype(np.int8)
    return Factors(scales, small if np.array_equal(small, multipliers) else multipliers, unit)


def with_scales(data: npt.NDArray[np.uint8], fmt: Format, scales: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
    """An encoded tensor with other scales of its blocks.

    Args:
        data: uint8 [rows, bytes of a row].
        scales: float16 [rows, blocks of a row].
    """
    blocks = _blocks(data, fmt).copy()
    blocks[..., :SCALE_BYTES] = scales[..., None].view(np.uint8)
    return blocks.reshape(data.shape)


class _Product(torch.autograd.Function):
    """Inputs times a matrix in factors; the matrix is made anew in both directions, so that memory holds codes."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, scales: torch.Tensor, matrix: ScaledLinear) -> torch.Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(inputs, scales)
        return inputs @ matrix.weights(scales).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        inputs, scales = ctx.saved_tensors
        matrix, gradient = ctx.matrix, gradients[0]
        of_inputs = gradient @ matrix.weights(scales)
        of_weights = gradient.flatten(0, -2).T @ inputs.flatten(0, -2)
        products = of_weights.view(matrix.multipliers.shape).mul_(matrix.multipliers)
        return of_inputs, products.sum(dim=2).mul_(matrix.unit), None


class ScaledLinear(nn.Module):
    """A linear module whose matrix is an encoded tensor, of which the scales can be trained.

    Args:
        encoded: the tensor.
        places: for each of its rows the row of the module, int64 [rows].
        bias: of the module.

    Attributes:
        change: float32 [rows, blocks of a row], relative: the scales are scales_before * (1 + change).
        is_rounded: scales are rounded to fp16, as a file stores them.
    """

    multipliers: torch.Tensor
    scales_before: torch.Tensor

    def __init__(self, encoded: Encoded, fmt: Format, places: npt.NDArray[np.int64], bias: nn.Parameter | None) -> None:
        super().__init__()
        made = factors(encoded.data, fmt)
        rows, n_blocks = made.scales.shape
        order = np.empty_like(places)
        order[places] = np.arange(rows)
        shape = (rows, n_blocks, fmt.block_size)
        self.encoded, self.format, self.places, self.unit = encoded, fmt, places, made.unit
        self.is_rounded = False
        self.register_buffer("multipliers", torch.from_numpy(made.multipliers[order].reshape(shape)))
        self.register_buffer("scales_before", torch.from_numpy(made.scales[order]))
        self.change = nn.Parameter(torch.zeros(rows, n_blocks))
        self.bias = bias
        self.outliers = _placed(encoded.outliers, places)

    def scales(self) -> torch.Tensor:
        """float32 [rows, blocks of a row]."""
        made = self.scales_before * (1 + self.change)
        return made.clamp(-FP16_MAX, FP16_MAX).half().float() if self.is_rounded else made

    def weights(self, scales: torch.Tensor) -> torch.Tensor:
        """The matrix with these scales, float32 [rows, n], outliers included."""
        made = torch.mul(self.multipliers, (scales * self.unit)[..., None]).flatten(1)
        if self.outliers is not None:
            rows, columns, values = self.outliers
            made[rows, columns] += values
        return made

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = _Product.apply(inputs, self.scales(), self)  # type: ignore[no-untyped-call]
        return made if self.bias is None else made + self.bias

    def stored_scales(self) -> npt.NDArray[np.float16]:
        """The scales as they are now, in the order of the tensor's rows: float16 [rows, blocks of a row]."""
        made = self.scales().detach().clamp(-FP16_MAX, FP16_MAX).half().cpu().numpy()
        return np.asarray(made[self.places])


def _placed(
    outliers: OutlierList | None, places: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Rows of the module, columns and values of outliers."""
    if outliers is None or not outliers.entries.size:
        return None
    rows = torch.from_numpy(places[outliers.rows])
    return rows, torch.from_numpy(outliers.columns), torch.from_numpy(outliers.values.copy())
