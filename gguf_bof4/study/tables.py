"""Rows of the study's results: CSV files that are complete at any moment."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from gguf_bof4.bench.csv_file import read_table, write_table

RECIPE = 1
"""To be raised with every change of how rows are measured: rows of another recipe are measured again."""


def importance_name(weighted: bool) -> str:
    """What tables have where errors are weighted by the mean squares of the inputs, or are not."""
    return "calibration" if weighted else "none"


@dataclass(frozen=True)
class ErrorRow:
    """The error of a format on weights.

    Attributes:
        source: a law ("norm", "laplace", "t:5") or a model.
        kind: of matrices, like "q_proj"; "all" for the whole source.
        format: its name.
        block: numbers under one scale, 0 where the format has no parameter I.
        drawn: weights that were drawn from the law, 0 for a model.
        importance: "none", or "calibration" where errors and weights are weighted by the mean squares of the inputs.
        bits: of a number.
        squared: sum of squared errors over the sum of squares.
        absolute: sum of absolute errors over the sum of magnitudes.
        seconds: that it took.
        recipe: how it was measured.
    """

    source: str
    kind: str
    format: str
    block: int
    drawn: int
    importance: str
    bits: float
    squared: float
    absolute: float
    seconds: float
    recipe: int = RECIPE

    @property
    def key(self) -> Hashable:
        return (self.source, self.kind, self.format, self.importance, self.recipe)


@dataclass(frozen=True)
class ModelRow:
    """The distance of a quantized model from the unquantized one.

    Attributes:
        model, text: what was measured on what.
        chunks: of 512 tokens.
        weights, activations: names of formats.
        blocks: "rows" or "flat".
        importance: "none", or "calibration" where errors were weighted.
        weight_bits, activation_bits: of a number.
        density: 32 times the numbers over their bits, weights and the activations of a chunk together.
        mean_kld and the rest: as in distance.Distance.
        seconds: that it took.
        recipe: how it was measured.
    """

    model: str
    text: str
    chunks: int
    weights: str
    activations: str
    blocks: str
    importance: str
    weight_bits: float
    activation_bits: float
    density: float
    mean_kld: float
    mean_kld_error: float
    kld_99_9: float
    same_top: float
    ppl: float
    ppl_ratio: float
    seconds: float
    recipe: int = RECIPE

    @property
    def key(self) -> Hashable:
        return (
            self.model, self.text, self.chunks, self.weights, self.activations, self.blocks, self.importance,
            self.recipe,
        )  # fmt: skip


@dataclass(frozen=True)
class VarianceRow:
    """The spread of the weights and of the inputs of a linear layer.

    Attributes:
        layer: number of the decoder layer.
        kind: of the matrix.
        weight_variance: mean square of the weights.
        activation_variance: mean square of the inputs.
        peak: the largest mean square of an input over the mean of all inputs: channels with outliers.
    """

    model: str
    layer: int
    kind: str
    weight_variance: float
    activation_variance: float
    peak: float
    recipe: int = RECIPE

    @property
    def key(self) -> Hashable:
        return (self.model, self.layer, self.kind, self.recipe)


@dataclass(frozen=True)
class TaskRow:
    """How many tasks of a multiple-choice set a model solves.

    Attributes:
        tasks: the set's name and a hash of its content.
        count: of tasks.
        chance: the expected share of correct answers by guessing.
        accuracy: the share of correct answers.
    """

    model: str
    weights: str
    activations: str
    tasks: str
    count: int
    chance: float
    accuracy: float
    seconds: float
    recipe: int = RECIPE

    @property
    def key(self) -> Hashable:
        return (self.model, self.weights, self.activations, self.tasks, self.count, self.recipe)


_Row = TypeVar("_Row", ErrorRow, ModelRow, VarianceRow, TaskRow)


class Results(Generic[_Row]):
    """A CSV file of rows. Every row is in the file as soon as it is added; a second one of a key replaces the first."""

    def __init__(self, path: Path, kind: type[_Row], command: str) -> None:
        """Read what is there.

        Raises:
            UserError: the file cannot be read, or a row is malformed.
        """
        self.path = path
        self._kind: type[_Row] = kind
        self._rows: dict[Hashable, _Row] = {row.key: row for row in read_table(path, kind, command)}

    @property
    def rows(self) -> list[_Row]:
        return list(self._rows.values())

    def get(self, key: Hashable) -> _Row | None:
        """The row of a key, where there is one."""
        return self._rows.get(key)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._rows

    def add(self, *rows: _Row) -> None:
        """Put rows into the file.

        Raises:
            UserError: it cannot be written; what was in it stays there.
        """
        self._rows |= {row.key: row for row in rows}
        write_table(self.path, self._kind, self._rows.values())


Say = Callable[[str], None]
