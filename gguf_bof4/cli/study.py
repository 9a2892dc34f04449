"""bof4 study: formats around BOF4, simulated and measured side by side."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gguf_bof4.cli.study_tables import print_errors, print_models, print_tasks
from gguf_bof4.cli.terminal import interruptible, split_names, split_numbers, table_console
from gguf_bof4.errors import UserError, require

if TYPE_CHECKING:
    from gguf_bof4.study.quality import Case
    from gguf_bof4.study.record import Format
    from gguf_bof4.study.subject import Subject
    from gguf_bof4.study.tables import ErrorRow, ModelRow

Model = Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file, or smol, gemma, qwen.")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--formats", metavar="NAME[:PARAMETER=VALUE]", help="What to measure; bof4 study formats lists all."),
]
Chunks = Annotated[int, typer.Option("--chunks", min=1, help="Chunks of 512 tokens; the second half is judged.")]
Text = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="The text to judge on (default: of bof4 bench).")
]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="FILE", help="For importance, variances and codebooks (default: reference)."),
]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="0: the default of PyTorch.")]
Output = Annotated[Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="The CSV file.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Measure again what is in the CSV file.")]
Png = Annotated[
    Path | None, typer.Option("--png", dir_okay=False, metavar="FILE", help="The picture (default: beside the CSV).")
]
Blocks = Annotated[
    list[str] | None, typer.Option("--blocks", metavar="I", help="Block sizes for all formats that have I.")
]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--pair", metavar="WEIGHTS,ACTIVATIONS", help="Formats; one alone is for both. Can be repeated."),
]

FOLDER = Path("bench/study")
"""Of the results."""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _require() -> None:
    require("hf", "bof4 study", "torch", "transformers", "safetensors")
    require("codebook", "bof4 study", "scipy")


def _parsed(values: list[str] | None, default: tuple[str, ...]) -> tuple[Format, ...]:
    from gguf_bof4.study.registry import parse_format

    return tuple(dict.fromkeys(map(parse_format, split_names(values) or default)))


def formats() -> None:
    """List the formats, their parameters with default values, and their bits on a matrix of 4096 x 4096.

    A format is written NAME:PARAMETER=VALUE:PARAMETER=VALUE, like BOF4-S:I=128:opq=0.95.
    """
    _require()
    from gguf_bof4.study.registry import FAMILIES, LISTED_SHAPE, default_of

    table = Table("format", "parameters", "bits", "what it is", title_justify="left")
    for name, family in FAMILIES.items():
        fmt = default_of(family)
        parameters = " ".join(f"{key}={getattr(fmt, key)}" for key in family.parameters())
        table.add_row(name, parameters, f"{fmt.bits_per_number(LISTED_SHAPE):.4f}", fmt.summary)
    table_console().print(table)


def _errors(
    subject: Subject | None,
    laws: Sequence[str],
    chosen: tuple[Format, ...],
    count: int,
    output: Path,
    force: bool,
    weighted: bool = False,
) -> list[ErrorRow]:
    """Measure what is missing, print tables, and return the rows of these sources and formats."""
    from gguf_bof4.study.error import measure_errors
    from gguf_bof4.study.tables import ErrorRow, Results, importance_name

    results: Results[ErrorRow] = Results(output, ErrorRow, "bof4 study error")
    with interruptible(f"what was measured is in {output}"):
        measure_errors(laws, subject, chosen, count, results, force, _say, weighted)
    wanted = {(law, "none", fmt.name) for law in laws for fmt in chosen}
    if subject is not None:
        wanted |= {(subject.name, importance_name(weighted), fmt.name) for fmt in chosen}
    rows = [row for row in results.rows if (row.source, row.importance, row.format) in wanted]
    print_errors(rows)
    return rows


def _standard_errors() -> tuple[Format, ...]:
    from gguf_bof4.study import standard
    from gguf_bof4.study.error import with_blocks

    return (
        *with_blocks(_parsed(None, standard.CODEBOOK_FORMATS), standard.BLOCKS),
        *_parsed(None, standard.OTHER_FORMATS),
    )


def error(
    model: Annotated[str | None, typer.Argument(help="Also the weights of this model.")] = None,
    laws: Annotated[
        list[str] | None, typer.Option("--laws", metavar="NAME", help="norm, laplace, uniform, t:DEGREES.")
    ] = None,
    formats: Formats = None,
    blocks: Blocks = None,
    importance: Annotated[
        bool,
        typer.Option("--importance", help="Weigh errors of the model's weights by their inputs' mean squares."),
    ] = False,
    calibration: Calibration = None,
    count: Annotated[int, typer.Option("--count", min=4096, help="Weights to draw from a law.")] = 2**20,
    output: Output = FOLDER / "error.csv",
    png: Png = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Squared and absolute error of formats on drawn weights and on a model's, for blocks of 16 to 4096.

    Matrices of a model are measured row by row where the block divides the
    rows, else flattened, as the paper has it.
    """
    _require()
    from gguf_bof4.bench.plot import check_available
    from gguf_bof4.study import plots, standard
    from gguf_bof4.study.error import with_blocks
    from gguf_bof4.study.subject import Subject
    from gguf_bof4.study.workers import set_threads

    check_available()
    if importance and model is None:
        raise UserError("--importance needs a model, whose inputs weigh the errors")
    set_threads(threads)
    chosen = _standard_errors()
    if formats or blocks:
        sizes = split_numbers("--blocks", blocks) if blocks else standard.BLOCKS
        chosen = with_blocks(_parsed(formats, standard.CODEBOOK_FORMATS), sizes)
    names = split_names(laws) or (() if importance else standard.LAWS)
    subject = None if model is None else Subject(model, calibration=calibration)
    rows = _errors(subject, names, chosen, count, output, force, importance)
    picture = png or output.with_suffix(".png")
    plots.plot_errors(rows, picture)
    _say_where(rows, output, picture)


def _say_where(rows: Sequence[object], output: Path, picture: Path) -> None:
    table_console().print(f"{len(rows)} rows in {output}, the picture in {picture}", soft_wrap=True)


def _measure_cases(
    subject: Subject,
    cases: list[Case],
    output: Path,
    force: bool,
    command: str,
    *,
    is_standard: bool = False,
    variances: Path | None = None,
) -> list[ModelRow]:
    """Measure what is missing, print a table of all cases, and return their rows.

    Args:
        is_standard: the cases are those of a list for all models: where rows of this one do not divide, weights are
            measured flat, and activations left out. Otherwise that is an error.
        variances: the file of variances by layer, where they are wanted, too.
    """
    from gguf_bof4.progress import progress_bar
    from gguf_bof4.study import plots
    from gguf_bof4.study.quality import case_key, check_case, flattened, possible, run
    from gguf_bof4.study.tables import ModelRow, Results, VarianceRow

    results: Results[ModelRow] = Results(output, ModelRow, command)

    def keys_of(case: Case) -> list[Hashable]:
        forms = (case, flattened(case)) if is_standard else (case,)
        return [case_key(form, subject.name, subject.text_name, subject.chunks) for form in forms]

    missing = [case for case in dict.fromkeys(cases) if force or not any(key in results for key in keys_of(case))]
    spread: Results[VarianceRow] | None = None
    if variances is not None:
        spread = Results(variances, VarianceRow, command)
        if not force and any(row.model == subject.name for row in spread.rows):
            spread = None
    if missing or spread is not None:
        with interruptible(f"what was measured is in {output}"), progress_bar("loading the model") as progress:
            loaded = subject.loaded()
            if is_standard:
                missing = [form for case in missing if (form := possible(case, loaded)) is not None]
            for case in missing:
                check_case(case, loaded)
            if missing or spread is not None:
                bench = subject.bench(progress)
                if spread is not None:
                    spread.add(*bench.calibrated.variances())
                    own = [row for row in spread.rows if row.model == subject.name]
                    plots.plot_variances(own, spread.path.with_suffix(".png"))
                run(bench, missing, subject.text_name, results, _say, progress)
    found = (next((row for key in keys_of(case) if (row := results.get(key))), None) for case in dict.fromkeys(cases))
    rows = [row for row in found if row is not None]
    print_models(rows)
    return rows


def _qualities(
    subject: Subject,
    formats: list[str] | None,
    sizes: tuple[int, ...],
    flat: bool,
    importance: bool,
    output: Path,
    png: Path | None,
    force: bool,
) -> None:
    from gguf_bof4.bench.plot import check_available
    from gguf_bof4.study import plots, standard
    from gguf_bof4.study.error import with_blocks
    from gguf_bof4.study.quality import Case

    check_available()
    chosen = _parsed(formats, standard.SWEPT_FORMATS if sizes else standard.QUALITY_FORMATS)
    if sizes:
        chosen = with_blocks(chosen, sizes)
    cases = [Case(fmt, flat=flat, weighted=importance and fmt.uses_importance) for fmt in chosen]
    rows = _measure_cases(subject, cases, output, force, "bof4 study quality", is_standard=not formats)
    picture = png or output.with_name(f"{output.stem}-blocks.png" if sizes else f"{output.stem}.png")
    (plots.plot_blocks if sizes else plots.plot_models)(rows, picture)
    _say_where(rows, output, picture)


def quality(
    model: Model,
    formats: Formats = None,
    blocks: Blocks = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="Blocks run over whole matrices, not rows, as in the paper.")
    ] = False,
    importance: Annotated[
        bool, typer.Option("--importance", help="Weigh errors by the inputs, where a format minimizes one.")
    ] = False,
    chunks: Chunks = 4,
    text: Text = None,
    calibration: Calibration = None,
    output: Output = FOLDER / "quality.csv",
    png: Png = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """KL divergence and perplexity of a model whose weights are quantized, in every linear layer of its decoder.

    Every row goes into the CSV file as soon as it is measured, and rows
    that are in it are not measured again. With --blocks the picture shows
    them against the block size.
    """
    _require()
    from gguf_bof4.study.subject import Subject
    from gguf_bof4.study.workers import set_threads

    set_threads(threads)
    sizes = split_numbers("--blocks", blocks) if blocks else ()
    subject = Subject(model, text, calibration, chunks)
    _qualities(subject, formats, sizes, flat, importance, output, png, force)


def parse_pair(text: str) -> tuple[Format, Format]:
    """Formats of weights and of activations from "FORMAT,FORMAT"; one alone is for both.

    Raises:
        UserError: more than two, or no such format.
    """
    from gguf_bof4.study.registry import parse_format

    parts = text.split(",")
    if len(parts) > 2:
        raise UserError(f"--pair {text}: give a format of weights and one of activations, with a comma between")
    return parse_format(parts[0]), parse_format(parts[-1])


def _cases(pairs: Sequence[str], blocks: tuple[int, ...] = ()) -> list[Case]:
    from gguf_bof4.study.quality import Case

    return [Case(w, None if a.name == "F32" else a, blocks=blocks) for w, a in map(parse_pair, pairs)]


def _activations(
    subject: Subject, cases: list[Case], is_standard: bool, output: Path, png: Path | None, force: bool
) -> None:
    from gguf_bof4.bench.plot import check_available
    from gguf_bof4.study import plots

    check_available()
    variances = output.with_name("variances.csv")
    command = "bof4 study activations"
    rows = _measure_cases(subject, cases, output, force, command, is_standard=is_standard, variances=variances)
    picture = png or output.with_suffix(".png")
    plots.plot_models(rows, picture)
    _say_where(rows, output, picture)


def activations(
    model: Model,
    pairs: Pairs = None,
    by_variance: Annotated[
        list[str] | None,
        typer.Option(
            "--by-variance",
            metavar="I",
            help="Block sizes that replace I: smaller ones for tensors of larger variance, ranked among the weights "
            "and among the activations.",
        ),
    ] = None,
    chunks: Chunks = 4,
    text: Text = None,
    calibration: Calibration = None,
    output: Output = FOLDER / "activations.csv",
    png: Png = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """KL divergence and perplexity with weights and activations quantized, in every linear layer of the decoder.

    Variances of weights and of inputs by layer are written beside the
    output, as variances.csv and variances.png.
    """
    _require()
    from gguf_bof4.study import standard
    from gguf_bof4.study.subject import Subject
    from gguf_bof4.study.workers import set_threads

    set_threads(threads)
    sizes = split_numbers("--by-variance", by_variance) if by_variance else ()
    cases = _cases(pairs or (standard.VARIANCE_PAIRS if sizes else standard.PAIRS), sizes)
    _activations(Subject(model, text, calibration, chunks), cases, not pairs, output, png, force)


def everything(
    model: Model,
    chunks: Chunks = 4,
    text: Text = None,
    calibration: Calibration = None,
    folder: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, metavar="FOLDER", help="Of the CSV files and pictures.")
    ] = FOLDER,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """The whole study of a model: errors of weights, quality, block sizes, activations, and variances by layer.

    These are the commands error, quality and activations with their default
    lists, with the block sizes of the paper's figure 3, and with block sizes
    by variance. What their CSV files have is not measured again.
    """
    _require()
    from gguf_bof4.bench.plot import check_available
    from gguf_bof4.study import plots, standard
    from gguf_bof4.study.subject import Subject
    from gguf_bof4.study.workers import set_threads

    set_threads(threads)
    subject = Subject(model, text, calibration, chunks)
    check_available()
    errors = folder / "error.csv"
    codebooks = _parsed(None, standard.CODEBOOK_FORMATS)
    rows = _errors(subject, standard.LAWS, _standard_errors(), standard.COUNT, errors, force)
    plots.plot_errors(rows, errors.with_suffix(".png"))
    _errors(subject, (), codebooks, standard.COUNT, errors, force, weighted=True)
    for sizes in ((), standard.SWEPT_BLOCKS):
        _qualities(subject, None, sizes, bool(sizes), False, folder / "quality.csv", None, force)
    cases = [*_cases(standard.PAIRS), *_cases(standard.VARIANCE_PAIRS, standard.VARIANCE_BLOCKS)]
    _activations(subject, cases, True, folder / "activations.csv", None, force)


def capture(
    model: Model,
    hellaswag: Annotated[
        list[Path] | None, typer.Option("--hellaswag", metavar="FILE", help="Tasks of HellaSwag: six lines each.")
    ] = None,
    winogrande: Annotated[
        list[Path] | None, typer.Option("--winogrande", metavar="FILE", help="Tasks of WinoGrande: CSV.")
    ] = None,
    multiple_choice: Annotated[
        list[Path] | None, typer.Option("--multiple-choice", metavar="FILE", help="Tasks in llama.cpp's binary format.")
    ] = None,
    from_text: Annotated[
        list[Path] | None,
        typer.Option("--from-text", metavar="FILE", help="Make tasks from a text: which sentence follows?"),
    ] = None,
    pairs: Pairs = None,
    tasks: Annotated[int, typer.Option("--tasks", min=0, help="The first tasks of each file; 0: all.")] = 0,
    calibration: Calibration = None,
    output: Output = FOLDER / "capture.csv",
    png: Png = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """How many multiple-choice tasks a quantized model solves, and NAV ACC, the summary over sets of the BOF4 paper.

    Files are those of llama-perplexity. NAV ACC is the mean over the sets
    of (accuracy - chance) / (1 - chance).
    """
    _require()
    from gguf_bof4.bench.plot import check_available
    from gguf_bof4.progress import progress_bar
    from gguf_bof4.study import plots, standard
    from gguf_bof4.study.capture import read_tasks
    from gguf_bof4.study.models import load, model_name
    from gguf_bof4.study.tables import Results, TaskRow
    from gguf_bof4.study.tasks import check_tasks, run_tasks
    from gguf_bof4.study.workers import set_threads

    check_available()
    given: dict[str, Any] = {
        "hellaswag": hellaswag, "winogrande": winogrande, "multiple-choice": multiple_choice, "text": from_text
    }  # fmt: skip
    sets = [read_tasks(kind, path, tasks) for kind, paths in given.items() for path in paths or ()]
    if not sets:
        raise UserError("give a set of tasks: --hellaswag, --winogrande, --multiple-choice or --from-text FILE")
    set_threads(threads)
    cases = _cases(pairs or standard.TASK_PAIRS)
    results: Results[TaskRow] = Results(output, TaskRow, "bof4 study capture")
    name = model_name(model)
    missing = check_tasks(name, cases, sets, results, force)
    if missing:
        with interruptible(f"what was measured is in {output}"), progress_bar("loading the model") as progress:
            run_tasks(load(model), calibration, missing, results, _say, progress)
    names = {case.names for case in cases}
    wanted = {(s.name, len(s.tasks)) for s in sets}
    rows = [
        r for r in results.rows
        if r.model == name and (r.weights, r.activations) in names and (r.tasks, r.count) in wanted
    ]  # fmt: skip
    print_tasks(rows)
    picture = png or output.with_suffix(".png")
    plots.plot_tasks(rows, picture)
    _say_where(rows, output, picture)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    study = typer.Typer(no_args_is_help=True, help="Measure the formats around BOF4 side by side.")
    for command in (formats, error, quality, activations, capture):
        study.command(command.__name__)(command)
    study.command("all")(everything)
    app.add_typer(study, name="study")
