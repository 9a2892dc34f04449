"""Tables that `bof4 study` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from gguf_bof4.cli.terminal import table_console

if TYPE_CHECKING:
    from gguf_bof4.study.tables import ErrorRow, ModelRow, TaskRow


def print_errors(rows: list[ErrorRow]) -> None:
    """Errors of each source, and their ratios to NF4's for each kind of matrix."""
    from gguf_bof4.study.error import ALL

    console = table_console()
    baseline = {(r.source, r.kind): r.squared for r in rows if r.format == "NF4"}
    for source in dict.fromkeys(row.source for row in rows):
        own = [row for row in rows if row.source == source]
        weighted = ", weighted by inputs" if any(row.importance != "none" for row in own) else ""
        table = Table(title=f"{source}: error of all weights{weighted}", title_justify="left")
        table.add_column("format")
        for heading in ("I", "bits", "squared", "absolute", "squared / NF4, I = 64"):
            table.add_column(heading, justify="right")
        for row in own:
            if row.kind == ALL:
                nf4 = baseline.get((source, ALL))
                table.add_row(
                    row.format, str(row.block or ""), f"{row.bits:.4f}", f"{row.squared:.6f}", f"{row.absolute:.5f}",
                    f"{row.squared / nf4:.3f}" if nf4 else "",
                )  # fmt: skip
        console.print(table)
        kinds = list(dict.fromkeys(row.kind for row in own if row.kind != ALL))
        if kinds and (source, ALL) in baseline:
            table = Table(
                "format", *kinds, title=f"{source}: squared error / NF4, I = 64{weighted}", title_justify="left"
            )
            for name in dict.fromkeys(r.format for r in own if r.block in {0, 64}):
                found = {r.kind: r.squared for r in own if r.format == name}
                ratios = [f"{found[k] / baseline[source, k]:.3f}" if k in found else "" for k in kinds]
                table.add_row(name, *ratios)
            console.print(table)


def print_models(rows: list[ModelRow]) -> None:
    """Distances of quantized models."""
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


def print_tasks(rows: list[TaskRow]) -> None:
    """Accuracies on sets of tasks, and NAV ACC."""
    from gguf_bof4.study.capture import nav_accuracy

    sets = list(dict.fromkeys(row.tasks for row in rows))
    table = Table("weights", "activations", *sets, "NAV ACC", title_justify="left")
    for names in dict.fromkeys((row.weights, row.activations) for row in rows):
        own = [row for row in rows if (row.weights, row.activations) == names]
        found = {row.tasks: f"{100 * row.accuracy:.1f} %" for row in own}
        complete = f"{100 * nav_accuracy(own):.1f} %" if len(own) == len(sets) else ""
        table.add_row(*names, *(found.get(name, "") for name in sets), complete)
    table_console().print(table)
