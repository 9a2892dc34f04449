"""Measured speeds as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from gguf_bof4.bench.speed.bars import GENERATION_PEER, Outcome
from gguf_bof4.bench.speed.ratios import Measured
from gguf_bof4.bench.speed.results import Setup, is_generation, speed_variant


def _title(setup: Setup, measured: Measured, test: str) -> str:
    what = f"generating {test[2:]} tokens" if is_generation(test) else f"a prompt of {test[2:]} tokens"
    threads = f"{setup.threads} thread{'s' if setup.threads > 1 else ''}"
    layout = "" if setup.repack else ", nothing interleaved"
    read = f", {measured.bandwidth.text(1)} GB/s read" if is_generation(test) and not setup.on_gpu else ""
    return (
        f"{setup.model}, {what}, {setup.instructions}, {threads}{layout}{read}: "
        f"medians of {measured.n_rounds} rounds (lowest to highest)"
    )


def speed_table(setup: Setup, measured: Measured, test: str) -> Table:
    """One test: every type's speed and its ratios, the fastest first."""
    table = Table(title=_title(setup, measured, test), title_justify="left")
    rival, peer = measured.fastest_rival(test), speed_variant(GENERATION_PEER)
    generation = is_generation(test)
    table.add_column("type")
    for heading in ("lists", "bits", "tokens/s"):
        table.add_column(heading, justify="right")
    if rival is not None:
        table.add_column(f"over {rival.type}", justify="right")
    with_peer = generation and peer in measured.variants and peer != rival
    if with_peer:
        table.add_column(f"over {peer.type}", justify="right")
    with_share = generation and not setup.on_gpu
    if with_share:
        table.add_column("of what reading allows", justify="right")
    for variant in measured.sorted_variants(test):
        row = measured.row(variant, test)
        cells = [variant.type, variant.opq, f"{row.bits_per_weight:.3f}", measured.speed(variant, test).text(1)]
        if rival is not None:
            cells.append(measured.ratio(variant, rival, test).text(3))
        if with_peer:
            cells.append(measured.ratio(variant, peer, test).text(3))
        if with_share:
            cells.append(measured.share(variant, test).text(3))
        table.add_row(*cells)
    return table


def bars_table(outcomes: Sequence[Outcome]) -> Table:
    """Each bar, its figure and whether it is met."""
    table = Table(title="speed over speed of the same round, medians over rounds", title_justify="left")
    table.add_column("comparison", overflow="fold")
    for heading in ("ratio", "at least"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    for o in outcomes:
        table.add_row(o.title, "" if o.ratio is None else o.ratio.text(3), f"{o.limit:.2f}", o.verdict)
    return table
