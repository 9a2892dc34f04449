"""Matrices of which only the scales of blocks can be trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gguf_bof4.encoders.encoder import Encoded
from gguf_bof4.encoders.gptq.refine.factors import factors, placed
from gguf_bof4.formats import FP16_MAX, Format


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
        self.outliers = placed(encoded.outliers, places)

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
