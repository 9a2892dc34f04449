"""bof4 bench speed: how fast llama-bench runs files of these types, beside those of llama.cpp."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gguf_bof4.cli.terminal import interruptible, split_names, split_numbers, table_console
from gguf_bof4.cores import physical_cores
from gguf_bof4.progress import duration_text

if TYPE_CHECKING:
    from gguf_bof4.bench.speed.results import Row, Setup
    from gguf_bof4.bench.speed.rounds import Plan
    from gguf_bof4.bench.variants import Variant

ALL_LAYERS = 99


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _setup(rows: list[Row], model: str, threads: int, repack: bool, gpu_layers: int, built: bool) -> Setup:
    """What is to be measured or shown; without a build, the setup that was measured last."""
    from gguf_bof4.bench.speed.machine import machine_name
    from gguf_bof4.bench.speed.measure import build_id, processors
    from gguf_bof4.bench.speed.results import Setup

    if built:
        return Setup(model, build_id(), processors(gpu_layers), threads or physical_cores(), repack, machine_name())
    for row in reversed(rows):
        if row.model == model and bool(row.repack) == repack and threads in {0, row.threads}:
            return row.setup
    return Setup(model, "", "", threads or physical_cores(), repack)


def _print_plan(plan: Plan, source: Path | None, size: str, folder: Path | None, console: Console) -> None:
    from gguf_bof4.bench.speed.files import open_source
    from gguf_bof4.bench.speed.synthetic import SHAPES

    table = Table("type", "lists", title=f"in each round of {plan.setup.model}", title_justify="left")
    table.add_column("tests")
    for variant in plan.variants:
        table.add_row(variant.type, variant.opq, ", ".join(plan.tests))
    console.print(table)
    n_weights = SHAPES[size].n_weights if source is None else sum(t.n_weights for t in open_source(source).tensors)
    console.print(
        f"{plan.there} of {plan.n_rounds} rounds are there, {len(plan.numbers)} to measure, about "
        f"{duration_text(plan.round_seconds(n_weights))} each on two cores; before, the files: "
        f"{n_weights * 1e-9 * ((2 if source is None else 0) + 0.66 * len(plan.variants)):.1f} GB, about "
        f"{duration_text(plan.making_seconds(n_weights))}" + (f", unless they are in {folder}" if folder else "")
    )


def _show(
    rows: list[Row],
    setup: Setup,
    variants: tuple[Variant, ...],
    tests: tuple[str, ...],
    png: Path,
    with_goals: bool,
    console: Console,
) -> None:
    from gguf_bof4.bench import goals
    from gguf_bof4.bench.speed.plot import plot
    from gguf_bof4.bench.speed.ratios import Measured
    from gguf_bof4.bench.speed.results import complete_rounds
    from gguf_bof4.bench.speed.table import speed_table
    from gguf_bof4.errors import UserError

    rounds = complete_rounds(rows, setup, variants, tests)
    if not rounds:
        raise UserError("no round has all of these types and tests: measure them, without --plot-only")
    measured = Measured(rounds, variants, tests)
    for test in tests:
        console.print(speed_table(setup, measured, test), "")
    if with_goals and (outcomes := goals.judge_speed(measured, setup.instructions)):
        console.print(goals.speed_table(outcomes))
    plot(setup, measured, png)
    console.print(f"{len(rounds)} rounds, the picture in {png}", soft_wrap=True)


def speed(
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="FILE", help="An unquantized GGUF file (default: random weights)."),
    ] = None,
    size: Annotated[
        str,
        typer.Option(metavar="1b|8b|moe", help="Random weights: 8b is for GPUs, and takes 14 GB; moe: 16 experts."),
    ] = "1b",
    types: Annotated[
        list[str] | None,
        typer.Option("--types", metavar="TYPE", help="This project's and llama.cpp's (default: all of 4 bits)."),
    ] = None,
    opq: Annotated[
        list[str] | None,
        typer.Option("--opq", metavar="Q", help="Quantiles of the outlier lists, or off (default: off)."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="In all, with those in the CSV file.")] = 5,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Of each test in a round.")] = 3,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", metavar="N", help="Tokens of prompts (default: 256, 512).")
    ] = None,
    generate: Annotated[int, typer.Option("--generate", "-n", min=0, help="Tokens to generate; 0: none.")] = 64,
    batch: Annotated[
        list[str] | None,
        typer.Option("--batch", metavar="N", help="Sequences that generate at once, of a server (default: none)."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="Threads; 0: one for each core.")] = 0,
    repack: Annotated[
        bool, typer.Option("--repack/--no-repack", help="Repack weights at load, as llama.cpp does by default.")
    ] = True,
    gpu_layers: Annotated[
        int,
        typer.Option("--gpu-layers", "-ngl", min=0, help="Layers on the GPU, with a build for one (CUDA, Vulkan)."),
    ] = ALL_LAYERS,
    files: Annotated[
        Path | None,
        typer.Option("--files", file_okay=False, metavar="FOLDER", help="Keep the quantized files, and reuse them."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="The CSV file.")
    ] = Path("bench/speed.csv"),
    png: Annotated[
        Path | None,
        typer.Option("--png", dir_okay=False, metavar="FILE", help="The picture (default: beside the CSV file)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Ignore the rounds that are in the CSV file.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show what would be measured, and how long it takes.")] = False,
    plot_only: Annotated[bool, typer.Option("--plot-only", help="Measure nothing: table and picture.")] = False,
    goals: Annotated[bool, typer.Option("--goals", help="For developers: compare with the project's goals.")] = False,
) -> None:
    """Measure how fast llama-bench runs files of this project's types and of llama.cpp's.

    The model is a llama of a billion random weights, made once and kept in
    the cache (2.1 GB); --size moe is a mixture of 16 experts, of which a
    token uses two. All matrices of the blocks get the type, embeddings are
    Q6_K. Each round runs every file once, in another order, and measures
    how fast memory is read: compare within rounds.

    Every figure goes into the CSV file at once. Complete rounds that are in
    it with the same build, threads and types count: the bench can be
    interrupted and resumed, and --rounds raised later. Run nothing else
    meanwhile.

    Options that take names can be repeated, or take several with commas.
    """
    from gguf_bof4.bench.plot import check_available
    from gguf_bof4.bench.speed.files import DEFAULT_TYPES, TYPES, Files
    from gguf_bof4.bench.speed.results import read_rows, speed_variants
    from gguf_bof4.bench.speed.rounds import make_plan, run
    from gguf_bof4.bench.speed.synthetic import SHAPES, synthetic_model, synthetic_name
    from gguf_bof4.bench.variants import NO_LISTS, choose, parse_quantile
    from gguf_bof4.errors import UserError
    from gguf_bof4.ggml_patch.build import installed_bin

    chosen = speed_variants(
        choose("type", split_names(types) or DEFAULT_TYPES, TYPES),
        tuple(dict.fromkeys(map(parse_quantile, split_names(opq) or (NO_LISTS,)))),
    )
    prompts = split_numbers("--prompt", prompt) if prompt else (256, 512)
    batches = split_numbers("--batch", batch)
    if not prompts and not generate and not batches:
        raise UserError("no --prompt, no --batch and no tokens to --generate: there is nothing to measure")
    (size,) = choose("size", [size], tuple(SHAPES))
    console = table_console()
    rows = read_rows(output)
    name = synthetic_name(size) if model is None else model.stem
    setup = _setup(rows, name, threads, repack, gpu_layers, built=not (list_ or plot_only))
    plan = make_plan(setup, chosen, prompts, generate, batches, repetitions, gpu_layers, rounds, rows, force)
    if list_:
        _print_plan(plan, model, size, files, console)
        return
    check_available()
    if plan.numbers and not plot_only:
        installed_bin()
        kept = f"whole rounds are in {output}"
        with interruptible(kept), tempfile.TemporaryDirectory(prefix="bof4-bench-") as folder:
            if model is None:
                _say("random weights: made unless they are in the cache")
            source = synthetic_model(size) if model is None else model
            run(plan, Files(source, files or Path(folder), setup.threads), output, _say)
    _show(read_rows(output), setup, chosen, plan.tests, png or output.with_suffix(".png"), goals, console)


def register(bench: typer.Typer) -> None:
    """Add the command to `bof4 bench`."""
    bench.command("speed")(speed)
