"""Factors of the rows and columns of a tensor, which an equalized model has in its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """What a tensor is multiplied by.

    Attributes:
        rows: float32 [rows]; None: nothing.
        columns: float32 [n]; None: nothing.
    """

    rows: Floats | None = None
    columns: Floats | None = None

    def applied(self, weights: Floats, first: int = 0) -> Floats:
        """Weights times the factors, each product rounded once, columns first.

        Args:
            weights: float32 [count, n].
            first: the row that they begin with.
        """
        made = weights if self.columns is None else weights * self.columns
        return made if self.rows is None else made * self.rows[first : first + len(weights), None]
