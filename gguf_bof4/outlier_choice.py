"""Which weights become outliers: the paper's rule, or what each of them saves under the importances of the columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4 import native
from gguf_bof4.formats import FORMAT_OF_TYPE_ID, FP16_OVERFLOW
from gguf_bof4.lists import ENTRY_BITS, OutlierList, entry, from_counts, refuse_large_outliers
from gguf_bof4.native import BlockEncoder

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_AT_ONCE = 1 << 21
"""Weights whose candidates are tried at a time: 8 MiB, of which a dozen copies are in memory."""

_ROUNDS = 8
"""Outliers of a sub-block, at most. 4 are rare with 0.05 bits per weight."""


@dataclass(frozen=True)
class Quantile:
    """The paper's rule (eq. 9): weights beyond the quantile of the distribution of block maxima.

    Attributes:
        value: between 0 and 1.
    """

    value: float


@dataclass(frozen=True)
class Budget:
    """The weights that save the most of the weighted squared error, as many as a number of bits allows.

    Attributes:
        bits: per weight of the tensor, for entries of the list; its row pointers are not counted.
    """

    bits: float

    def count(self, n_weights: int) -> int:
        """Outliers of a tensor."""
        return int(self.bits * n_weights / ENTRY_BITS)


OutlierRule = Quantile | Budget


@dataclass(frozen=True)
class _Part:
    """Rows of a range of columns: whole rows, or one block of each.

    Attributes:
        rows: int64 [k].
        first: the first column.
        last: one behind the last column.
    """

    rows: npt.NDArray[np.int64]
    first: int
    last: int


@dataclass(frozen=True)
class _Found:
    """Weights that are listed in one round, and what each of them saves together with those before it."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    gains: Floats


class _Search:
    """The state of one tensor.

    A sub-block is the weights under one scale. In each round, every active sub-block loses one more weight to the list:
    the largest one, which frees its scale, or the one with the largest weighted error, whichever leaves less.
    """

    def __init__(
        self, weights: Floats, qtype: gguf.GGMLQuantizationType, importance: Floats | None, encoder: BlockEncoder,
        threads: int,
    ) -> None:  # fmt: skip
        fmt = FORMAT_OF_TYPE_ID[int(qtype)]
        self._weights, self._qtype, self._encoder, self._threads = weights, qtype, encoder, threads
        self._importance = importance
        self._block, self._sub_block = fmt.block_size, fmt.sub_block_size
        rows, n = weights.shape
        self.listed: Bools = np.abs(weights) >= np.float32(FP16_OVERFLOW)  # no scale could hold them
        self.active: Bools = np.ones((rows, n // self._sub_block), dtype=np.bool_)
        self.found: list[_Found] = []
        self._least = np.full(self.active.shape, np.inf, dtype=np.float32)
        self._errors = np.empty_like(weights)
        for part in self._whole():
            self._errors[part.rows] = self._weighted_errors(self._rest(part), part)

    def _whole(self) -> Iterator[_Part]:
        rows, n = self._weights.shape
        step = max(1, _AT_ONCE // n)
        for first in range(0, rows, step):
            yield _Part(np.arange(first, min(rows, first + step)), 0, n)

    def _active_blocks(self) -> Iterator[_Part]:
        in_block: Bools = np.any(self.active.reshape(len(self.active), -1, self._block // self._sub_block), axis=2)
        for block in np.flatnonzero(in_block.any(axis=0)):
            first = int(block) * self._block
            yield _Part(np.flatnonzero(in_block[:, block]), first, first + self._block)

    def _rest(self, part: _Part) -> Floats:
        """What the blocks hold: zero for what is listed."""
        listed = self.listed[part.rows, part.first : part.last]
        return np.asarray(np.where(listed, np.float32(0), self._weights[part.rows, part.first : part.last]))

    def _weighted_errors(self, rest: Floats, part: _Part) -> Floats:
        importance = None if self._importance is None else self._importance[part.first : part.last]
        data = native.quantize(rest, self._qtype, importance, self._threads, self._encoder)
        errors: Floats = np.square(native.dequantize(data, self._qtype, self._threads) - rest)
        if importance is not None:
            errors *= importance
        return errors

    def _without_one(
        self, rest: Floats, score: Floats, active: Bools, part: _Part
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """The weight of each sub-block with the largest score, int64 [k, sub-blocks], and the errors without it."""
        at = score.reshape(len(rest), -1, self._sub_block).argmax(axis=2)
        tried = rest.copy()
        row, sub_block = np.nonzero(active)
        tried[row, sub_block * self._sub_block + at[active]] = 0
        return at, self._weighted_errors(tried, part).reshape(len(rest), -1, self._sub_block)

    def round(self, first: bool) -> None:
        """List one more weight of each active sub-block.

        Args:
            first: all sub-blocks are active.
        """
        for part in self._whole() if first else self._active_blocks():
            sub_blocks = slice(part.first // self._sub_block, part.last // self._sub_block)
            active = self.active[part.rows, sub_blocks]
            rest = self._rest(part)
            old = self._errors[part.rows, part.first : part.last]
            at, errors = self._without_one(rest, np.abs(rest), active, part)
            other_at, other_errors = self._without_one(rest, old, active, part)
            loss, other_loss = (e.sum(axis=2, dtype=np.float64) for e in (errors, other_errors))
            better = other_loss < loss
            at = np.where(better, other_at, at)
            errors[better] = other_errors[better]
            gain = old.reshape(errors.shape).sum(axis=2, dtype=np.float64) - np.minimum(loss, other_loss)
            row, sub_block = np.nonzero(active)
            rows, columns = part.rows[row], part.first + sub_block * self._sub_block + at[active]
            places = rows, sub_blocks.start + sub_block
            self._least[places] = np.minimum(self._least[places], gain[active])
            self.found.append(_Found(rows, columns, self._least[places]))
            self.listed[rows, columns] = True
            old.reshape(errors.shape)[active] = errors[active]
            self._errors[part.rows, part.first : part.last] = old

    def keep_active(self, least: float) -> None:
        """Sub-blocks whose last outlier has saved less are done."""
        self.active &= (self._least >= least) & (self._least > 0)


def _gains(found: Sequence[_Found]) -> Floats:
    return np.concatenate([f.gains for f in found])


def choose(
    weights: Floats,
    qtype: gguf.GGMLQuantizationType,
    count: int,
    importance: Floats | None = None,
    encoder: BlockEncoder = BlockEncoder.SEARCH,
    threads: int = 0,
) -> OutlierList:
    """The weights whose place in the list saves the most of the weighted squared error.

    What an outlier saves is measured by encoding its block with it and without it. Outliers of one sub-block are found
    one after another, each in what those before it have left.

    Args:
        weights: float32 [rows, n], whole blocks of the type.
        qtype: a type that has lists.
        count: outliers; fewer where no other saves anything. Weights too large for the type are listed in any case.
        importance: float32 [n], of the columns; None: the same for all.
        encoder: of the blocks.
        threads: 0 for all cores.

    Raises:
        TooLargeWeightError: an outlier is too large for BF16.
    """
    rows = len(weights)
    if not np.isfinite(weights).all():  # encoding names the weight
        return from_counts(np.zeros(rows, dtype=np.int64), np.zeros(0, dtype=np.int32))
    search = _Search(weights, qtype, importance, encoder, threads)
    forced = search.listed.copy()
    for i in range(_ROUNDS if count else 0):
        search.round(i == 0)
        gains = _gains(search.found)
        search.keep_active(float(np.partition(gains, -count)[-count]) if gains.size > count else 0.0)
        if not search.active.any():
            break
    chosen = forced
    if search.found:
        gains = _gains(search.found)
        best = np.argsort(-gains, kind="stable")[:count]
        best = best[gains[best] > 0]
        at_rows = np.concatenate([f.rows for f in search.found])[best]
        chosen[at_rows, np.concatenate([f.columns for f in search.found])[best]] = True
    at_rows, at_columns = np.nonzero(chosen)
    outliers = from_counts(np.bincount(at_rows, minlength=rows), entry(at_columns, weights[at_rows, at_columns]))
    refuse_large_outliers(outliers, weights.shape)
    return outliers
