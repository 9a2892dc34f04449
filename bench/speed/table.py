"""Measured speeds as text."""

from __future__ import annotations

from rich.table import Table

from gguf_bof4.bench.speed.ratios import GENERATION_PEER, Measured
from gguf_bof4.bench.speed.results import Setup, describe, is_generation, speed_variant


def _title(setup: Setup, measured: Measured, test: str) -> str:
    threads = f"{setup.threads} thread{'s' if setup.threads > 1 else ''}"
    layout = "" if setup.repack else ", weights not repacked"
    read = f", {measured.bandwidth.text(1)} GB/s read" if is_generation(test) and not setup.on_gpu else ""
    machine = f"{setup.machine}, " if setup.machine else ""
    return (
        f"{setup.model}, {describe(test)}, {machine}{setup.instructions}, {threads}{layout}{read}: "
        f"medians of {measured.n_rounds} rounds (lowest to highest)"
    )


def speed_table(setup: Setup, measured: Measured, test: str) -> Table:
    """One test: every type's speed and its ratios, the fastest first."""
    table = Table(title=_title(setup, measured, test), title_justify="left")
    fastest, peer = measured.fastest_peer(test), speed_variant(GENERATION_PEER)
    generation = is_generation(test)
    table.add_column("type")
    for heading in ("lists", "bits", "tokens/s"):
        table.add_column(heading, justify="right")
    if fastest is not None:
        table.add_column(f"over {fastest.type}", justify="right")
    with_peer = generation and peer in measured.variants and peer != fastest
    if with_peer:
        table.add_column(f"over {peer.type}", justify="right")
    with_bound = generation and not setup.on_gpu
    if with_bound:
        table.add_column("of bandwidth bound", justify="right")
    for variant in measured.sorted_variants(test):
        row = measured.row(variant, test)
        cells = [variant.type, variant.opq, f"{row.bits_per_weight:.3f}", measured.speed(variant, test).text(1)]
        if fastest is not None:
            cells.append(measured.ratio(variant, fastest, test).text(3))
        if with_peer:
            cells.append(measured.ratio(variant, peer, test).text(3))
        if with_bound:
            cells.append(measured.of_bandwidth_bound(variant, test).text(3))
        table.add_row(*cells)
    return table
