"""Random weights, the same for the same seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def heavy_tailed(shape: tuple[int, ...], seed: int = 0, degrees: int = 3) -> Floats:
    """Numbers of Student's t distribution: with outliers, as in trained models."""
    return np.random.default_rng(seed).standard_t(degrees, shape).astype(np.float32)
