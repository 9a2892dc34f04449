"""Hessians, X^T X of a layer's inputs, factored for the native encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4.encoders.gptq.layer import Workers
from gguf_bof4.encoders.gptq.layouts import SUB_BLOCKS, block_size
from gguf_bof4.native import PANEL

Floats = npt.NDArray[np.float32]

_MORE_DAMPING = 10.0
"""Factor of the damping where the Hessian is not positive definite."""

_ROWS_AT_ONCE = 1024
"""Right-hand sides of one triangular solve, and rows of a matrix that are copied at a time.

A constant, because rounding errors of the solve depend on it.
"""


@dataclass(frozen=True)
class Factor:
    """H = (I + M) diag(D) (I + M)^T with M strictly upper, rows and columns in the order of processing.

    The error of a row w that becomes q is sum_k D_k (t_k - q_k)^2, with t_k = w_k + sum_{j<k} (w_j - q_j) M[j, k].

    Attributes:
        order: int32 [n], the column that is processed k-th.
        feedback: M, float32 [n / 64, n, 64].
        curvature: D, float32 [n].
        hessian: H, damped, float32 [n / 64, n, 64].
        importance: the diagonal of H without damping, in the order of the columns, float32 [n].
        damping: that was applied; more than the argument where H was not positive definite with it.
    """

    order: npt.NDArray[np.int32]
    feedback: Floats
    curvature: Floats
    hessian: Floats
    importance: Floats
    damping: float


def processing_order(diagonal: Floats, qtype: gguf.GGMLQuantizationType, act_order: bool) -> npt.NDArray[np.int32]:
    """Columns in the order of processing: in order, or those with the largest inputs first.

    Blocks are sorted, then the sub-blocks within a block, then the columns within a sub-block, so that columns that
    share a scale stay together.

    Args:
        diagonal: float32 [n], mean squares of the inputs.
        act_order: sort.

    Returns:
        int32 [n].
    """
    n = diagonal.size
    if not act_order:
        return np.arange(n, dtype=np.int32)
    sizes = [block_size(qtype), SUB_BLOCKS[qtype], 1]
    keys = [np.repeat(-diagonal.reshape(-1, size).sum(axis=1, dtype=np.float64), size) for size in sizes]
    places = [np.arange(n) // size for size in sizes]
    # the last key of lexsort is the primary one; places keep blocks of equal sums apart
    alternating = [key for pair in zip(keys, places, strict=True) for key in pair]
    return np.lexsort(tuple(reversed(alternating))).astype(np.int32)


def _permuted(hessian: torch.Tensor, order: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """A Hessian with its rows and columns in another order, some rows at a time: where they belong, and they."""
    for first in range(0, len(hessian), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        yield rows, hessian[order[rows]][:, order]


def _permuted_doubles(hessian: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The same, whole, in double precision: 642 MB for 8960 columns, and no other matrix of that size beside it."""
    doubles = torch.empty(hessian.shape, dtype=torch.float64, device=hessian.device)
    for rows, permuted in _permuted(hessian, order):
        doubles[rows] = permuted
    return doubles


def _cholesky(matrix: torch.Tensor, addend: float) -> torch.Tensor | None:
    """The lower Cholesky factor of a matrix with a number added to its diagonal, in the memory of the matrix.

    Args:
        matrix: float64 [n, n], symmetric; it is overwritten.

    Returns:
        float64 [n, n], by columns as LAPACK has it; None where there is none.
    """
    matrix.diagonal().add_(addend)
    lower = matrix.T
    info = torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))
    return None if bool(info.any()) else lower


def _hessian_in_panels(hessian: torch.Tensor, order: torch.Tensor, addend: float) -> Floats:
    """A Hessian with its rows and columns in another order, and a number added to its diagonal, in panels."""
    n = len(hessian)
    panels = torch.empty(n // PANEL, n, PANEL)
    for rows, permuted in _permuted(hessian, order):
        panels[:, rows] = permuted.reshape(-1, n // PANEL, PANEL).transpose(0, 1)
    k = torch.arange(n)
    panels[k // PANEL, k, k % PANEL] = (hessian.diagonal()[order].double() + addend).float().cpu()
    return np.asarray(panels.numpy())


def _feedback_in_panels(lower: torch.Tensor, root: torch.Tensor) -> Floats:
    """The factor M, from the Cholesky factor of the flipped matrix and its flipped diagonal, in panels."""
    n = len(lower)
    panels = torch.empty(n // PANEL, n, PANEL)
    for p in range(n // PANEL):
        columns = slice(p * PANEL, (p + 1) * PANEL)
        upper = lower.T[n - columns.stop : n - columns.start].flip(0, 1) / root[columns, None]
        upper.diagonal(columns.start).zero_()
        panels[p] = upper.T
    return np.asarray(panels.numpy())


def factor(hessian: torch.Tensor, qtype: gguf.GGMLQuantizationType, damping: float, act_order: bool) -> Factor:
    """Factor a Hessian.

    Args:
        hessian: float32 [n, n], symmetric, on any device.
        qtype: one of those that gptq encodes.
        damping: added to the diagonal, as a fraction of its mean.
        act_order: process the columns with the largest inputs first.
    """
    diagonal = hessian.diagonal()
    if not bool((diagonal > 0).any()):  # all inputs are zero: all columns count the same
        hessian = torch.eye(len(hessian), device=hessian.device)
        diagonal = hessian.diagonal()
    order = processing_order(diagonal.cpu().numpy(), qtype, act_order)
    places = torch.from_numpy(order.astype(np.int64)).to(hessian.device)
    # the lower factor of the flipped matrix, flipped, is an upper factor of the matrix
    flipped = places.flip(0)
    mean = float(diagonal.double().mean())
    while (lower := _cholesky(_permuted_doubles(hessian, flipped), damping * mean)) is None:
        damping = max(damping, 1e-4) * _MORE_DAMPING
    root = lower.diagonal().flip(0)
    feedback = _feedback_in_panels(lower, root)
    del lower
    return Factor(
        order=order,
        feedback=feedback,
        curvature=root.square().float().cpu().numpy(),
        hessian=_hessian_in_panels(hessian, places, damping * mean),
        importance=diagonal.float().cpu().numpy().copy(),
        damping=damping,
    )


def drifts_through_outputs(matrices: int, rows: int, columns: int) -> bool:
    """Is the drift of outputs cheaper than that of inputs? Per token it takes 4 rows n operations, the other 2 n^2.

    Args:
        matrices: that share the input.
        rows, columns: of one of them.
    """
    return matrices == 1 and 2 * rows <= columns


@dataclass(frozen=True)
class Drift:
    """By how much inputs differ in the quantized model, and the correction of weights for it.

    Attributes:
        moved: the mean of (y - x) x^T, x the inputs in the quantized and y those in the unquantized model, float32
            [n, n]; or the mean of W (y - x) x^T, W the matrix, float32 [rows, n], where `drifts_through_outputs`.
        lower: Cholesky factor of the damped Hessian, float64 [n, n]; None where it has none, as all inputs are zero.
    """

    moved: torch.Tensor
    lower: torch.Tensor | None

    def correction(self, rows: Floats, places: npt.NDArray[np.int64], workers: Workers) -> Floats:
        """The addend of rows w with which their outputs on x are nearest to those of w on y: w moved H^-1.

        Args:
            rows: float32 [rows, n].
            places: int64 [rows], of each of them the row of the module that it is.
            workers: solve for tiles of rows; their number does not change the result.

        Returns:
            float32 [rows, n].
        """
        if self.lower is None:
            return np.zeros_like(rows)
        lower = self.lower

        def solve(first: int) -> torch.Tensor:
            tile = slice(first, first + _ROWS_AT_ONCE)
            if len(self.moved) < len(lower):
                products = self.moved[torch.from_numpy(places[tile]).to(lower.device)]
            else:
                products = torch.from_numpy(rows[tile]).to(lower.device) @ self.moved
            return torch.cholesky_solve(products.double().T, lower).T.float().cpu()

        return np.asarray(torch.cat(workers.map(solve, range(0, len(rows), _ROWS_AT_ONCE))).numpy())


def drift(hessian: torch.Tensor, moved: torch.Tensor, damping: float) -> Drift:
    """Factor the Hessian for the fit to the unquantized model's outputs.

    Args:
        hessian: H, the mean of x x^T, float32 [n, n].
        moved: as of `Drift`.
        damping: added to the diagonal of H, as a fraction of its mean.
    """
    return Drift(moved, _cholesky(hessian.double(), damping * float(hessian.diagonal().double().mean())))
