"""The second moments of a layer's inputs, factored for the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4.encoders.gptq.layer import Workers
from gguf_bof4.native import PANEL

Floats = npt.NDArray[np.float32]

_SUB_BLOCKS = {"BOF4_S": 64, "BOF4_K": 16}
"""Weights that share the innermost scale."""

_MORE_DAMPING = 10.0

_ROWS_AT_ONCE = 1024
"""Of a system of equations that a worker solves. A constant, because roundings follow from it."""


@dataclass(frozen=True)
class Factor:
    """H = (I + M) diag(D) (I + M)^T with M strictly upper, rows and columns in the order of processing.

    Then a row w that becomes q loses sum_k D_k (t_k - q_k)^2, with t_k = w_k + sum_{j<k} (w_j - q_j) M[j, k].

    Attributes:
        order: int32 [n], the column that is processed k-th.
        feedback: M, float32 [n / 64, n, 64].
        curvature: D, float32 [n].
        moments: H, damped, float32 [n / 64, n, 64].
        damping: what it took; larger than what was asked for where H was too near to singular.
    """

    order: npt.NDArray[np.int32]
    feedback: Floats
    curvature: Floats
    moments: Floats
    damping: float


def processing_order(diagonal: Floats, qtype: gguf.GGMLQuantizationType, act_order: bool) -> npt.NDArray[np.int32]:
    """Columns in the order of processing: as they stand, or those with the largest inputs first.

    Whole blocks are moved, then the blocks inside a superblock, then the columns inside a block, so that columns
    which share a scale stay together.

    Args:
        diagonal: float32 [n], mean squares of the inputs.
    """
    n = diagonal.size
    if not act_order:
        return np.arange(n, dtype=np.int32)
    levels = [gguf.GGML_QUANT_SIZES[qtype][0], _SUB_BLOCKS[qtype.name], 1]
    keys = [np.repeat(-diagonal.reshape(-1, size).sum(axis=1, dtype=np.float64), size) for size in levels]
    places = [np.arange(n) // size for size in levels]
    # lexsort's last key counts most; places tell equals apart
    interleaved = [key for pair in zip(keys, places, strict=True) for key in pair]
    return np.lexsort(tuple(reversed(interleaved))).astype(np.int32)


def in_panels(matrix: torch.Tensor) -> Floats:
    """A matrix [n, n] as float32 [n / 64, n, 64]: what the native encoder reads in one run."""
    n = matrix.shape[0]
    panels = matrix.reshape(n, n // PANEL, PANEL).transpose(0, 1)
    return np.asarray(panels.to(dtype=torch.float32, device="cpu").contiguous().numpy())


def factor(moments: torch.Tensor, qtype: gguf.GGMLQuantizationType, damping: float, act_order: bool) -> Factor:
    """Factor X^T X.

    Args:
        moments: float32 [n, n], symmetric, on any device.
        qtype: gives the size of blocks.
        damping: is added to the diagonal, in units of its mean.
        act_order: process the columns with the largest inputs first.
    """
    diagonal = moments.diagonal()
    if not bool((diagonal > 0).any()):  # an input that is never anything but zero: all columns are alike
        moments = torch.eye(len(moments), device=moments.device)
        diagonal = moments.diagonal()
    order = processing_order(diagonal.cpu().numpy(), qtype, act_order)
    index = torch.from_numpy(order.astype(np.int64)).to(moments.device)
    mean = float(diagonal.double().mean())
    while True:
        damped = moments.double()[index][:, index]
        damped.diagonal().add_(damping * mean)
        # of the flipped matrix a lower factor is an upper one of the matrix
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not bool(failed.any()):
            break
        damping = max(damping, 1e-4) * _MORE_DAMPING
    upper = lower.flip(0, 1)
    root = upper.diagonal().clone()
    upper /= root
    upper.diagonal().zero_()
    return Factor(
        order=order,
        feedback=in_panels(upper),
        curvature=root.square().float().cpu().numpy(),
        moments=in_panels(damped),
        damping=damping,
    )


@dataclass(frozen=True)
class Drift:
    """How far inputs have moved in the quantized model, and what makes up for it.

    Attributes:
        moved: the mean of (y - x) x^T, y the inputs in the unquantized model, float32 [n, n].
        lower: factor of the moments, damped, float64 [n, n]; None where all inputs are zero, or nearly so.
    """

    moved: torch.Tensor
    lower: torch.Tensor | None

    def correction(self, rows: Floats, workers: Workers) -> Floats:
        """What to add to rows w so that, on x, they come nearest to what w gives on y: w moved H^-1.

        Args:
            rows: float32 [rows, n].
            workers: solve for tiles of rows; the number of them changes nothing.
        """
        if self.lower is None:
            return np.zeros_like(rows)
        lower = self.lower

        def solve(tile: Floats) -> torch.Tensor:
            products = torch.from_numpy(tile).to(lower.device) @ self.moved
            return torch.cholesky_solve(products.double().T, lower).T.float().cpu()

        tiles = [rows[row : row + _ROWS_AT_ONCE] for row in range(0, len(rows), _ROWS_AT_ONCE)]
        return np.asarray(torch.cat(workers.map(solve, tiles)).numpy())


def drift(moments: torch.Tensor, moved: torch.Tensor, damping: float) -> Drift:
    """Factor what the fit to the unquantized model's outputs needs.

    Args:
        moments: H, the mean of x x^T, float32 [n, n].
        moved: the mean of (y - x) x^T.
        damping: is added to the diagonal of H, in units of its mean.
    """
    damped = moments.double()
    damped.diagonal().add_(damping * float(moments.diagonal().double().mean()))
    lower, failed = torch.linalg.cholesky_ex(damped)
    return Drift(moved, None if bool(failed.any()) else lower)
