"""Formats whose levels are fitted to each matrix or row: AAAC (arXiv 2605.08692) and any4 (arXiv 2507.04610)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gguf_bof4.bench.nf4 import levels as nf4_levels
from gguf_bof4.study.record import Format, Quantized, Tensor, in_blocks, numbers, whole
from gguf_bof4.study.rounding import nearest, nearest_codes, round_bf16, round_fp16

LEVELS = 16
ENTRY_BITS = 16
SCALE_BITS = 16
ROUNDS = 12
"""Of Lloyd's iteration; further ones change the error by less than a thousandth."""

SPLIT = 0.05
"""How far apart the two codebooks of AAAC begin, as a fraction of their levels."""

FITTED_NUMBERS = 2**18
"""Weights of a matrix that the two codebooks of AAAC are fitted to, at most: they have 32 entries."""


def _scales(groups: Tensor) -> Tensor:
    return round_fp16(groups.abs().amax(dim=1, keepdim=True))


def _normalized(groups: Tensor, scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0.0, groups / torch.where(scales == 0, 1.0, scales))


def _refitted(u: Tensor, weight: Tensor, book: Tensor) -> Tensor:
    """Every level to the weighted mean of its numbers; one without weight stays."""
    codes = nearest_codes(u, book).reshape(-1)
    mass = torch.bincount(codes, weight.reshape(-1).to(torch.float64), minlength=LEVELS)
    total = torch.bincount(codes, (weight * u).reshape(-1).to(torch.float64), minlength=LEVELS)
    return torch.where(mass > 0, total / torch.where(mass > 0, mass, 1.0), book.to(torch.float64)).to(torch.float32)


def _group_errors(u: Tensor, weight: Tensor, book: Tensor) -> Tensor:
    return (weight * torch.square(u - nearest(u, book))).sum(dim=1)


def fit_two_books(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two codebooks by weighted k-means: every group takes the one with the smaller error, each is fitted to its own.

    Args:
        u: float32 [groups, I], normalized.
        weight: of each squared error, same shape.

    Returns:
        float32 [16] each, ascending, rounded to bfloat16.
    """
    book = torch.from_numpy(nf4_levels())
    for _ in range(ROUNDS):
        book = _refitted(u, weight, book)
    books = [book * (1 - SPLIT), book * (1 + SPLIT)]
    for _ in range(ROUNDS):
        is_second = _group_errors(u, weight, books[1]) < _group_errors(u, weight, books[0])
        for k, chosen in enumerate((~is_second, is_second)):
            if bool(chosen.any()):
                books[k] = _refitted(u[chosen], weight[chosen], books[k])
    first, second = (round_bf16(book).sort().values for book in books)
    return first, second


@dataclass(frozen=True)
class AAAC(Format):
    """Two codebooks of 16 bfloat16 entries for a matrix; the sign of a group's float16 scale chooses one."""

    family: ClassVar[str] = "AAAC"
    summary: ClassVar[str] = "two fitted codebooks for a matrix, chosen by the sign of a group's scale"
    adaptive: ClassVar[bool] = True
    uses_importance: ClassVar[bool] = True

    I: int = whole(64, 1, 4096)  # noqa: E741

    @property
    def multiple(self) -> int:
        return self.I

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        return 4 * numbers(shape) + SCALE_BITS * numbers(shape) // self.I + 2 * LEVELS * ENTRY_BITS

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        groups = in_blocks(x, self.I)
        scales = _scales(groups)
        u = _normalized(groups, scales)
        h = torch.ones(x.shape[-1]) if importance is None else importance / importance.mean()
        weight = in_blocks(h.expand(x.shape), self.I) * torch.square(scales)
        step = max(1, u.numel() // FITTED_NUMBERS)
        first, second = fit_two_books(u[::step], weight[::step])
        is_second = _group_errors(u, weight, second) < _group_errors(u, weight, first)
        values = torch.where(is_second[:, None], nearest(u, second), nearest(u, first)) * scales
        return Quantized(values.reshape(x.shape), self.stored_bits(tuple(x.shape)))


@dataclass(frozen=True)
class Any4(Format):
    """A codebook of 16 bfloat16 entries for each row, and a float16 scale for each group of I."""

    family: ClassVar[str] = "ANY4"
    summary: ClassVar[str] = "a fitted codebook for each row, scales for groups of I"
    adaptive: ClassVar[bool] = True
    uses_importance: ClassVar[bool] = True

    I: int = whole(128, 1, 65536)  # noqa: E741

    @property
    def multiple(self) -> int:
        return self.I

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        n, rows = numbers(shape), numbers(shape) // shape[-1]
        return 4 * n + SCALE_BITS * n // self.I + LEVELS * ENTRY_BITS * rows

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        groups = in_blocks(x, self.I)
        scales = _scales(groups)
        n = x.shape[-1]
        u = _normalized(groups, scales).reshape(-1, n)
        h = torch.ones(n) if importance is None else importance / importance.mean()
        weight = h * torch.square(scales.expand(groups.shape).reshape(-1, n))
        books = torch.from_numpy(nf4_levels()).repeat(len(u), 1)
        for _ in range(ROUNDS):
            codes = nearest_codes(u, books).to(torch.int64)
            mass = torch.zeros_like(books).scatter_add_(1, codes, weight)
            total = torch.zeros_like(books).scatter_add_(1, codes, weight * u)
            books = torch.where(mass > 0, total / torch.where(mass > 0, mass, 1.0), books)
        books = round_bf16(books).sort(dim=1).values
        codes = nearest_codes(u, books).to(torch.int64)
        values = books.gather(1, codes).reshape(groups.shape) * scales
        return Quantized(values.reshape(x.shape), self.stored_bits(tuple(x.shape)))
