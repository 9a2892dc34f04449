"""Squared and absolute errors of formats on weights of a law, and on those of a model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4.errors import UserError
from gguf_bof4.study.models import kind_of
from gguf_bof4.study.record import Format, Tensor
from gguf_bof4.study.subject import Subject
from gguf_bof4.study.tables import ErrorRow, Results, Say, importance_name
from gguf_bof4.study.workers import in_parallel

ALL = "all"
ROW = 4096
"""Numbers in a row of drawn weights: every block size of the study divides it."""

SEED = 0


def drawn_numbers(count: int) -> int:
    """How many numbers are drawn where this many are asked for: whole rows."""
    return max(1, count // ROW) * ROW


def draw(law: str, count: int) -> Tensor:
    """Weights drawn from a law, float32 [count / 4096, 4096].

    Args:
        law: "norm", "laplace", "uniform" or "t:" with degrees of freedom.

    Raises:
        UserError: no such law.
    """
    generator = np.random.default_rng(SEED)
    shape = (drawn_numbers(count) // ROW, ROW)
    name, _, parameter = law.partition(":")
    drawings: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
        "norm": lambda: generator.standard_normal(shape),
        "laplace": lambda: generator.laplace(size=shape),
        "uniform": lambda: generator.uniform(-1, 1, shape),
    }
    try:
        drawn = generator.standard_t(float(parameter), shape) if name == "t" else drawings[law]()
    except (KeyError, ValueError):
        raise UserError(f"there is no law {law!r}: take norm, laplace, uniform, or t:DEGREES, like t:5") from None
    return torch.from_numpy(drawn.astype(np.float32))


def with_blocks(formats: Sequence[Format], blocks: Sequence[int]) -> tuple[Format, ...]:
    """The formats with each block size, those that have no parameter I once."""
    found = (
        fmt.replaced(I=block) if "I" in {f.name for f in dataclasses.fields(fmt)} else fmt
        for fmt in formats
        for block in blocks
    )
    return tuple(dict.fromkeys(found))


def block_of(fmt: Format) -> int:
    """The parameter I, or 0."""
    return int(getattr(fmt, "I", 0))


@dataclass(frozen=True)
class Matrix:
    """Weights to measure.

    Attributes:
        kind: of the matrix.
        weights: float32 [outputs, inputs].
        importance: float32 [inputs], by which squared errors and squares are weighted; their roots weigh the absolute
            ones. None: all alike.
    """

    kind: str
    weights: Tensor
    importance: Tensor | None = None


@dataclass(frozen=True)
class _Source:
    """Matrices to measure.

    Attributes:
        drawn: weights that are drawn from a law, 0 for a model.
        matrices: makes or loads them.
    """

    name: str
    drawn: int
    matrices: Callable[[], list[Matrix]]


def _law(law: str, count: int) -> _Source:
    return _Source(law, drawn_numbers(count), lambda: [Matrix(ALL, draw(law, count))])


def _model(subject: Subject, weighted: bool) -> _Source:
    def matrices() -> list[Matrix]:
        originals = subject.loaded().originals
        importance = subject.calibrated().squares if weighted else {}
        return [Matrix(kind_of(name), weight, importance.get(name)) for name, weight in originals.items()]

    return _Source(subject.name, 0, matrices)


def _sums(fmt: Format, matrix: Matrix, source: str) -> list[float]:
    """Squared errors, squares, absolute errors, magnitudes, bits, and numbers of a matrix, summed up.

    The matrix is flattened where the block does not divide its rows, and a rest shorter than a block left out.
    """
    weights = matrix.weights
    n = weights.numel() - weights.numel() % fmt.multiple
    if n == 0:
        return [0.0] * 6

    def laid_out(numbers: Tensor) -> Tensor:
        return numbers.reshape(1, -1)[:, :n] if weights.shape[1] % fmt.multiple else numbers

    x = laid_out(weights)
    found = fmt.quantize(x, None, f"{source}: {matrix.kind}")
    root = 1.0 if matrix.importance is None else laid_out(matrix.importance.sqrt().expand(weights.shape))
    error, magnitude = (found.values - x).abs() * root, x.abs() * root
    sums = [error.square(), magnitude.square(), error, magnitude]
    return [*(float(part.sum(dtype=torch.float64)) for part in sums), float(found.bits), float(n)]


def _rows_of(source: _Source, fmt: Format, matrices: Sequence[Matrix]) -> list[ErrorRow]:
    """A row for each kind of matrix, and one for all."""
    started = time.monotonic()
    sums: dict[str, list[float]] = {}
    found = in_parallel(lambda matrix: _sums(fmt, matrix, source.name), matrices)
    for matrix, measured in zip(matrices, found, strict=True):
        for group in dict.fromkeys((matrix.kind, ALL)):
            sums[group] = [a + b for a, b in zip(sums.get(group, [0.0] * 6), measured, strict=True)]
    seconds = time.monotonic() - started
    importance = importance_name(any(matrix.importance is not None for matrix in matrices))
    return [
        ErrorRow(
            source.name, kind, fmt.name, block_of(fmt), source.drawn, importance, bits / n,
            squared / max(squares, 1e-300), absolute / max(magnitudes, 1e-300), seconds,
        )
        for kind, (squared, squares, absolute, magnitudes, bits, n) in sums.items()
        if n
    ]  # fmt: skip


def measure_errors(
    laws: Sequence[str],
    subject: Subject | None,
    formats: Sequence[Format],
    count: int,
    results: Results[ErrorRow],
    force: bool,
    say: Say,
    weighted: bool = False,
) -> None:
    """Measure what is not in the results yet.

    Args:
        laws: to draw weights from.
        subject: a model whose matrices are measured, too.
        count: weights that are drawn.
        force: measure again what is in the results.
        weighted: errors of the model's weights are weighted by the mean squares of their inputs.

    Raises:
        UserError: there is no such law, or a weight of the model is NaN or infinite.
    """
    for law in laws:
        draw(law, ROW)  # refuses a wrong one before anything is measured
    sources = [_law(law, count) for law in laws] + ([] if subject is None else [_model(subject, weighted)])
    for source in sources:
        importance = importance_name(weighted and source.drawn == 0)
        keys = {fmt: ErrorRow(source.name, ALL, fmt.name, 0, 0, importance, 0, 0, 0, 0).key for fmt in formats}
        rows_before = {fmt: results.get(key) for fmt, key in keys.items()}
        missing = [fmt for fmt, row in rows_before.items() if force or row is None or row.drawn != source.drawn]
        matrices = source.matrices() if missing else []
        for i, fmt in enumerate(missing):
            rows = _rows_of(source, fmt, matrices)
            results.add(*rows)
            whole = next((row for row in rows if row.kind == ALL), None)
            if whole is not None:
                figures = f"{whole.bits:.3f} bits, error {whole.squared:.5f}"
                say(f"{source.name}: {i + 1} of {len(missing)}  {fmt.name}: {figures}")
