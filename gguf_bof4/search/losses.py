"""The loss of each tensor in each candidate type: one pass over the tensors, kept on disk after each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguf_bof4 import native
from gguf_bof4.convert.imatrix import Imatrix
from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.gguf_files.model import Model, Tensor
from gguf_bof4.lists import OutlierList
from gguf_bof4.native import BlockEncoder
from gguf_bof4.outlier_choice import choose
from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.search.candidates import Candidate
from gguf_bof4.search.sensitivity import Term, Terms

Floats = npt.NDArray[np.float32]

SAMPLED_WEIGHTS = 1 << 18
"""Of a tensor, rows evenly spaced: its relative error is then known to a percent."""

RECIPE = 1
"""To be raised with every change of results: stored losses of another one are not used."""


@dataclass(frozen=True)
class Wanted:
    """A tensor to be measured.

    Attributes:
        terms: of its sensitivity.
    """

    tensor: Tensor
    candidates: tuple[Candidate, ...]
    terms: Terms


@dataclass(frozen=True)
class Loss:
    """What a tensor costs in one candidate.

    Attributes:
        alpha: what it would cost if its error were as large as the tensor, in nats where sensitivities are known.
        relative: the squared error over the squares of the weights, both weighted by the sensitivity.
    """

    alpha: float
    relative: float

    @property
    def loss(self) -> float:
        return self.alpha * self.relative


Losses = Mapping[str, Mapping[str, Loss]]
"""By tensor and by the name of the candidate."""


def _sampled_rows(tensor: Tensor) -> npt.NDArray[np.int64]:
    """int64 [k], evenly spaced, of all rows."""
    count = min(tensor.n_rows, max(1, SAMPLED_WEIGHTS // tensor.shape[-1]))
    return np.arange(count, dtype=np.int64) * tensor.n_rows // count


def _encoded(rows: Floats, candidate: Candidate, importance: Floats | None, threads: int) -> Floats:
    """Rows as they come back from a type, with their outliers."""
    outliers: OutlierList | None = None
    if candidate.rule is not None:
        count = candidate.rule.count(rows.size)
        outliers = choose(rows, candidate.qtype, count, importance, BlockEncoder.SEARCH, threads)
    data = native.quantize(rows, candidate.qtype, importance, threads, BlockEncoder.SEARCH, outliers)
    decoded = native.dequantize(data, candidate.qtype, threads)
    if outliers is not None:
        outliers.add_to(decoded)
    return decoded


def _runs(places: npt.NDArray[np.int64], matrices: int, rows: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """The sampled rows of each matrix (expert), and its number."""
    of_matrix = places // (rows // matrices)
    for matrix in np.unique(of_matrix):
        yield int(matrix), places[of_matrix == matrix]


def _energy(weights: Floats, terms: Sequence[Term], places: npt.NDArray[np.int64]) -> float:
    squared = np.square(weights)
    return sum(term.loss(squared, places) for term in terms)


def measure_tensor(
    model: Model, wanted: Wanted, missing: Sequence[Candidate], imatrix: Imatrix | None, threads: int
) -> dict[str, Loss]:
    """The loss of a tensor in some candidates.

    Raises:
        UserError: the tensor has a weight that is NaN or infinite, or cannot be read.
    """
    tensor = wanted.tensor
    weights = model.read_weights(tensor, native.dequantize)
    if not np.isfinite(weights).all():
        raise UserError(
            f"{tensor.path}: tensor {tensor.name} has a weight that is NaN or infinite: get the model again"
        )
    places = _sampled_rows(tensor)
    alpha = _energy(weights, wanted.terms, np.arange(tensor.n_rows))
    importance = None if imatrix is None else imatrix.of(tensor.name, tensor.shape)
    matrices = 1 if importance is None else len(importance)
    sampled = _energy(weights[places], wanted.terms, places)
    found = {}
    for candidate in missing:
        error = 0.0
        for matrix, at in _runs(places, matrices, tensor.n_rows):
            of_columns = None if importance is None else np.ascontiguousarray(importance[matrix])
            rows = np.ascontiguousarray(weights[at])
            try:
                error += _energy(_encoded(rows, candidate, of_columns, threads) - rows, wanted.terms, at)
            except TooLargeWeightError:
                error = math.inf
        found[candidate.name] = Loss(alpha, error / sampled if sampled else 0.0)
    return found


class Store:
    """Losses in a file of JSON Lines: complete lines survive a kill."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was cut off is removed."""
        self._path = path
        self.found: dict[str, dict[str, Loss]] = {}
        if not path.exists():
            return
        complete = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    read = json.loads(line)
                    found = {c: Loss(*map(float, values)) for c, values in read["losses"].items()}
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
                if not line.endswith(b"\n"):
                    break
                complete += len(line)
                if read.get("recipe") == RECIPE:
                    self.found.setdefault(str(read["tensor"]), {}).update(found)
        if complete < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(complete)

    def add(self, tensor: str, losses: Mapping[str, Loss]) -> None:
        """Keep the losses of a tensor."""
        self.found.setdefault(tensor, {}).update(losses)
        values = {name: [loss.alpha, loss.relative] for name, loss in losses.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"tensor": tensor, "recipe": RECIPE, "losses": values}) + "\n")


def measure(
    model: Model,
    wanted: Sequence[Wanted],
    imatrix: Imatrix | None,
    store: Store,
    threads: int = 0,
    progress: Progress = no_progress,
) -> Losses:
    """The losses of all tensors in all of their candidates; those that are stored are not measured again.

    Args:
        progress: called with sampled weights.
    """
    sizes = [len(w.candidates) * min(w.tensor.n_weights, SAMPLED_WEIGHTS) for w in wanted]
    done = 0
    for w, size in zip(wanted, sizes, strict=True):
        progress(f"losses: {w.tensor.name}", done, sum(sizes))
        missing = [c for c in w.candidates if c.name not in store.found.get(w.tensor.name, {})]
        if missing:
            store.add(w.tensor.name, measure_tensor(model, w, missing, imatrix, threads))
        done += size
    return {w.tensor.name: {c.name: store.found[w.tensor.name][c.name] for c in w.candidates} for w in wanted}
