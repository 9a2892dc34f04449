"""bof4 study: formats around BOF4, simulated and measured side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gguf_bof4.cli.terminal import interruptible, split_names, split_numbers, table_console
from gguf_bof4.errors import UserError, require

if TYPE_CHECKING:
    from gguf_bof4.study.quality import Case
    from gguf_bof4.study.record import Format
    from gguf_bof4.study.tables import ErrorRow, ModelRow, TaskRow, VarianceRow

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

ERROR_FORMATS = (
    "NF4", "AF4", "BOF4:metric=mae", "BOF4", "BOF4-S:metric=mae", "BOF4-S", "BOF4-S:opq=0.95", "INT", "MXFP4", "NVFP4",
    "MX4", "MX4:m=3", "VSQ", "BFP:w=4", "BFP:w=5", "BFP", "LO-BCQ", "LO-BCQ:LA=128:Nc=16",
)  # fmt: skip
BLOCKS = ("16", "32", "64", "128", "256", "512", "1024", "2048", "4096")
QUALITY_FORMATS = (
    "NF4", "AF4", "BOF4:metric=mae", "BOF4", "BOF4-S:metric=mae", "BOF4-S:metric=mae:opq=0.95", "BOF4-S",
    "BOF4-S:opq=0.9", "BOF4-S:opq=0.95", "BOF4-S:opq=0.99", "BOF4:fixed=none", "BOF4:fixed=0", "BOF4:fixed=-1/1",
    "BOF4_S", "BOF4_S:opq=0.95", "Q4_0", "IQ4_NL", "MXFP4", "NVFP4", "VSQ", "MX4", "LO-BCQ", "LO-BCQ:books=model",
    "AAAC", "ANY4:I=64",
)  # fmt: skip
PAIRS = (
    "F32,F32",
    "BFP:w=4,BFP:w=4", "BFP,BFP", "BFP:w=8,BFP:w=8", "BFP:w=4,BFP", "BM,BM", "BL,BL", "MINIFLOAT,MINIFLOAT", "DMF,DMF",
    "FIXED,FIXED", "MXFP4,MXFP4", "MXFP6,MXFP6", "MXFP8,MXFP8", "NVFP4,NVFP4", "MX4,MX4", "VSQ,VSQ",
    "LO-BCQ:books=model,LO-BCQ:books=model", "BOF4-S,BOF4-S", "BOF4-S,INT:w=8:I=32", "BOF4_S,INT:w=8:I=32",
)  # fmt: skip


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _require() -> None:
    require("hf", "bof4 study", "torch", "transformers", "safetensors")
    require("codebook", "bof4 study", "scipy")


def _parsed(values: list[str] | None, default: tuple[str, ...]) -> tuple[Format, ...]:
    from gguf_bof4.study.registry import parse_format

    return tuple(dict.fromkeys(map(parse_format, split_names(values) or default)))


def _texts(text: Path | None, calibration: Path | None) -> tuple[Path, Path, str]:
    """Both texts, and the name of the first in tables."""
    from gguf_bof4.reference_texts import calibration_text, evaluation_text
    from gguf_bof4.study.models import model_name

    chosen = evaluation_text() if text is None else text
    name = "test" if text is None else model_name(str(text))
    return chosen, calibration_text() if calibration is None else calibration, name


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


def _print_errors(rows: list[ErrorRow]) -> None:
    from gguf_bof4.study.error import ALL

    console = table_console()
    baseline = {(r.source, r.kind): r.squared for r in rows if r.format == "NF4"}
    for source in dict.fromkeys(row.source for row in rows):
        table = Table(title=f"{source}: error of all weights", title_justify="left")
        table.add_column("format")
        for heading in ("I", "bits", "squared", "absolute", "squared / NF4, I = 64"):
            table.add_column(heading, justify="right")
        for row in rows:
            if row.source == source and row.kind == ALL:
                nf4 = baseline.get((source, ALL))
                table.add_row(
                    row.format, str(row.block or ""), f"{row.bits:.4f}", f"{row.squared:.6f}", f"{row.absolute:.5f}",
                    f"{row.squared / nf4:.3f}" if nf4 else "",
                )  # fmt: skip
        console.print(table)
        kinds = list(dict.fromkeys(r.kind for r in rows if r.source == source and r.kind != ALL))
        if kinds and (source, ALL) in baseline:
            table = Table("format", *kinds, title=f"{source}: squared error / NF4, I = 64", title_justify="left")
            for name in dict.fromkeys(r.format for r in rows if r.source == source and r.block in {0, 64}):
                found = {r.kind: r.squared for r in rows if r.source == source and r.format == name}
                ratios = [f"{found[k] / baseline[source, k]:.3f}" if k in found else "" for k in kinds]
                table.add_row(name, *ratios)
            console.print(table)


def error(
    model: Annotated[str | None, typer.Argument(help="Also the weights of this model.")] = None,
    laws: Annotated[
        list[str] | None, typer.Option("--laws", metavar="NAME", help="norm, laplace, uniform, t:DEGREES.")
    ] = None,
    formats: Formats = None,
    blocks: Annotated[list[str] | None, typer.Option("--blocks", metavar="I", help="Block sizes.")] = None,
    count: Annotated[int, typer.Option("--count", min=4096, help="Weights to draw from a law.")] = 2**22,
    output: Output = Path("bench/study/error.csv"),
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
    from gguf_bof4.study import error as errors
    from gguf_bof4.study import plots
    from gguf_bof4.study.models import load
    from gguf_bof4.study.tables import ErrorRow, Results
    from gguf_bof4.study.workers import set_threads

    check_available()
    set_threads(threads)
    sizes = split_numbers("--blocks", list(split_names(blocks) or BLOCKS))
    chosen = tuple(dict.fromkeys(f for fmt in _parsed(formats, ERROR_FORMATS) for f in errors.with_blocks(fmt, sizes)))
    results: Results[ErrorRow] = Results(output, ErrorRow, "bof4 study error")
    names = split_names(laws) or ["norm", "laplace", "t:5"]
    loaded = None if model is None else load(model)
    with interruptible(f"what was measured is in {output}"):
        errors.measure_errors(names, loaded, chosen, count, results, force, _say)
    sources = {*names, *(() if loaded is None else (loaded.name,))}
    wanted = {fmt.name for fmt in chosen}
    rows = [row for row in results.rows if row.source in sources and row.format in wanted]
    _print_errors(rows)
    picture = png or output.with_suffix(".png")
    plots.plot_errors(rows, picture)
    table_console().print(f"{len(rows)} rows in {output}, the picture in {picture}", soft_wrap=True)


def _print_models(rows: list[ModelRow]) -> None:
    table = Table(title_justify="left")
    for heading in ("weights", "activations", "blocks", "importance"):
        table.add_column(heading, overflow="fold")
    for heading in ("bits", "bits", "density", "mean KLD", "99.9 % KLD", "same top", "PPL", "PPL ratio", "s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.weights, row.activations, row.blocks, row.importance, f"{row.weight_bits:.3f}",
            f"{row.activation_bits:.3f}", f"{row.density:.2f}", f"{row.mean_kld:.4f} ± {row.mean_kld_error:.4f}",
            f"{row.kld_99_9:.3f}", f"{row.same_top:.1f} %", f"{row.ppl:.3f}", f"{row.ppl_ratio:.4f}",
            f"{row.seconds:.0f}",
        )  # fmt: skip
    table_console().print(table)


def _measure_cases(
    model: str,
    cases: list[Case],
    chunks: int,
    texts: tuple[Path, Path, str],
    output: Path,
    png: Path | None,
    force: bool,
    command: str,
    variances: Path | None = None,
) -> None:
    from gguf_bof4.bench.plot import check_available
    from gguf_bof4.progress import progress_bar
    from gguf_bof4.study import plots
    from gguf_bof4.study.models import load, model_name
    from gguf_bof4.study.quality import Bench, case_key, check_case, run
    from gguf_bof4.study.tables import ModelRow, Results, VarianceRow

    check_available()
    text, calibration, text_name = texts
    results: Results[ModelRow] = Results(output, ModelRow, command)
    name = model_name(model)
    keys = {case_key(case, name, text_name, chunks): case for case in cases}
    missing = [case for key, case in keys.items() if force or key not in results]
    spread: Results[VarianceRow] | None = None
    if variances is not None:
        spread = Results(variances, VarianceRow, command)
        if not force and any(row.model == name for row in spread.rows):
            spread = None
    if missing or spread is not None:
        with interruptible(f"what was measured is in {output}"), progress_bar("loading the model") as progress:
            loaded = load(model)
            for case in missing:
                check_case(case, loaded)
            bench = Bench(loaded, text, calibration, chunks, progress)
            if spread is not None:
                spread.add(*bench.calibrated.variances())
                plots.plot_variances([r for r in spread.rows if r.model == name], spread.path.with_suffix(".png"))
            run(bench, missing, text_name, results, _say, progress)
    rows = [row for row in results.rows if row.key in keys]
    _print_models(rows)
    picture = png or output.with_suffix(".png")
    plots.plot_models(rows, picture)
    table_console().print(f"{len(rows)} rows in {output}, the picture in {picture}", soft_wrap=True)


def quality(
    model: Model,
    formats: Formats = None,
    blocks: Annotated[
        list[str] | None, typer.Option("--blocks", metavar="I", help="Block sizes for all formats that have I.")
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="Blocks run over whole matrices, not rows, as in the paper.")
    ] = False,
    importance: Annotated[
        bool, typer.Option("--importance", help="Weigh errors by the inputs, where a format minimizes one.")
    ] = False,
    chunks: Chunks = 4,
    text: Text = None,
    calibration: Calibration = None,
    output: Output = Path("bench/study/quality.csv"),
    png: Png = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """KL divergence and perplexity of a model whose weights are quantized, in every linear layer of its decoder.

    Every row goes into the CSV file as soon as it is measured, and rows
    that are in it are not measured again.
    """
    _require()
    from gguf_bof4.study.error import with_blocks
    from gguf_bof4.study.quality import Case
    from gguf_bof4.study.workers import set_threads

    set_threads(threads)
    chosen = _parsed(formats, QUALITY_FORMATS)
    if blocks:
        sizes = split_numbers("--blocks", blocks)
        chosen = tuple(dict.fromkeys(f for fmt in chosen for f in with_blocks(fmt, sizes)))
    cases = [Case(fmt, flat=flat, weighted=importance and fmt.uses_importance) for fmt in chosen]
    _measure_cases(model, cases, chunks, _texts(text, calibration), output, png, force, "bof4 study quality")


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


def activations(
    model: Model,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pair", metavar="WEIGHTS,ACTIVATIONS", help="Formats; one alone is for both. Can be repeated."),
    ] = None,
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
    output: Output = Path("bench/study/activations.csv"),
    png: Png = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """KL divergence and perplexity with weights and activations quantized, in every linear layer of the decoder.

    Variances of weights and of inputs by layer are written beside the
    output, as variances.csv and variances.png.
    """
    _require()
    from gguf_bof4.study.quality import Case
    from gguf_bof4.study.workers import set_threads

    set_threads(threads)
    sizes = split_numbers("--by-variance", by_variance) if by_variance else ()
    cases = [Case(w, None if a.name == "F32" else a, blocks=sizes) for w, a in map(parse_pair, pairs or PAIRS)]
    _measure_cases(
        model, cases, chunks, _texts(text, calibration), output, png, force, "bof4 study activations",
        output.with_name("variances.csv"),
    )  # fmt: skip


def _print_tasks(rows: list[TaskRow]) -> None:
    from gguf_bof4.study.capture import nav_accuracy

    sets = list(dict.fromkeys(row.tasks for row in rows))
    table = Table("weights", "activations", *sets, "NAV ACC", title_justify="left")
    for names in dict.fromkeys((row.weights, row.activations) for row in rows):
        own = [row for row in rows if (row.weights, row.activations) == names]
        found = {row.tasks: f"{100 * row.accuracy:.1f} %" for row in own}
        complete = f"{100 * nav_accuracy(own):.1f} %" if len(own) == len(sets) else ""
        table.add_row(*names, *(found.get(name, "") for name in sets), complete)
    table_console().print(table)


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
    pairs: Annotated[
        list[str] | None, typer.Option("--pair", metavar="WEIGHTS,ACTIVATIONS", help="As for bof4 study activations.")
    ] = None,
    tasks: Annotated[int, typer.Option("--tasks", min=0, help="The first tasks of each file; 0: all.")] = 0,
    calibration: Calibration = None,
    output: Output = Path("bench/study/capture.csv"),
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """How many multiple-choice tasks a quantized model solves, and NAV ACC, the summary over sets of the BOF4 paper.

    Files are those of llama-perplexity. NAV ACC is the mean over the sets
    of (accuracy - chance) / (1 - chance).
    """
    _require()
    from gguf_bof4.progress import progress_bar
    from gguf_bof4.study.capture import read_tasks
    from gguf_bof4.study.models import load, model_name
    from gguf_bof4.study.quality import Case
    from gguf_bof4.study.tables import Results, TaskRow
    from gguf_bof4.study.tasks import check_tasks, run_tasks
    from gguf_bof4.study.workers import set_threads

    given: dict[str, Any] = {
        "hellaswag": hellaswag, "winogrande": winogrande, "multiple-choice": multiple_choice, "text": from_text
    }  # fmt: skip
    sets = [read_tasks(kind, path, tasks) for kind, paths in given.items() for path in paths or ()]
    if not sets:
        raise UserError("give a set of tasks: --hellaswag, --winogrande, --multiple-choice or --from-text FILE")
    set_threads(threads)
    chosen = pairs or ["F32", "NF4,F32", "BOF4-S,F32", "LO-BCQ", "MXFP4"]
    cases = [Case(w, None if a.name == "F32" else a) for w, a in map(parse_pair, chosen)]
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
    _print_tasks(rows)
    table_console().print(f"{len(rows)} rows in {output}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    study = typer.Typer(no_args_is_help=True, help="Measure the formats around BOF4 side by side.")
    for command in (formats, error, quality, activations, capture):
        study.command(command.__name__)(command)
    app.add_typer(study, name="study")
