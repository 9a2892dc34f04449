"""Measured speeds as a picture: a bar for each type, a panel for each test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gguf_bof4.bench.plot import COLORS, check_available
from gguf_bof4.bench.speed.ratios import Measured
from gguf_bof4.bench.speed.results import Setup, describe, is_generation, label
from gguf_bof4.bench.variants import OUR_TYPES
from gguf_bof4.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 1800
"""Pixels: twice the width in the README, for high-density screens."""

_DPI = 200
_HEIGHT, _BAR_HEIGHT = 190, 62  # pixels without bars, and for each bar
_GREY, _DARK = "#a6a6a6", "#4d4d4d"
_COLORS = dict(zip(OUR_TYPES, COLORS, strict=False))


def _draw(axes: Axes, measured: Measured, test: str, with_bound: bool) -> None:
    order = measured.sorted_variants(test)
    fastest = measured.fastest_peer(test)
    edge = max(measured.speed(v, test).high for v in order)
    for y, variant in enumerate(order):
        speed = measured.speed(variant, test)
        end = speed.high
        axes.barh(y, speed.median, height=0.68, color=_COLORS.get(variant.type, _GREY), zorder=2)
        axes.plot([speed.low, speed.high], [y, y], color=_DARK, lw=1, solid_capstyle="butt", zorder=3)
        if with_bound and is_generation(test):
            bound = measured.bandwidth_bound(variant, test).median
            edge, end = max(edge, bound), max(end, bound)
            axes.plot([bound, bound], [y - 0.34, y + 0.34], color=_DARK, lw=1, ls=(0, (2, 1.5)), zorder=3)
        ratio = ""
        if fastest is not None and variant != fastest:
            ratio = f"  {measured.ratio(variant, fastest, test).median:.2f}×"
        bold = variant.type in OUR_TYPES
        axes.annotate(
            f"{speed.median:.3g}{ratio}" if speed.median < 1000 else f"{speed.median:.0f}{ratio}", (end, y),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=6.5, color=_DARK,
            fontweight="bold" if bold else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(order)), [label(v) for v in order])
    for text, variant in zip(axes.get_yticklabels(), order, strict=True):
        text.set_color(_COLORS.get(variant.type, _DARK))
        text.set_fontweight("bold" if variant.type in OUR_TYPES else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.32 * edge)  # space for the figures beside the bars
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=7, length=2)
    axes.tick_params(axis="y", length=0)
    axes.set_title(describe(test), fontsize=8.5, loc="left")
    axes.set_xlabel("tokens/s", fontsize=7.5)


def plot(setup: Setup, measured: Measured, target: Path) -> None:
    """Draw complete rounds of one setup.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    check_available()
    from matplotlib.figure import Figure

    height = _HEIGHT + _BAR_HEIGHT * len(measured.variants)
    figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    grid = figure.subplots(1, len(measured.tests), squeeze=False)[0]
    for axes, test in zip(grid, measured.tests, strict=True):
        _draw(axes, measured, test, not setup.on_gpu)
    fastest = [measured.fastest_peer(test) for test in measured.tests]
    processor = " ".join(part for part in (setup.machine, setup.instructions) if part)
    caption = [f"{setup.model}, {setup.threads} threads, {processor}; medians of {measured.n_rounds} rounds"]
    caption += ["× the fastest type of llama.cpp"] if any(fastest) else []
    caption += ["dashes: bandwidth bound"] if measured.generation and not setup.on_gpu else []
    figure.text(0.01, 12 / height, "; ".join(caption), fontsize=6.5, color=_DARK)
    figure.tight_layout(rect=(0, 36 / height, 1, 1), w_pad=1.2)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="png")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}. Give another --png.") from error
