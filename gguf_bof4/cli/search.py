"""bof4 search: the type of each tensor under a budget of bits."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.box
import typer
from rich.table import Table

from gguf_bof4.cli.model_file import HELP, local_path
from gguf_bof4.cli.terminal import interruptible, split_names, table_console
from gguf_bof4.convert.options import SELF
from gguf_bof4.errors import UserError, require
from gguf_bof4.progress import progress_bar

if TYPE_CHECKING:
    from gguf_bof4.search.report import Point
    from gguf_bof4.search.run import Assignment, Measured, Settings
    from gguf_bof4.search.targets import Target

SENSITIVITIES = ("gradient", "none")
_WORST = 8


@dataclass(frozen=True)
class _Outputs:
    """Files to write."""

    recipe: Path
    csv: Path | None
    plot: Path | None
    force: bool

    @property
    def all(self) -> list[Path]:
        return [path for path in (self.recipe, self.csv, self.plot) if path is not None]

    def check(self) -> None:
        """Raise UserError for what cannot be written, before time is spent."""
        from gguf_bof4.search.report import check_output

        for path in self.all:
            check_output(path, self.force)
        if self.plot is not None:
            require("bench", "--plot", "matplotlib")

    def write(self, measured: Measured, assignment: Assignment, target: Target, points: list[Point]) -> None:
        from gguf_bof4.search import report, sizes

        report.write(self.recipe, report.recipe_of(measured, assignment), self.force)
        if self.csv is not None:
            report.write(self.csv, report.sensitivity_csv(measured, assignment), self.force)
        if self.plot is not None:
            curve, uniform = sizes.curve(measured, target), sizes.uniform(measured, assignment)
            report.plot(self.plot, curve, assignment, points, uniform)
        print("\nwritten:")
        for path in self.all:
            print(f"    {path}")


@dataclass(frozen=True)
class _Judged:
    """What is measured by llama-perplexity.

    Attributes:
        sizes: number of sizes.
        chunks: of the text.
        trials: of TPE; `study` is their database.
    """

    text: Path | None
    sizes: int
    chunks: int
    trials: int
    study: Path | None

    @property
    def the_text(self) -> Path:
        if self.text is None:
            raise UserError("--measure and --trials judge on a text: give one with --file TEXT")
        return self.text

    def check(self) -> None:
        """Raise UserError where something is missing, before time is spent."""
        if self.trials:
            require("search", "bof4 search --trials", "optuna")
        if (self.sizes or self.trials) and not self.the_text.is_file():
            raise UserError(f"the text {self.text} {'is a folder' if self.the_text.is_dir() else 'does not exist'}")


def _say(text: str) -> None:
    print(f"bof4 search: {text}", file=sys.stderr)


def _print_report(measured: Measured, assignment: Assignment, points: list[Point]) -> None:
    from gguf_bof4.convert.report import size_text
    from gguf_bof4.gguf_files.header import escaped
    from gguf_bof4.search import report

    print(f"types:         {report.types_text(assignment)}")
    print(f"matrices:      {assignment.bits_per_weight:.3f} bits per weight, with their lists")
    print(f"file:          at most {size_text(assignment.file_bytes)}")
    print(f"loss:          {report.loss_text(measured, assignment.loss)}")
    console = table_console()
    box = rich.box.HEAVY_HEAD if console.is_terminal else None
    worst = report.by_layer(assignment)[:_WORST]
    for heading, shares in (("matrices", report.by_group(assignment)), ("layers with the largest loss", worst)):
        table = Table(heading, box=box)
        for column in ("bits per weight", "loss", "share"):
            table.add_column(column, justify="right")
        for s in shares:
            table.add_row(s.name, f"{s.bits_per_weight:.2f}", f"{s.loss:.4g}", f"{100 * s.share:.1f} %")
        console.print()
        console.print(table)
    table = Table("most sensitive tensors", "type", box=box)
    table.add_column("alpha per weight, 1 is the mean", justify="right")
    for a, alpha in report.by_alpha(measured, assignment)[:_WORST]:
        table.add_row(escaped(a.tensor.name), a.candidate.name, f"{alpha:.1f}")
    console.print()
    console.print(table)
    if points:
        table = Table("bits per weight", box=box)
        for column in ("file", "predicted", "measured KL divergence"):
            table.add_column(column, justify="right")
        for p in points:
            table.add_row(
                f"{p.bits_per_weight:.3f}", size_text(p.file_bytes), f"{p.predicted:.4g}",
                f"{p.measured:.4g} ± {p.error:.2g}",
            )  # fmt: skip
        console.print()
        console.print(table)
        print("order:         " + ("predicted and measured agree" if report.same_order(points) else "they differ"))


def _settings(
    imatrix: Path | None, sensitivity: str, types: list[str] | None, list_bits: float,
    token_embedding: str | None, output: str | None, chunks: int, threads: int,
) -> Settings:  # fmt: skip
    """All but the calibration texts."""
    from gguf_bof4.convert.list_rules import MOST_BITS
    from gguf_bof4.search.candidates import DEFAULT_TYPES, parse_tables, parse_types
    from gguf_bof4.search.run import Settings

    if sensitivity not in SENSITIVITIES:
        raise UserError(f"--sensitivity {sensitivity}: give {' or '.join(SENSITIVITIES)}")
    if imatrix is not None and not imatrix.is_file():
        raise UserError(f"the importance matrix {imatrix} {'is a folder' if imatrix.is_dir() else 'does not exist'}")
    if not 0 <= list_bits <= MOST_BITS:
        raise UserError(f"--opq-bits {list_bits:g}: give bits per weight up to {MOST_BITS:g}; 0: no outlier lists")
    return Settings(
        calibration=(),
        imatrix=imatrix,
        gradients=sensitivity == "gradient",
        types=parse_types(split_names(types) or DEFAULT_TYPES, importance=True),
        list_bits=list_bits or None,
        tables=parse_tables(token_embedding, output),
        chunks=chunks,
        threads=threads,
    )


def _tuned(measured: Measured, target: Target, judged: _Judged, model: object, folder: Path) -> Assignment:
    """The best assignment of TPE's trials.

    Args:
        model: the hash of its contents.
        folder: of the study's database, where none is named.
    """
    from gguf_bof4.search.measuring import Judge
    from gguf_bof4.search.run import assign
    from gguf_bof4.search.tuning import tune
    from gguf_bof4.search.work import content_key

    study = judged.study or folder / f"trials-{target.name}.db"
    subject = {"model": model, "target": target.name, "text": content_key([judged.the_text]), "chunks": judged.chunks}
    with tempfile.TemporaryDirectory(prefix="bof4-search-") as name:
        judge = Judge(measured, judged.the_text, judged.chunks, Path(name))
        tuned = tune(
            measured, study, subject, judged.trials, lambda factors: assign(measured, target, factors),
            lambda assignment: judge.measure(assignment).measured, _say,
        )  # fmt: skip
    print(f"trials:        {tuned.trials}; KL divergence {tuned.first:.4g} before, {tuned.best:.4g} after ({study})")
    return assign(measured, target, tuned.factors)


def search(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"Unquantized (F32, F16, BF16): a Hugging Face folder, or: {HELP}"),
    ],
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write: a type for each tensor.")],
    target_bpw: Annotated[
        float | None,
        typer.Option(metavar="BITS", help="Bits per weight of the decoder layers' matrices, with their outlier lists."),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="N(K|M|G)",
            help="Size of the file, all of it: 900M, 3.9G (powers of 1000) or 3.6GiB. Embeddings are searched, too.",
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Calibration texts, as of bof4 convert: files, folders, JSON Lines, self (default: self, text that "
            "the model writes; with --sensitivity none no text).",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An importance matrix (default: made from the texts or random tokens)."),
    ] = None,
    sensitivity: Annotated[
        str,
        typer.Option(
            metavar="|".join(SENSITIVITIES),
            help="gradient: what each matrix does to the KL divergence, by one backward pass over the text (extra hf). "
            "none: squared errors weighted by the importance matrix.",
        ),
    ] = "gradient",
    types: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE,...",
            help="Candidates (default: Q3_K, IQ3_S, BOF4_S, BOF4_K, Q4_K, Q5_K, Q6_K, Q8_0). Where rows do not divide "
            "into blocks of one, its fallback is one.",
        ),
    ] = None,
    opq_bits: Annotated[
        float, typer.Option(metavar="BITS", help="Bits per weight of outlier lists of BOF4 types; 0: no lists.")
    ] = 0.05,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the token embeddings (with --target-bpw Q6_K).")
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of output.weight (with --target-bpw Q6_K).")
    ] = None,
    chunks: Annotated[
        int,
        typer.Option(
            min=1, help="Chunks of 512 tokens of the text, for gradients; twice as many for the importance matrix."
        ),
    ] = 16,
    measure: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Measure the KL divergence at N sizes and of the recipe."),
    ] = 0,
    text: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="TEXT",
            help="The text for --measure and --trials (default: that of --calibration, where it is one file).",
        ),
    ] = None,
    measured_chunks: Annotated[
        int, typer.Option("--measured-chunks", min=1, help="Chunks of 512 tokens of it.")
    ] = 8,
    trials: Annotated[
        int,
        typer.Option(
            min=0, metavar="N",
            help="Refine by N trials of Optuna's TPE: measured divergence, groups of tensors (extra search).",
        ),
    ] = 0,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Database (SQLite) of the trials (default: in the cache).")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table of all tensors: types, alpha, losses.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PICTURE", help="Draw size against divergence (PNG, SVG or PDF; needs matplotlib)."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where measurements are kept (default: in the cache).")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0: all cores.")] = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite RECIPE and the other files.")] = False,
) -> None:
    """Find the best type for each tensor under a budget, and write a recipe.

    The loss of every tensor in every candidate type is predicted from a
    calibration text, or text that the model writes, and the assignment of
    least loss is taken. Measurements are kept in the cache: another target
    takes seconds, and a run that was killed resumes.

        bof4 search model-f16.gguf recipe.txt --target-size 900M --calibration text.txt
        bof4 convert model-f16.gguf out.gguf --recipe recipe.txt --imatrix FILE

    llama-quantize --tensor-type-file takes the recipe, too, without lists.
    """
    from gguf_bof4.convert.preparation import check_sources
    from gguf_bof4.search.targets import parse_target
    from gguf_bof4.search.texts import single_text

    target = parse_target(target_bpw, target_size)
    sources = tuple(calibration or ((SELF,) if sensitivity == "gradient" else ()))
    check_sources(sources)
    alone = None if SELF in sources else single_text(tuple(map(Path, sources)))
    with interruptible("measurements are kept"):
        _search(
            local_path(model), _Outputs(recipe, csv, plot, force), target, sources,
            _settings(
                imatrix, sensitivity, types, opq_bits, token_embedding_type, output_tensor_type, chunks, threads,
            ),
            _Judged(text or alone, measure, measured_chunks, trials, study), work,
        )  # fmt: skip


def _search(
    path: Path, outputs: _Outputs, target: Target, sources: Sequence[str], settings: Settings, judged: _Judged,
    work_folder: Path | None,
) -> None:  # fmt: skip
    from gguf_bof4.ggml_patch.build import installed_bin
    from gguf_bof4.gguf_files.model import open_model
    from gguf_bof4.search import run, sizes, texts
    from gguf_bof4.search.measuring import measure_all
    from gguf_bof4.search.preparation import prepare

    outputs.check()
    judged.check()
    installed_bin()
    if path.is_file():
        run.quantizable(open_model(path))  # says what is wrong before anything is made
    if settings.gradients:
        run.require_gradients()
    with progress_bar("calibration texts") as progress:
        read = texts.resolved(
            path, sources, settings.imatrix_chunks, run.CONTEXT, settings.threads, progress
        )
    prepared = prepare(path, replace(settings, calibration=read), work_folder)
    if estimate := prepared.estimate:
        _say(estimate)
    with progress_bar("reading the model") as progress:
        measured = run.measure(prepared.model, prepared.settings, target, prepared.folder, progress)
    assignment = run.assign(measured, target)
    if judged.trials:
        assignment = _tuned(measured, target, judged, prepared.fingerprint["model"], prepared.folder)
    points = []
    if judged.sizes:
        others = [run.assign(measured, t) for t in sizes.targets_around(measured, target, judged.sizes)]
        points = measure_all(measured, [*others, assignment], judged.the_text, judged.chunks)
    _print_report(measured, assignment, points)
    outputs.write(measured, assignment, target, points)
    print("next:")
    print(
        f"    bof4 convert {shlex.quote(str(path))} OUT --recipe {shlex.quote(str(outputs.recipe))} "
        f"--imatrix {shlex.quote(str(measured.imatrix))}"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search")(search)
