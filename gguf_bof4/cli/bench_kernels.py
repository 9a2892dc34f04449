"""bof4 bench kernels: single products, beside the roofline of the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gguf_bof4.cli.terminal import split_names, split_numbers, table_console

if TYPE_CHECKING:
    from gguf_bof4.bench.speed.kernels import Row


def _table(rows: Sequence[Row], columns: int) -> Table:
    from gguf_bof4.bench.speed.kernels import figures

    first = rows[0]
    reading = columns == 1
    bound = "reading the weights" if reading else "int8 dot products in registers"
    found = figures(rows, columns)
    rooflines = sorted(row.roofline_ps for row in rows if row.columns == columns)
    picoseconds = "" if reading else f", {rooflines[len(rooflines) // 2] / columns:.3g} ps"
    title = (
        f"{first.rows} x {first.length}, {columns} column{'' if reading else 's'}, {first.instructions}, threads: "
        f"{first.threads}; roofline: {bound}{picoseconds}"
    )
    table = Table("type", "layout", title=title, title_justify="left")
    what = "weight" if reading else "product"  # of a weight and a column's activation
    for heading in (f"ps a {what}", "lowest", "highest", f"{what}s/ns", "of roofline"):
        table.add_column(heading, justify="right")
    table.add_column("prefetched" if reading else "path", justify="right")
    for f in found:
        times = [f"{ps / columns:.3g}" for ps in (f.ps_per_weight, f.low, f.high)]
        part = f"{100 * f.of_roofline:.0f} %" if f.of_roofline else ""
        prefetch = f"{f.prefetch} bytes" if f.prefetch > 0 else "no" if f.prefetch == 0 else ""
        choice = prefetch if reading else f.path
        table.add_row(f.type, f.layout, *times, f"{1e3 * columns / f.ps_per_weight:.3g}", part, choice)
    return table


def kernels(
    types: Annotated[
        list[str] | None,
        typer.Option("--types", metavar="TYPE", help="This project's and llama.cpp's (default: all of 4 bits)."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the matrix.")] = 8192,
    length: Annotated[int, typer.Option("--length", min=256, help="Length of a row, a multiple of 256.")] = 2048,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="N", help="Columns of the activations (default: 1, 256, 512)."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each measures every product once.")] = 5,
    threads: Annotated[int, typer.Option("--threads", "-t", min=1, help="Threads of a product.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="A CSV file to add rows to.")
    ] = None,
) -> None:
    """Measure single products of a matrix, with repacked and with plain weights.

    One column is a token that is generated: bandwidth bound, the roofline is
    reading the weights from memory. More columns are a prompt: compute
    bound, the roofline is int8 dot products in registers. Both rooflines
    are measured in the same rounds. Run nothing else meanwhile.

    Options that take names can be repeated, or take several with commas.
    """
    from gguf_bof4.bench.speed.kernels import TYPES, KernelBench, products, run
    from gguf_bof4.bench.variants import choose
    from gguf_bof4.errors import UserError

    if length % 256:
        raise UserError(f"--length {length}: give a multiple of 256, which every type has blocks for")
    chosen = choose("type", split_names(types) or TYPES, TYPES)
    numbers = split_numbers("--columns", columns) or (1, 256, 512)
    bench = KernelBench(chosen, rows, length, threads)
    found = run(bench, products(chosen, numbers), rounds, output, lambda line: print(line, file=sys.stderr, flush=True))
    console = table_console()
    for n in numbers:
        console.print(_table(found, n), "")


def register(bench: typer.Typer) -> None:
    """Add the command to `bof4 bench`."""
    bench.command("kernels")(kernels)
