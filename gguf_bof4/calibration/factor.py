"""The second moments of a layer's inputs, factored for the encoder."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4.calibration.layer import Workers
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


def drift_correction(moments: torch.Tensor, drift: torch.Tensor, damping: float, workers: Workers) -> torch.Tensor:
    """P such that w + w P, for the inputs of the quantized model, comes nearest to w for those of the unquantized one.

    Args:
        moments: H, the mean of x x^T, float32 [n, n].
        drift: the mean of (y - x) x^T, y the inputs in the unquantized model.
        damping: is added to the diagonal, in units of its mean.
        workers: solve for tiles of rows; the number of them changes nothing.

    Returns:
        drift times the inverse of H, float32 [n, n].
    """

    def cholesky(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        damped = matrix.double()
        damped.diagonal().add_(damping * float(matrix.diagonal().double().mean()))
        lower, failed = torch.linalg.cholesky_ex(damped)
        return lower, failed

    ((lower, failed),) = workers.map(cholesky, [moments])
    if bool(failed.any()):  # only where all inputs are zero, or nearly so
        return torch.zeros_like(drift)

    def solve(rows: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(rows.double().T, lower).T.float()

    tiles = [drift[row : row + _ROWS_AT_ONCE] for row in range(0, len(drift), _ROWS_AT_ONCE)]
    return torch.cat(workers.map(solve, tiles))
