"""bof4 bench kernels: single products, beside what the machine could do."""

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
    floor = "reading the weights" if reading else "int8 dot products in registers"
    found = figures(rows, columns)
    floors = sorted(row.floor_ps for row in rows if row.columns == columns)
    title = (
        f"{first.rows} x {first.length}, {columns} column{'' if reading else 's'}, {first.instructions}, threads: "
        f"{first.threads}; floor: {floor}" + ("" if reading else f", {floors[len(floors) // 2] / columns:.3g} ps")
    )
    table = Table("type", "layout", title=title, title_justify="left")
    what = "weight" if reading else "product"  # of a weight and a column's activation
    for heading in (f"ps a {what}", "lowest", "highest", f"{what}s/ns", "of the floor"):
        table.add_column(heading, justify="right")
    for f in found:
        times = [f"{ps / columns:.3g}" for ps in (f.ps_per_weight, f.low, f.high)]
        share = f"{100 * f.of_floor:.0f} %" if f.of_floor else ""
        table.add_row(f.type, f.layout, *times, f"{1e3 * columns / f.ps_per_weight:.3g}", share)
    return table


def kernels(
    types: Annotated[
        list[str] | None,
        typer.Option("--types", metavar="TYPE", help="Ours and others' (default: all with four bits)."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Of the matrix.")] = 8192,
    length: Annotated[int, typer.Option("--length", min=256, help="Of its rows, a multiple of 256.")] = 2048,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="N", help="Of what it is multiplied by (default: 1, 256, 512)."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each measures every product once.")] = 5,
    threads: Annotated[int, typer.Option("--threads", "-t", min=1)] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, metavar="FILE", help="A CSV file to add to.")
    ] = None,
) -> None:
    """Measure single products of a matrix, interleaved and plain, on one thread.

    One column is a token that is generated: the matrices stream from memory,
    and the floor is reading them. More columns are a prompt: the floor is
    int8 dot products as fast as registers allow. Both floors are measured
    in the same rounds. Leave the machine alone meanwhile.

    Options that take names can be repeated, or take several with commas.
    """
    from gguf_bof4.bench.speed.kernels import TYPES, KernelBench, products, run
    from gguf_bof4.bench.variants import choose
    from gguf_bof4.errors import UserError

    if length % 256:
        raise UserError(f"--length {length}: give a multiple of 256, which all types can be cut into")
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
