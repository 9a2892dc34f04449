"""KL divergence and perplexity of models whose weights, or weights and activations, are quantized."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.study.distance import Judge
from gguf_bof4.study.models import (
    ActivationQuantizer,
    FormatOf,
    Loaded,
    activation_samples,
    check_rows,
    chunks_of,
    hooked,
    kind_of,
    layer_of,
    mean_squares,
    quantize_weights,
    restore,
    same_for_all,
    weight_samples,
)
from gguf_bof4.study.record import Format, Tensor
from gguf_bof4.study.tables import ModelRow, Results, Say, VarianceRow, importance_name

UNQUANTIZED = "F32"
SAMPLED_CHUNKS = 8
"""Of the calibration text: for importance, variances, and samples of activations."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        weights, activations: formats; activations None: unquantized.
        flat: blocks of weights run over whole matrices.
        weighted: the errors of weights are weighted by the mean squares of their inputs.
        blocks: block sizes that replace I of both formats, by variance; empty: the formats' own.
    """

    weights: Format
    activations: Format | None = None
    flat: bool = False
    weighted: bool = False
    blocks: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, str]:
        """Of both formats, as in a table."""
        suffix = f":I=by-variance/{'/'.join(map(str, self.blocks))}" if self.blocks else ""
        activations = UNQUANTIZED if self.activations is None else self.activations.name
        return self.weights.name + suffix, activations + (suffix if self.activations else "")

    @property
    def options(self) -> tuple[str, str]:
        """Where blocks run, and the importance, as in a table."""
        return "flat" if self.flat else "rows", importance_name(self.weighted)


def parse_blocks(case: Case) -> Case:
    """Check that the formats of a case have a block size to choose by variance.

    Raises:
        UserError: one has none.
    """
    for fmt in (case.weights, *(() if case.activations is None else (case.activations,))):
        if case.blocks and "I" not in {f.name for f in dataclasses.fields(fmt)}:
            raise UserError(f"--by-variance: {fmt.name} has no block size I to choose")
    return case


class Calibrated:
    """A model, and what is measured on a calibration text once for all cases."""

    def __init__(self, loaded: Loaded, calibration: Path) -> None:
        """Args:
        calibration: for importance, variances and samples of activations; read when it is needed.
        """
        self.loaded = loaded
        self._calibration = calibration
        self._squares: dict[str, Tensor] | None = None

    def _tokens(self) -> Tensor:
        return chunks_of(self.loaded, self._calibration, SAMPLED_CHUNKS)

    @property
    def squares(self) -> dict[str, Tensor]:
        """Mean squares of the inputs of each layer; the model must be unquantized when they are asked for first."""
        if self._squares is None:
            self._squares = mean_squares(self.loaded, self._tokens())
        return self._squares

    def variances(self) -> list[VarianceRow]:
        """The spread of weights and inputs of each layer."""
        return [
            VarianceRow(
                self.loaded.name, layer_of(name), kind_of(name), float(weight.square().mean()),
                float(self.squares[name].mean()), float(self.squares[name].max() / self.squares[name].mean()),
            )
            for name, weight in self.loaded.originals.items()
        ]  # fmt: skip

    def _fitted(self, case: Case) -> Case:
        """The case with codebooks fitted to the unquantized model where its formats want them."""
        weights, activations = case.weights, case.activations
        if weights.needs_samples:
            weights = weights.fitted(weight_samples(self.loaded, weights.multiple))
        if activations is not None and activations.needs_samples:
            activations = activations.fitted(activation_samples(self.loaded, self._tokens(), activations.multiple))
        return dataclasses.replace(case, weights=weights, activations=activations)

    def _formats(self, case: Case) -> tuple[FormatOf, FormatOf | None]:
        """The format of each layer's weights, and of its inputs."""
        if not case.blocks:
            inputs = None if case.activations is None else same_for_all(case.activations)
            return same_for_all(case.weights), inputs
        of_weights = {name: float(w.square().mean()) for name, w in self.loaded.originals.items()}
        weights = by_variance(case.weights, of_weights, case.blocks)
        if case.activations is None:
            return weights, None
        of_inputs = {name: float(squares.mean()) for name, squares in self.squares.items()}
        return weights, by_variance(case.activations, of_inputs, case.blocks)

    @contextmanager
    def quantized(
        self, case: Case, progress: Progress = no_progress
    ) -> Iterator[tuple[int, ActivationQuantizer | None]]:
        """While it lasts the model is quantized; gives the bits of the weights, and what counts the activations."""
        case = self._fitted(case)
        of_weights, of_inputs = self._formats(case)
        importance = self.squares if case.weighted else None
        try:
            bits = quantize_weights(self.loaded, of_weights, case.flat, importance, progress)
            if of_inputs is None:
                yield bits, None
            else:
                quantizer = ActivationQuantizer(of_inputs)
                with hooked(self.loaded, quantizer):
                    yield bits, quantizer
        finally:
            restore(self.loaded)


def by_variance(fmt: Format, spread: dict[str, float], blocks: tuple[int, ...]) -> FormatOf:
    """Smaller blocks for tensors of larger variance, which is where outliers are.

    Args:
        spread: variances, by layer.
        blocks: sizes; the tensors, ranked by variance, are cut into as many equal shares.
    """
    ranked = sorted(spread, key=lambda name: spread[name])
    sizes = sorted(blocks, reverse=True)
    chosen = {
        name: dataclasses.replace(fmt, **{"I": sizes[i * len(sizes) // len(ranked)]}) for i, name in enumerate(ranked)
    }
    return lambda name: chosen[name]


class Bench:
    """A calibrated model, and the chunks that it is judged on."""

    def __init__(self, calibrated: Calibrated, text: Path, chunks: int, progress: Progress = no_progress) -> None:
        """Args:
        calibrated: the model, unquantized.
        text: to judge on, another one than that of the calibration.
        chunks: of 512 tokens.
        """
        self.calibrated = calibrated
        self.judge = Judge(calibrated.loaded, chunks_of(calibrated.loaded, text, chunks), progress)

    def measure(self, case: Case, text: str, progress: Progress = no_progress) -> ModelRow:
        """Quantize, judge, and put the weights back.

        Args:
            text: its name in tables.
        """
        started, loaded, chunks = time.monotonic(), self.calibrated.loaded, len(self.judge.chunks)
        with self.calibrated.quantized(case, progress) as (bits, quantizer):
            distance = self.judge.distance(loaded, progress)
        activations = 0 if quantizer is None else quantizer.numbers // chunks
        activation_bits = 32.0 if quantizer is None else quantizer.bits / quantizer.numbers
        return ModelRow(
            loaded.name, text, chunks, *case.names, *case.options, weight_bits=bits / loaded.n_weights,
            activation_bits=activation_bits,
            density=32 * (loaded.n_weights + activations) / (bits + activation_bits * activations),
            **dataclasses.asdict(distance), seconds=time.monotonic() - started,
        )  # fmt: skip


def case_key(case: Case, model: str, text: str, chunks: int) -> object:
    """The key of a case's row."""
    return ModelRow(model, text, chunks, *case.names, *case.options, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0).key


def _formats_of(case: Case) -> list[tuple[Format, bool]]:
    """The formats of a case with all their block sizes, and whether their blocks run over whole matrices."""
    both = [(case.weights, case.flat), *([] if case.activations is None else [(case.activations, False)])]
    return [
        (fmt if block is None else dataclasses.replace(fmt, **{"I": block}), flat)
        for fmt, flat in both
        for block in case.blocks or (None,)
    ]


def check_case(case: Case, loaded: Loaded) -> None:
    """Raise UserError for a case that cannot be measured, before others are.

    Raises:
        UserError: rows do not divide, or the format of activations is for weights only.
    """
    parse_blocks(case)
    if case.activations is not None and not case.activations.for_activations:
        raise UserError(f"{case.activations.name} is a format for weights: it is fitted to a tensor, or native")
    for fmt, flat in _formats_of(case):
        check_rows(loaded, same_for_all(fmt), flat)


def flattened(case: Case) -> Case:
    """The same case with blocks of weights that run over whole matrices."""
    return dataclasses.replace(case, flat=True)


def possible(case: Case, loaded: Loaded) -> Case | None:
    """The case, or flattened where blocks do not divide a model's rows; None where those of activations do not."""
    for form in (case, flattened(case)):
        try:
            check_case(form, loaded)
            return form
        except UserError:
            continue
    return None


def run(
    bench: Bench,
    cases: Sequence[Case],
    text: str,
    results: Results[ModelRow],
    say: Say,
    progress: Progress = no_progress,
) -> None:
    """Measure the cases that are not in the results yet; each is in the file as soon as it is measured."""
    started = time.monotonic()
    for i, case in enumerate(cases):
        row = bench.measure(case, text, progress)
        results.add(row)
        left = (time.monotonic() - started) / (i + 1) * (len(cases) - i - 1)
        names = row.weights if case.activations is None else f"{row.weights} x {row.activations}"
        say(
            f"{i + 1} of {len(cases)}  {names}: {row.weight_bits:.3f} bits, KLD {row.mean_kld:.4g}, "
            f"PPL {row.ppl:.2f}  ({left:.0f} s left)"
        )
