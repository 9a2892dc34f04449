"""Random weights, the same for the same seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def student(rows: int, n: int, seed: int = 0) -> Floats:
    """float32 [rows, n] of Student's t distribution with 3 degrees of freedom: with outliers, as in trained models."""
    return np.random.default_rng(seed).standard_t(3, (rows, n)).astype(np.float32)
