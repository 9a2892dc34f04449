"""bof4 bench: measure these types beside those of llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gguf_bof4.cli import bench_kernels, bench_speed
from gguf_bof4.cli.terminal import interruptible, split_names, table_console
from gguf_bof4.progress import duration_text

if TYPE_CHECKING:
    from gguf_bof4.bench.quality import Plan
    from gguf_bof4.bench.results import Key, Row

LARGE_MODEL = "qwen"


def _print_plan(plan: Plan, console: Console) -> None:
    table = Table("model", "type", "encoder", "lists", "texts", title="to measure", title_justify="left")
    table.add_column("estimate", justify="right")
    for step in plan.steps:
        v = step.variant
        estimate = duration_text(step.seconds(plan.chunks))
        table.add_row(step.model, v.type, v.encoder, v.opq, ", ".join(step.texts), estimate)
    console.print(table)
    for model in plan.models:
        console.print(
            f"{model}: {sum(len(step.texts) for step in plan.of_model(model))} rows, about "
            f"{duration_text(plan.seconds(model))} on two cores ({duration_text(plan.shared_seconds(model))} of them "
            f"for the unquantized model and its importance matrix), "
            f"{plan.disk_bytes(model) / 1e9:.1f} GB of disk meanwhile"
        )
    n_missing = sum(len(step.texts) for step in plan.steps)
    console.print(f"{len(plan.rows) - n_missing} of {len(plan.rows)} rows are there, {n_missing} to measure")


def _print_results(
    rows: list[Row], models: tuple[str, ...], texts: tuple[str, ...], with_goals: bool, console: Console
) -> None:
    from gguf_bof4.bench import goals
    from gguf_bof4.bench.table import means, model_table

    for model in models:
        if found := means(rows, model):
            console.print(model_table(model, found, texts, rows[0].chunks), "")
    if with_goals:
        console.print(goals.quality_table(goals.judge_quality(rows, texts)))


def _of_run(rows: dict[Key, Row], models: tuple[str, ...], texts: tuple[str, ...], chunks: int) -> list[Row]:
    """The rows that can be compared: of the same chunks and the current recipe."""
    return [
        row
        for row in rows.values()
        if row.model in models and row.text in texts and row.chunks == chunks and row.recipe == row.variant.recipe
    ]


def quality(
    models: Annotated[
        list[str] | None, typer.Option("--models", metavar="NAME", help="Reference models (default: smol, gemma).")
    ] = None,
    large: Annotated[
        bool, typer.Option("--large", help="Also the model of 1.5 billion weights: fetches 1.1 GB.")
    ] = False,
    types: Annotated[
        list[str] | None, typer.Option("--types", metavar="TYPE", help="This project's and llama.cpp's (default: all).")
    ] = None,
    encoders: Annotated[
        list[str] | None,
        typer.Option(
            "--encoders",
            metavar="NAME",
            help="absmax, search, random and imatrix (search with an importance matrix of random tokens or of a text), "
            "gptq; for types of llama.cpp: none, imatrix (default: all). Also gptq:self, gptq:kinds, gptq:self+text: "
            "calibrated on the model's own text, on texts of several kinds, and on a mixture; gptq:token-weights; "
            "gptq:refined, gptq:self+text+refined, gptq:scales; auto-round and auto-round:rtn: AutoRound's Q4_0 and "
            "Q4_K, tuned and rounded to nearest.",
        ),
    ] = None,
    opq: Annotated[
        list[str] | None,
        typer.Option("--opq", metavar="Q", help="Quantiles of the outlier lists, or off (default: off, 0.95)."),
    ] = None,
    opq_bits: Annotated[
        list[str] | None,
        typer.Option("--opq-bits", metavar="BITS", help="Lists of these bits per weight, in the place of quantiles."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search", metavar="BITS",
            help="Also the mixtures of types that bof4 search finds for these bits per weight.",
        ),
    ] = None,
    chunks: Annotated[int, typer.Option("--chunks", min=1, help="Chunks of 512 tokens from each text.")] = 16,
    texts: Annotated[
        list[str] | None,
        typer.Option("--texts", metavar="NAME", help="test, held-out (default: both), code, dialogue, german."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="The CSV file.")
    ] = Path("bench/quality.csv"),
    png: Annotated[
        Path | None,
        typer.Option("--png", dir_okay=False, metavar="FILE", help="The picture (default: beside the CSV file)."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0: the default of each program.")] = 0,
    auto_round: Annotated[
        Path | None,
        typer.Option("--auto-round", metavar="PROGRAM", help="AutoRound's command (default: auto-round in PATH)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Measure again what is in the CSV file.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show what would be measured, and how long it takes.")] = False,
    plot_only: Annotated[bool, typer.Option("--plot-only", help="Measure nothing: table and picture.")] = False,
    goals: Annotated[bool, typer.Option("--goals", help="For developers: compare with the project's goals.")] = False,
) -> None:
    """Measure how far quantized models are from the unquantized one, for types of this project and of llama.cpp.

    All matrices of the blocks get the type, embeddings stay in F16. Each
    file is compared with the unquantized model over two texts; importance
    matrices and gptq are calibrated on a third.

    Every row goes into the CSV file as soon as it is measured, and rows
    that are in it are not measured again: the bench can be interrupted
    and resumed. The logits of the unquantized model take up to 4.3 GB in
    TMPDIR until the model is done.

    Options that take names can be repeated, or take several with commas.
    """
    from gguf_bof4.bench import plot, variants
    from gguf_bof4.bench.auto_round import ENCODERS as AUTO_ROUND
    from gguf_bof4.bench.quality import DEFAULT_TEXTS, SMALL_MODELS, TEXTS, make_plan, run
    from gguf_bof4.bench.results import read_rows
    from gguf_bof4.ggml_patch.build import installed_bin
    from gguf_bof4.reference_models import REFERENCE_MODELS

    asked = [*(split_names(models) or SMALL_MODELS), *([LARGE_MODEL] if large else [])]
    chosen_models = variants.choose("model", asked, tuple(REFERENCE_MODELS))
    chosen_texts = variants.choose("text", split_names(texts) or DEFAULT_TEXTS, tuple(TEXTS))
    all_encoders = (*variants.ENCODERS, *variants.VARIATIONS, *AUTO_ROUND)
    searched = tuple(dict.fromkeys(map(variants.parse_searched, split_names(search) or ())))
    bits = tuple(dict.fromkeys(map(variants.parse_bits, split_names(opq_bits) or ())))
    quantiles = split_names(opq) or (() if bits else variants.DEFAULT_QUANTILES)
    named = split_names(types) or (() if searched else variants.TYPES)
    chosen = variants.variants(
        (*variants.choose("type", named, variants.TYPES), *searched),
        variants.choose("encoder", split_names(encoders) or variants.ENCODERS, all_encoders),
        (*dict.fromkeys(map(variants.parse_quantile, quantiles)), *bits),
    )
    console = table_console()
    done = read_rows(output)
    plan = make_plan(chosen_models, chosen, chosen_texts, chunks, set() if force else set(done))
    if list_:
        _print_plan(plan, console)
        return
    plot.check_available()
    if plan.steps and not plot_only:
        installed_bin()
        with interruptible(f"what was measured is in {output}"):
            run(plan, output, threads, lambda line: print(line, file=sys.stderr, flush=True), auto_round)
    rows = _of_run(read_rows(output), chosen_models, chosen_texts, chunks)
    _print_results(rows, chosen_models, chosen_texts, goals, console)
    picture = png or output.with_suffix(".png")
    plot.plot(rows, chosen_models, picture)
    console.print(f"{len(rows)} rows in {output}, the picture in {picture}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    bench = typer.Typer(no_args_is_help=True, help="Measure these types beside those of llama.cpp.")
    bench.command("quality")(quality)
    bench_speed.register(bench)
    bench_kernels.register(bench)
    app.add_typer(bench, name="bench")
