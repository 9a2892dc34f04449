"""An open model whose input channels are equalized: the same tensors times factors, read in F32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.channel_factors import Factors
from gguf_bof4.convert.encoding import RUN_WEIGHTS, as_floats
from gguf_bof4.convert.equalize import ARCHITECTURES, Heads, equalizing_factors
from gguf_bof4.convert.imatrix import Imatrix
from gguf_bof4.convert.opened import OpenedModel
from gguf_bof4.convert.policy import FLOATS
from gguf_bof4.convert.sources import Bytes, Source, n_rows
from gguf_bof4.errors import UserError

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


def _column_power(source: Source) -> Floats:
    """Sums of the squares of the columns of a matrix, float32 [n]; not finite where a weight is not."""
    step, found = max(1, RUN_WEIGHTS // source.shape[-1]), np.zeros(source.shape[-1])
    for first in range(0, n_rows(source), step):
        rows = as_floats(source.read_rows(first, min(step, n_rows(source) - first)), source.qtype)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever encodes them says which weight it is
            found += np.square(rows, dtype=np.float64).sum(axis=0)
    return found.astype(np.float32)


def _reweighted(imatrix: Imatrix, factors: Mapping[str, Factors]) -> Imatrix:
    """The importance matrix of the equalized model, whose inputs are divided by the factors."""
    entries = dict(imatrix.entries)
    for name, of_tensor in factors.items():
        if of_tensor.columns is not None and name in entries:
            entries[name] = np.asarray(entries[name] / np.square(of_tensor.columns), dtype=np.float32)
    return replace(imatrix, entries=entries)


def equalized(opened: OpenedModel, imatrix: Imatrix, strength: float) -> tuple[OpenedModel, Imatrix]:
    """The model with equalized channels, and the importance matrix of that.

    Args:
        strength: of `equalize.channel_factors`.

    Raises:
        UserError: it is not known how the layers of this architecture are made, the model is quantized, or the
            importance matrix says nothing about its inputs.
    """
    if opened.architecture not in ARCHITECTURES:
        raise UserError(
            f"{opened.path}: --equalize knows the layers of {', '.join(sorted(ARCHITECTURES))}, and this model is "
            f"{opened.architecture}: convert it without"
        )
    sources = {s.name: s for s in opened.sources}
    factors = equalizing_factors(
        opened.architecture, {name: s.shape for name, s in sources.items()}, imatrix.entries,
        lambda name: _column_power(_unquantized(opened, sources[name])), _heads(opened), strength,
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
