"""How much the output of a model depends on each weight, up to a factor for each row and one for each column.

The KL divergence that an error D of a matrix causes is, to second order, 1/2 sum_ij F_ij D_ij^2 where errors of
different weights are not correlated. F is the diagonal of the Fisher information: the mean squared derivative of
log p(y) with respect to a weight, y being drawn from the model itself. F is kept as an outer product of its sums over
rows and over columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import UserError
from gguf_bof4.paths import atomic_path

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Term:
    """The divergence that an error D causes through one use of a tensor: sum_ij rows_i columns_j D_ij^2.

    Attributes:
        rows: float32 [rows], over all dimensions above the first, or [1]: the same for all.
        columns: float32 [n].
    """

    rows: Floats
    columns: Floats

    def loss(self, squared: Floats, rows: npt.NDArray[np.int64]) -> float:
        """Of some rows.

        Args:
            squared: squared errors, float32 [k, n].
            rows: int64 [k], which rows these are.
        """
        weights = self.rows[rows] if self.rows.size > 1 else np.broadcast_to(self.rows, rows.shape)
        return float(np.dot((squared @ self.columns).astype(np.float64), weights.astype(np.float64)))


Terms = Sequence[Term]
"""Of one tensor: token embeddings that serve as output, too, have two."""


def save(path: Path, found: Mapping[str, Terms]) -> None:
    """Write the terms of all tensors to an .npz file, which appears when it is complete."""
    arrays: dict[str, Floats] = {}
    for name, terms in found.items():
        for i, term in enumerate(terms):
            arrays[f"{name}/{i}/rows"], arrays[f"{name}/{i}/columns"] = term.rows, term.columns
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load(path: Path) -> dict[str, tuple[Term, ...]]:
    """The terms of all tensors from a file of `save`.

    Raises:
        UserError: it is damaged.
    """
    found: dict[str, list[Term]] = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for key in sorted(k for k in stored.files if k.endswith("/rows")):
                name, i, _ = key.rsplit("/", 2)
                found.setdefault(name, []).append(Term(stored[key], stored[f"{name}/{i}/columns"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run again") from error
    return {name: tuple(terms) for name, terms in found.items()}
