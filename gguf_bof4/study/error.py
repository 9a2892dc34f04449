"""Squared and absolute errors of formats on weights of a law, and on those of a model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4.errors import UserError
from gguf_bof4.study.models import Loaded, kind_of
from gguf_bof4.study.record import Format, Tensor
from gguf_bof4.study.tables import ErrorRow, Results, Say
from gguf_bof4.study.workers import in_parallel

ALL = "all"
ROW = 4096
"""Numbers in a row of drawn weights: every block size of the study divides it."""

SEED = 0
LAWS = ("norm", "laplace", "uniform", "t:5")


def draw(law: str, count: int) -> Tensor:
    """Weights drawn from a law, float32 [count / 4096, 4096].

    Args:
        law: "norm", "laplace", "uniform" or "t:" with degrees of freedom.

    Raises:
        UserError: no such law.
    """
    generator = np.random.default_rng(SEED)
    shape = (max(1, count // ROW), ROW)
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


def with_blocks(fmt: Format, blocks: Sequence[int]) -> tuple[Format, ...]:
    """The format with each block size, or itself where it has no parameter I."""
    if "I" not in {f.name for f in dataclasses.fields(fmt)}:
        return (fmt,)
    return tuple(dataclasses.replace(fmt, **{"I": block}) for block in blocks)


def block_of(fmt: Format) -> int:
    """The parameter I, or 0."""
    return int(getattr(fmt, "I", 0))


def _sums(fmt: Format, matrix: Tensor, what: str) -> list[float]:
    """Squared errors, squares, absolute errors, magnitudes, bits, and numbers of a matrix, summed up.

    The matrix is flattened where the block does not divide its rows, and a rest shorter than a block left out.
    """
    n = matrix.numel() - matrix.numel() % fmt.multiple
    if n == 0:
        return [0.0] * 6
    x = matrix.reshape(1, -1)[:, :n] if matrix.shape[1] % fmt.multiple else matrix
    found = fmt.quantize(x, None, what)
    error = found.values - x
    sums = [error.square(), x.square(), error.abs(), x.abs()]
    return [*(float(part.sum(dtype=torch.float64)) for part in sums), float(found.bits), float(n)]


def _rows_of(source: str, fmt: Format, matrices: Sequence[tuple[str, Tensor]]) -> list[ErrorRow]:
    """A row for each kind of matrix, and one for all."""
    started = time.monotonic()
    sums: dict[str, list[float]] = {}
    found = in_parallel(lambda item: _sums(fmt, item[1], f"{source}: {item[0]}"), matrices)
    for (kind, _), measured in zip(matrices, found, strict=True):
        for group in dict.fromkeys((kind, ALL)):
            sums[group] = [a + b for a, b in zip(sums.get(group, [0.0] * 6), measured, strict=True)]
    seconds = time.monotonic() - started
    return [
        ErrorRow(source, kind, fmt.name, block_of(fmt), bits / n, se / max(s2, 1e-300), ae / max(s1, 1e-300), seconds)
        for kind, (se, s2, ae, s1, bits, n) in sums.items()
        if n
    ]


def measure_errors(
    laws: Sequence[str],
    loaded: Loaded | None,
    formats: Sequence[Format],
    count: int,
    results: Results[ErrorRow],
    force: bool,
    say: Say,
) -> None:
    """Measure what is not in the results yet.

    Args:
        laws: to draw weights from.
        loaded: a model whose matrices are measured, too.
        count: weights that are drawn.
        force: measure again what is in the results.
    """
    sources: list[tuple[str, list[tuple[str, Tensor]]]] = [(law, [(ALL, draw(law, count))]) for law in laws]
    if loaded is not None:
        sources.append((loaded.name, [(kind_of(name), weight) for name, weight in loaded.originals.items()]))
    for source, matrices in sources:
        missing = [
            fmt for fmt in formats
            if force or ErrorRow(source, ALL, fmt.name, 0, 0, 0, 0, 0).key not in results
        ]  # fmt: skip
        for i, fmt in enumerate(missing):
            rows = _rows_of(source, fmt, matrices)
            results.add(*rows)
            whole = next((row for row in rows if row.kind == ALL), None)
            if whole is not None:
                figures = f"{whole.bits:.3f} bits, error {whole.squared:.5f}"
                say(f"{source}: {i + 1} of {len(missing)}  {fmt.name}: {figures}")
