"""How long gptq will take, from timings of its parts on this machine, which take a second or two."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gguf
import numpy as np
import torch

from gguf_bof4 import native
from gguf_bof4.encoders.encoder import Target
from gguf_bof4.encoders.gptq.factor import drifts_through_outputs, factor
from gguf_bof4.encoders.gptq.layer import Layer
from gguf_bof4.encoders.gptq.layouts import block_size
from gguf_bof4.encoders.gptq.precision import add_product

_WIDTH = 1024
"""Inputs of the matrices that are timed; their times are scaled."""

_TOKENS = 512
_ROWS = 64


def _seconds(call: Callable[[], Any]) -> float:
    """The shorter of two times; the first call also allocates memory."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _multiply(x: torch.Tensor, total: torch.Tensor) -> None:
    add_product(total, x, x)
    total[0, 0].item()  # waits for a GPU


def _row_seconds(qtype: gguf.GGMLQuantizationType, n: int, threads: int) -> float:
    """Time of encoding a row of n weights."""
    rows = np.random.default_rng(0).standard_normal((_ROWS, n), dtype=np.float32)
    factored = factor(torch.eye(n), qtype, damping=0.0, act_order=False)
    encode = partial(
        native.gptq, rows, qtype, factored.order, factored.feedback, factored.curvature, factored.hessian, 2, None,
        threads,
    )  # fmt: skip
    return _seconds(encode) / _ROWS


def _encoding_seconds(targets: Sequence[Target], threads: int) -> float:
    """Of the native encoder: its time for a row grows with the columns, and with their square."""
    total = 0.0
    for qtype in {t.qtype for t in targets}:
        short = max(256, block_size(qtype))
        one, other = _row_seconds(qtype, short, threads), _row_seconds(qtype, 4 * short, threads)
        quadratic = max(0.0, other - 4 * one) / (12 * short * short)
        linear = max(0.0, one / short - quadratic * short)
        for t in (t for t in targets if t.qtype == qtype):
            n = t.shape[-1]
            total += t.n_weights / n * (linear * n + quadratic * n * n)
    return total


def _moment_operations(targets: Sequence[Target]) -> int:
    """Operations for a token: half a Hessian, and the drift of inputs or outputs.

    Args:
        targets: that share an input.
    """
    n, weights = targets[0].shape[-1], targets[0].n_weights
    return n * n + (4 * weights if drifts_through_outputs(len(targets), weights // n, n) else 2 * n * n)


def layer_seconds(layer: Layer, targets: Mapping[str, Target], hidden: torch.Tensor, waiting: int) -> float:
    """An estimate of the time for a layer.

    Args:
        layer: with its weights.
        targets: tensors to encode, by the names of their modules.
        hidden: inputs of the layer, float32 [samples, tokens, width].
        waiting: samples whose passes wait; the others are run anew for each group.
    """
    samples, length, _ = hidden.shape
    workers = layer.workers
    at_once = workers.count
    forward = _seconds(lambda: workers.map(lambda i: layer.output(hidden[i : i + 1]), [0] * at_once)) / at_once
    grouped = layer.groups(targets, hidden[:1])
    groups = [targets[names[0]].shape[-1] for names in grouped]
    # of the groups, on average half of the layer is in front of them
    runs = min(samples, waiting) + max(0, samples - waiting) * (1 + len(groups) / 2)
    x = torch.randn(_TOKENS, _WIDTH, device=workers.device).to(layer.dtype)
    totals = [torch.zeros(_WIDTH, _WIDTH, device=workers.device) for _ in range(at_once)]
    product = _seconds(lambda: workers.map(partial(_multiply, x), totals)) / at_once
    per_operation = product / (2 * _TOKENS * _WIDTH**2)
    definite = torch.eye(_WIDTH, dtype=torch.float64, device=workers.device)
    cholesky = _seconds(lambda: workers.map(torch.linalg.cholesky_ex, [definite])) / _WIDTH**3
    moments = samples * length * sum(_moment_operations([targets[name] for name in names]) for names in grouped)
    # the fit: a product, and a solution in double precision
    fits = sum(6 * t.n_weights * t.shape[-1] for t in targets.values())
    return (
        2 * runs * forward
        + (moments + fits) * per_operation
        + sum((2 if at_once == 1 else 1) * cholesky * n**3 for n in groups)  # two beside each other
        + _encoding_seconds(list(targets.values()), at_once)
    )
