"""Precision of the products that take most of gptq's time: float32, or bf16 where the processor multiplies it.

In bf16 the inputs and weights of linear modules and the inputs that Hessians are made of are rounded to 8 significant
bits. Products are summed in float32, and each sum is rounded once more. The residual stream, norms, attention scores,
factors and the native encoder stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
"""By the names in PRECISIONS."""


def chosen(name: str, device: torch.device) -> str:
    """The precision that one of PRECISIONS means on a device, "f32" or "bf16".

    auto is float32 on GPUs, where the encoder takes longer than the model, and on processors without dot products of
    bf16, which widen each number first.
    """
    if name in DTYPES:
        return name
    if device.type != "cpu":
        return "f32"
    supported = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(ask is not None and ask() for ask in supported) else "f32"


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a^T b to a total.

    Args:
        total: float32 [columns of a, columns of b].
        a, b: of the same type, float32 or bf16, with the same number of rows.
    """
    if a.dtype == total.dtype:
        total.addmm_(a.T, b)
    else:
        total.add_(a.T @ b)


class _Bf16Linear(nn.Linear):
    """A linear module whose weight stays in float32 and is multiplied in bf16."""

    _rounded: tuple[torch.Tensor, torch.Tensor]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, rounded = self.__dict__.get("_rounded", (None, None))
        if rounded is None or weight is not self.weight:
            rounded = self.weight.bfloat16()
            self.__dict__["_rounded"] = self.weight, rounded
        bias = None if self.bias is None else self.bias.bfloat16()
        return functional.linear(input.bfloat16(), rounded, bias).to(input.dtype)


@contextmanager
def linear_in(dtype: torch.dtype, *modules: nn.Module) -> Iterator[None]:
    """Linear modules inside of these multiply in float32 or bf16; fused experts and the Conv1D of GPT-2 in float32."""
    parts = [part for module in modules for part in module.modules() if type(part) is nn.Linear]
    if dtype != torch.bfloat16:
        parts = []
    for part in parts:
        part.__class__ = _Bf16Linear
    try:
        yield
    finally:
        for part in parts:
            part.__class__ = nn.Linear
            part.__dict__.pop("_rounded", None)
