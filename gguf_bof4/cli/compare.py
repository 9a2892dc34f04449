"""bof4 compare: how far a quantized model is from the one that it was made from."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gguf_bof4.cli.model_file import HELP, local_path
from gguf_bof4.cli.terminal import table_console
from gguf_bof4.progress import progress_bar

if TYPE_CHECKING:
    from gguf_bof4.bench.compare import Comparison
    from gguf_bof4.gguf_files.model import Model


def _bytes(model: Model) -> int:
    return sum(path.stat().st_size for path in model.files)


def summary(found: Comparison) -> dict[str, Any]:
    """The object that --json prints; KL divergences in nats, same_top in percent, errors are standard errors."""
    files = {
        key: {"file": str(model.path), "bytes": _bytes(model), "bits_per_weight": model.bits_per_weight()}
        for key, model in (("base", found.base), ("model", found.model))
    }
    return {
        **files, "text": str(found.text), "chunks": found.chunks, "context": found.context,
        **dataclasses.asdict(found.figures),
    }  # fmt: skip


def result_table(found: Comparison) -> Table:
    """The figures of both models, and those of the second against the first."""
    from gguf_bof4.convert.report import size_text
    from gguf_bof4.gguf_files.header import escaped

    figures = found.figures
    table = Table(
        title=f"{found.chunks} chunks of {found.context} tokens of {escaped(str(found.text))}", title_justify="left"
    )
    table.add_column("")
    for model in (found.base, found.model):
        table.add_column(escaped(model.path.name), justify="right", overflow="fold")
    table.add_row("size", *(size_text(_bytes(model)) for model in (found.base, found.model)))
    table.add_row("bits per weight", *(f"{model.bits_per_weight():.2f}" for model in (found.base, found.model)))
    table.add_row(
        "perplexity",
        f"{figures.ppl_base:.4f} ± {figures.ppl_base_error:.4f}",
        f"{figures.ppl:.4f} ± {figures.ppl_error:.4f}",
    )
    table.add_row("ratio of the perplexities", "1", f"{figures.ppl_ratio:.5f} ± {figures.ppl_ratio_error:.5f}")
    table.add_row("mean KL divergence", "0", f"{figures.mean_kld:.5f} ± {figures.mean_kld_error:.5f}")
    table.add_row("KL divergence, median", "0", f"{figures.median_kld:.5f}")
    table.add_row("KL divergence, 99.9 %", "0", f"{figures.kld_99_9:.4f}")
    table.add_row("same top token", "100 %", f"{figures.same_top:.2f} ± {figures.same_top_error:.2f} %")
    return table


def compare(
    base: Annotated[str, typer.Argument(metavar="A", help=f"The model to compare with, F16 for example. {HELP}")],
    model: Annotated[str, typer.Argument(metavar="B", help="The model that was made from it.")],
    text: Annotated[
        Path, typer.Option("--file", "-f", metavar="TEXT", help="A text like those that the model will read.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGUMENTS]", help="More options of llama-perplexity, for both models."),
    ] = None,
    chunks: Annotated[int, typer.Option("--chunks", min=1, help="Chunks of the text, at most.")] = 32,
    context: Annotated[
        int, typer.Option("--ctx-size", "-c", min=8, help="Tokens of a chunk; the second half is judged.")
    ] = 512,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0: the default of llama.cpp.")] = 0,
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", "-ngl", help="Layers on the GPU (default: that of llama.cpp).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare a model with the one that it was made from, on a text.

    It prints the KL divergence of B's distributions of the next token
    from A's, the ratio of the perplexities, and how often both find the
    same token most probable, each with its standard error. The
    distributions of A are in TMPDIR meanwhile: 16 bits for each token of
    the vocabulary and every second token of the text.

        bof4 compare model-f16.gguf model-bof4_s.gguf -f text.txt
    """
    from gguf_bof4.bench.compare import compare as run

    layers = [] if gpu_layers is None else ["-ngl", str(gpu_layers)]
    first, second = local_path(base), local_path(model)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with progress_bar("reading the models") as progress:
            found = run(
                first, second, text, chunks=chunks, context=context, threads=threads,
                arguments=[*layers, *(arguments or ())], progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        print("bof4: interrupted; nothing is left", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    if as_json:
        print(json.dumps(summary(found)))
        return
    table_console().print(result_table(found))
    if found.chunks < chunks:
        print(f"the text has {found.chunks} chunks, fewer than the {chunks} of --chunks", file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)
