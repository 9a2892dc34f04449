"""Plan and run the quality bench: every variant of every model, measured on every text."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as TensorType

from gguf_bof4 import encoders
from gguf_bof4.bench import auto_round, cost
from gguf_bof4.bench.disk import check_disk
from gguf_bof4.bench.measure import bits_per_weight, block_matrices, check_rest, fallbacks, types_of
from gguf_bof4.bench.nf4 import BITS_PER_WEIGHT as NF4_BITS
from gguf_bof4.bench.nf4 import NF4, make_nf4
from gguf_bof4.bench.peers import IMATRIX_CHUNKS, PEERS, make_peer
from gguf_bof4.bench.results import Key, Row, add_row
from gguf_bof4.bench.variants import NO_LISTS, Variant
from gguf_bof4.convert import convert, random_tokens
from gguf_bof4.divergence import REMEDY, distance, write_logits
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.programs import make_imatrix
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.paths import write_text
from gguf_bof4.progress import duration_text
from gguf_bof4.reference_models import REFERENCE_MODELS, reference_model
from gguf_bof4.reference_texts import (
    calibration_text,
    code_text,
    dialogue_text,
    evaluation_text,
    german_text,
    held_out_text,
    licences_text,
    quotations_text,
)
from gguf_bof4.search import run as search
from gguf_bof4.search.candidates import DEFAULT_LIST_BITS, types_for
from gguf_bof4.search.report import recipe_of
from gguf_bof4.search.targets import Target

TEXTS: Mapping[str, Callable[[], Path]] = {
    "test": evaluation_text,
    "held-out": held_out_text,
    "code": code_text,
    "dialogue": dialogue_text,
    "german": german_text,
}
"""Nothing is tuned on any but the first; calibration uses other texts."""

DEFAULT_TEXTS = ("test", "held-out")

CALIBRATION_TEXTS: Mapping[str, Callable[[], Path]] = {
    "calibration": calibration_text,
    "quotations": quotations_text,
    "licences": licences_text,
}
"""Texts to calibrate with, by the names that `variants.VARIATIONS` has for them."""

SEARCH_CHUNKS = search.CHUNKS
"""Of the calibration text, for the gradients of mixtures."""

ENCODERS = tuple(encoder.name for encoder in encoders.ENCODERS)
"""Of the converter."""

SMALL_MODELS = tuple(name for name in REFERENCE_MODELS if name != "qwen")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """A file to make, and the texts to measure it on."""

    model: str
    variant: Variant
    texts: tuple[str, ...]

    def seconds(self, chunks: int) -> float:
        """An estimate, without what is made once for a model."""
        return cost.making_seconds(self.model, self.variant) + len(self.texts) * cost.measuring_seconds(
            self.model, chunks
        )


@dataclass(frozen=True)
class Plan:
    """What is to be measured, grouped by model.

    Attributes:
        rows: that were asked for.
        steps: those of the rows that are not there yet.
        chunks: of 512 tokens of each text.
    """

    rows: tuple[Key, ...]
    steps: tuple[Step, ...]
    chunks: int

    def of_model(self, model: str) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.model == model)

    @property
    def models(self) -> tuple[str, ...]:
        """Those that something is to be done for."""
        return tuple(dict.fromkeys(step.model for step in self.steps))

    def texts(self, model: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text for step in self.of_model(model) for text in step.texts))

    def uses(self, model: str, importance: str) -> bool:
        """Does any step use this importance matrix? Searches of mixtures use that of the text."""
        used = any(step.variant.importance == importance for step in self.of_model(model))
        return used or (importance == "imatrix" and self.searches(model))

    def searches(self, model: str) -> bool:
        """Is any step a mixture that `bof4 search` finds?"""
        return any(step.variant.searched_bits is not None for step in self.of_model(model))

    def shared_seconds(self, model: str) -> float:
        """Of the work done once per model: the unquantized distributions, and the importance matrix."""
        logits = len(self.texts(model)) * cost.measuring_seconds(model, self.chunks)
        texts = {"imatrix": IMATRIX_CHUNKS, "random": random_tokens.CHUNKS}
        chunks = sum(n for importance, n in texts.items() if self.uses(model, importance))
        searching = cost.search_seconds(model) if self.searches(model) else 0.0
        return logits + cost.imatrix_seconds(model, chunks) + searching

    def seconds(self, model: str) -> float:
        """An estimate of the whole time for a model."""
        return self.shared_seconds(model) + sum(step.seconds(self.chunks) for step in self.of_model(model))

    def disk_bytes(self, model: str) -> int:
        """Most bytes that are in the temporary folder at a time."""
        files = (cost.file_bytes(model, step.variant) for step in self.of_model(model))
        return len(self.texts(model)) * cost.logits_bytes(model, self.chunks) + max(files, default=0)


def make_plan(
    models: Sequence[str], variants: Sequence[Variant], texts: Sequence[str], chunks: int, done: Collection[Key]
) -> Plan:
    """Everything asked for, less the rows in `done`."""
    rows: list[Key] = []
    steps: list[Step] = []
    for model in models:
        for variant in variants:
            keys = {text: (model, text, variant, chunks, variant.recipe) for text in texts}
            rows += keys.values()
            if missing := tuple(text for text, key in keys.items() if key not in done):
                steps.append(Step(model, variant, missing))
    return Plan(tuple(rows), tuple(steps), chunks)


def check(plan: Plan) -> None:
    """Raise UserError for an encoder that the converter does not have, before hours are spent on the others."""
    for variant in dict.fromkeys(step.variant for step in plan.steps if step.variant.converted):
        if variant.converter_encoder not in ENCODERS:
            raise UserError(
                f"this gguf-bof4 cannot encode {variant.type} with {variant.encoder}: name the others with --encoders"
            )


def our_options(variant: Variant, imatrix: Path, recipe: Path | None = None) -> dict[str, Any]:
    """A variant that the converter makes, in the words of gguf_bof4.convert.

    Args:
        imatrix: the importance matrix, where it is needed.
        recipe: of a mixture of types.
    """
    options: dict[str, Any] = {
        "encoder": variant.converter_encoder, "token_embedding_type": "F16", "output_tensor_type": "F16",
        **variant.variation.options,
    }
    if recipe is not None:
        options |= {"recipe": str(recipe), "opq": (NO_LISTS,)}
    elif variant.list_bits is not None:
        options |= {"type": variant.type, "opq_bits": variant.list_bits}
    else:
        options |= {"type": variant.type, "opq": (variant.opq,)}
    if variant.importance is not None:
        options["imatrix"] = str(imatrix)
    if encoders.encoder_of(variant.converter_encoder).calibrate is not None:
        options["calibration"] = tuple(
            str(CALIBRATION_TEXTS[name]()) if name in CALIBRATION_TEXTS else name for name in variant.variation.texts
        )
    return options


class ModelBench:
    """One model while it is measured, and the files that all of its rows use."""

    def __init__(
        self, plan: Plan, model: str, threads: int, folder: Path, say: Say, auto_round_program: Path | None = None
    ) -> None:
        """Make the files that all rows use: distributions of the unquantized model, and importance matrices if needed.

        Args:
            folder: for all files, empty.
            auto_round_program: needed where the plan has AutoRound.
        """
        self.auto_round_program = auto_round_program
        self.model, self.chunks, self.threads, self.folder = model, plan.chunks, threads, folder
        self.source = reference_model(model)
        self.source_model = open_model(self.source)
        self.logits = {text: folder / f"{text}.logits" for text in plan.texts(model)}
        for text, path in self.logits.items():
            say(f"{model}, {text}: the unquantized model")
            write_logits(self.source, TEXTS[text](), self.chunks, path, threads)
        self.imatrix = self.random_imatrix = folder / "imatrix.gguf"
        if plan.uses(model, "imatrix"):
            say(f"{model}: importance matrix")
            make_imatrix(self.source, calibration_text(), self.imatrix, IMATRIX_CHUNKS, threads, REMEDY)
        if plan.uses(model, "random"):
            say(f"{model}: importance matrix from random tokens")
            self.random_imatrix = random_tokens.random_imatrix(self.source, folder, threads)

    def make(self, variant: Variant, recipe: Path | None) -> Path:
        """The quantized file.

        Args:
            recipe: of a mixture of types.
        """
        target = self.folder / "quantized.gguf"
        if variant.type == NF4:
            make_nf4(self.source, target)
        elif variant.encoder in auto_round.ENCODERS:
            assert self.auto_round_program is not None
            auto_round.make_auto_round(
                variant.type, variant.encoder, self.source_model, calibration_text(), target, self.auto_round_program,
                self.threads,
            )  # fmt: skip
        elif variant.type in PEERS and not variant.converted:
            weights = self.imatrix if variant.encoder == "imatrix" else None
            make_peer(PEERS[variant.type], self.source, target, weights, self.threads)
        else:
            imatrix = self.random_imatrix if variant.importance == "random" else self.imatrix
            convert(self.source, target, threads=self.threads, **our_options(variant, imatrix, recipe))
        return target

    def _recipe(self, variant: Variant, bits: float) -> Path:
        """The recipe of `bof4 search` for a number of bits per weight; losses are measured once for a model."""
        settings = search.Settings(
            calibration=(calibration_text(),), imatrix=self.imatrix, gradients=True, chunks=SEARCH_CHUNKS,
            types=types_for(encoders.encoder_of(variant.converter_encoder)), list_bits=DEFAULT_LIST_BITS,
            tables=dict.fromkeys(("token_embd.weight", "output.weight"), TensorType.F16), threads=self.threads,
        )  # fmt: skip
        work = self.folder / "search"
        work.mkdir(exist_ok=True)
        target = Target(bits=bits)
        measured = search.measure(self.source_model, settings, target, work, lambda *_: None)
        path = self.folder / "recipe.txt"
        write_text(path, recipe_of(measured, search.assign(measured, target)))
        return path

    def _others(self, variant: Variant, made: Model) -> dict[str, int]:
        check_rest(made, self.source_model)
        if variant.searched_bits is not None:
            return types_of(made)
        return {} if variant.type == NF4 else fallbacks(made, variant.type, variant.encoder in auto_round.ENCODERS)

    def rows(self, step: Step, add: Callable[[Row], None]) -> None:
        """Make a file, measure it on each text, pass each row to `add` at once, and remove the file."""
        variant = step.variant
        recipe = None if variant.searched_bits is None else self._recipe(variant, variant.searched_bits)
        began = time.monotonic()
        path = self.make(variant, recipe)
        seconds = round(time.monotonic() - began, 1)
        made = open_model(path)
        others = self._others(variant, made)
        bits = NF4_BITS if variant.type == NF4 else bits_per_weight(made)
        for text in step.texts:
            found = distance(path, self.logits[text], self.chunks, self.threads)
            add(
                Row(
                    model=self.model, text=text, type=variant.type, encoder=variant.encoder, opq=variant.opq,
                    chunks=self.chunks, recipe=variant.recipe, bits_per_weight=bits, **dataclasses.asdict(found),
                    matrices=len(block_matrices(made)),
                    fallback=" + ".join(f"{count} {name}" for name, count in others.items()), seconds=seconds,
                )
            )  # fmt: skip
        path.unlink()


def run(plan: Plan, output: Path, threads: int, say: Say, auto_round_program: Path | None = None) -> None:
    """Run the plan, one step at a time; each row is in `output` as soon as it is measured.

    Args:
        threads: of all programs and encoders; 0: their defaults.
        say: called with lines that report progress.
        auto_round_program: given by the user; None: the one in PATH, where AutoRound is to be measured.

    Raises:
        UserError: something cannot be made or measured, or the disk is too small.
    """
    check(plan)
    if any(step.variant.encoder in auto_round.ENCODERS for step in plan.steps):
        auto_round_program = auto_round.find_program(auto_round_program)
    n_rows, n_done = sum(len(step.texts) for step in plan.steps), 0
    started, expected = time.monotonic(), 0.0
    total = sum(plan.seconds(model) for model in plan.models)
    for model in plan.models:
        with tempfile.TemporaryDirectory(prefix="bof4-bench-") as folder:
            remedy = "set TMPDIR to a folder with more, or give fewer --chunks"
            check_disk(Path(folder), plan.disk_bytes(model), f"measuring {model}", remedy)
            bench = ModelBench(plan, model, threads, Path(folder), say, auto_round_program)
            expected += plan.shared_seconds(model)
            for step in plan.of_model(model):
                measured: list[Row] = []

                def add(row: Row, measured: list[Row] = measured) -> None:
                    add_row(output, row)
                    measured.append(row)

                bench.rows(step, add)
                expected += step.seconds(plan.chunks)
                n_done += len(measured)
                # estimates give the ratio of done and remaining work, the clock the speed of this machine
                left = (time.monotonic() - started) * max(0, total / expected - 1)
                divergences = ", ".join(f"{row.mean_kld:.4g} on {row.text}" for row in measured)
                say(
                    f"{n_done} of {n_rows} rows  {model} {step.variant}: {measured[0].bits_per_weight:.3f} bits, "
                    f"KLD {divergences}  ({duration_text(left)} left)"
                )
