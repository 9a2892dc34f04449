"""An open model whose input channels are equalized: the same tensors times factors, read in F32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4 import native
from gguf_bof4.channel_factors import Factors
from gguf_bof4.convert.encoding import RUN_WEIGHTS, as_floats
from gguf_bof4.convert.equalize import ARCHITECTURES, READERS, Heads, equalizing_factors
from gguf_bof4.convert.imatrix import Imatrix
from gguf_bof4.convert.opened import OpenedModel
from gguf_bof4.convert.policy import FLOATS
from gguf_bof4.convert.sources import Bytes, Source, n_rows
from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.formats import BOF4_S
from gguf_bof4.native import BlockEncoder
from gguf_bof4.progress import Progress

SAMPLED = 1 << 17
"""Weights of a matrix that the choice of factors is measured on, about."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scaled:
    """A source of F32, F16 or BF16 times factors of its rows and columns."""

    source: Source
    factors: Factors

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def qtype(self) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType.F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def path(self) -> Path:
        return self.source.path

    def read_rows(self, first: int, count: int) -> Bytes:
        """Rows [count, bytes of a row]."""
        floats = as_floats(self.source.read_rows(first, count), self.source.qtype)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever encodes them looks for what is not finite
            return np.ascontiguousarray(self.factors.applied(floats, first)).view(np.uint8)


def _number(opened: OpenedModel, key: str) -> int | None:
    """A whole number of the metadata that is the same for all layers; None where it is not there."""
    if opened.model is not None:
        value: Any = opened.model.value(key)
    else:
        stored = opened.writer.kv_data[0].get(key)
        value = None if stored is None else stored.value
    return value if isinstance(value, int) and value > 0 else None


def _heads(opened: OpenedModel) -> Heads | None:
    prefix = f"{opened.architecture}.attention"
    queries = _number(opened, f"{prefix}.head_count")
    keys = _number(opened, f"{prefix}.head_count_kv")
    return None if queries is None or keys is None or queries % keys else Heads(queries, keys)


def _unquantized(opened: OpenedModel, source: Source) -> Source:
    """The source.

    Raises:
        UserError: it is quantized.
    """
    if source.qtype not in FLOATS:
        raise UserError(
            f"{opened.path}: tensor {source.name} is {source.qtype.name}, and --equalize needs an unquantized model: "
            "F32, F16, BF16 or a Hugging Face folder"
        )
    return source


@dataclass(frozen=True)
class _Matrix:
    """What is read of a matrix.

    Attributes:
        power: sums of the squares of the columns, float32 [n]; not finite where a weight is not.
        sample: rows that are evenly spaced, float32 [k, n].
    """

    power: Floats
    sample: Floats


def _read(source: Source) -> _Matrix:
    rows, n = n_rows(source), source.shape[-1]
    step, every = max(1, RUN_WEIGHTS // n), max(1, rows * n // SAMPLED)
    power, sample = np.zeros(n), []
    for first in range(0, rows, step):
        floats = as_floats(source.read_rows(first, min(step, rows - first)), source.qtype)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever encodes them says which weight it is
            power += np.square(floats, dtype=np.float64).sum(axis=0)
        sample.append(floats[-first % every :: every].copy())
    return _Matrix(power.astype(np.float32), np.concatenate(sample))


class _Losses:
    """Measures what encoding costs: the squared error of sampled rows in BOF4_S, weighted by the inputs."""

    def __init__(self, read: Callable[[str], _Matrix], importance: Mapping[str, Floats], threads: int) -> None:
        self._read, self._importance, self._threads = read, importance, threads
        self._without: dict[str, float] = {}

    def _error(self, name: str, columns: Floats) -> float:
        """0 where nothing can be said, infinite where a weight is too large to be encoded."""
        sample, inputs = self._read(name).sample, self._importance.get(name)
        blocks = sample.shape[1] // BOF4_S.block_size * BOF4_S.block_size  # a rest of a block does not count
        if not blocks or inputs is None or inputs.shape != columns.shape or not np.isfinite(sample).all():
            return 0.0
        columns, qtype = columns[:blocks], gguf.GGMLQuantizationType(BOF4_S.type_id)
        weights = np.ascontiguousarray(sample[:, :blocks] * columns)
        importance = np.asarray(inputs[:blocks] / np.square(columns), dtype=np.float32)
        try:
            encoded = native.quantize(weights, qtype, importance, self._threads, BlockEncoder.SEARCH)
        except TooLargeWeightError:
            return math.inf
        errors = np.square(native.dequantize(encoded, qtype, self._threads) - weights, dtype=np.float64)
        return float((errors.sum(axis=0) * importance).sum())

    def __call__(self, names: Sequence[str], columns: Floats) -> float:
        """The mean over the matrices of their error with these factors, relative to that without."""
        if (columns == 1).all():
            return 1.0
        found = 0.0
        for name in names:
            if name not in self._without:
                self._without[name] = self._error(name, np.ones_like(columns))
            without = self._without[name]
            found += self._error(name, columns) / without if 0 < without < math.inf else 1.0
        return found / len(names)


def _reweighted(imatrix: Imatrix, factors: Mapping[str, Factors]) -> Imatrix:
    """The importance matrix of the equalized model, whose inputs are divided by the factors."""
    entries = dict(imatrix.entries)
    for name, of_tensor in factors.items():
        if of_tensor.columns is not None and name in entries:
            entries[name] = np.asarray(entries[name] / np.square(of_tensor.columns), dtype=np.float32)
    return replace(imatrix, entries=entries)


def check_equalizable(opened: OpenedModel) -> None:
    """Refuse a model before its importance matrix is made.

    Raises:
        UserError: it is not known how the layers of this architecture are made, or the model is quantized.
    """
    if opened.architecture not in ARCHITECTURES:
        raise UserError(
            f"{opened.path}: --equalize knows the layers of {', '.join(sorted(ARCHITECTURES))}, and this model is "
            f"{opened.architecture}: convert it without"
        )
    for source in opened.sources:
        if source.name.startswith("blk.") and len(source.shape) > 1:
            _unquantized(opened, source)


def equalized(
    opened: OpenedModel, imatrix: Imatrix, strength: float | None, threads: int, progress: Progress
) -> tuple[OpenedModel, Imatrix]:
    """The model with equalized channels, and the importance matrix of that.

    Args:
        opened: of an architecture whose layers are known (`check_equalizable`).
        strength: of `equalize.channel_factors`; None: the best, as measured for each group of matrices.
        threads: 0 means all cores.
        progress: called with the matrices that are done and those of the model.

    Raises:
        UserError: the model is quantized, or the importance matrix says nothing about its inputs.
    """
    sources, done = {s.name: s for s in opened.sources}, count(1)
    n_matrices = sum(name.startswith("blk.") and len(s.shape) == 2 for name, s in sources.items())

    @lru_cache(maxsize=max(map(len, READERS.values())))
    def read(name: str) -> _Matrix:
        progress("equalizing channels", next(done), n_matrices)
        return _read(_unquantized(opened, sources[name]))

    factors = equalizing_factors(
        opened.architecture, {name: s.shape for name, s in sources.items()}, imatrix.entries,
        lambda name: read(name).power, _heads(opened),
        _Losses(read, imatrix.entries, threads) if strength is None else strength,
    )  # fmt: skip
    if not factors:
        raise UserError(
            f"{opened.path}: --equalize found no layer whose parts it knows and about whose inputs {imatrix.path} "
            "says something: convert it without"
        )
    scaled = [
        Scaled(_unquantized(opened, s), factors[s.name]) if s.name in factors else s for s in opened.sources
    ]
    return replace(opened, sources=scaled, factors=factors), _reweighted(imatrix, factors)
