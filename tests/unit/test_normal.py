"""Quantiles of the normal distribution, compared with scipy's."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from gguf_bof4.lists import threshold
from gguf_bof4.normal import normal_quantile


def test_thresholds_have_the_bits_of_scipy() -> None:
    """Files converted with and without scipy must have the same outliers."""
    quantiles = np.concatenate([np.linspace(0.0001, 0.9999, 20001), 1 - 10.0 ** -np.arange(1, 12)])
    # powers of Python: numpy's of arrays have other last bits where it uses AVX-512
    wanted = ndtri([(q ** (1 / 64) + 1) / 2 for q in quantiles.tolist()])
    assert [threshold(float(q)) for q in quantiles] == wanted.tolist()
    probabilities = np.linspace(0, 1, 2001)  # its centre and both tails
    assert [normal_quantile(float(p)) for p in probabilities] == ndtri(probabilities).tolist()
