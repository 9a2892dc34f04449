"""The measured rows as a picture: bits per weight against mean KL divergence, a panel for each model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_bof4.bench.results import Row
from gguf_bof4.bench.table import Mean, means
from gguf_bof4.bench.variants import NO_LISTS, OUR_ENCODERS, OUR_TYPES
from gguf_bof4.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1800, 960
"""Pixels: twice the width in the README, for high-density screens."""

_DPI = 200
_WIDEST = 4.7
"""Bits per weight where the panels end: a larger type is drawn as a horizontal line at its divergence."""

_GREY, _DARK = "#979797", "#4d4d4d"
COLORS = ("#2a7fc9", "#a92b0c", "#3f8f4f", "#6b3f8f")  # light and dark in turns, for greyscale
"""Of this project's types, in the order of FORMATS."""
_MARKERS = {"none": "o", "absmax": "o", "search": "s", "random": "D", "imatrix": "^", "gptq": "*", "auto-round": "v"}
_SIZES = {"*": 9.0, "^": 6.0, "v": 6.0, "o": 5.0, "s": 4.8, "D": 4.4}
_MODEL_NAMES = {"smol": "SmolLM2-135M", "gemma": "Gemma 3 270M", "qwen": "Qwen2.5-Coder-1.5B"}
_ENCODER_NAMES = {
    "absmax": "largest weight (absmax)",
    "search": "scale search",
    "random": "importance from random tokens",
    "imatrix": "importance matrix",
    "gptq": "GPTQ",
}


def check_available() -> None:
    """Raise UserError where matplotlib is missing, before hours are spent on measurements."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the picture needs matplotlib: run `pip install 'gguf-bof4[bench]'`")


def spread_labels(positions: Sequence[float], gap: float) -> list[float]:
    """Ascending positions of labels, moved as little as possible to be at least `gap` apart."""
    groups: list[tuple[float, int]] = []  # middle and number of labels that touch
    for position in positions:
        middle, count = position, 1
        while groups and middle - count * gap / 2 < groups[-1][0] + groups[-1][1] * gap / 2:
            other, n = groups.pop()
            middle, count = (middle * count + other * n) / (count + n), count + n
        groups.append((middle, count))
    return [middle + (i - (count - 1) / 2) * gap for middle, count in groups for i in range(count)]


def _label(axes: Axes, points: list[tuple[float, float, str]], dx: float, side: str, dy: float = 0) -> None:
    """Names beside points (x, y, name), apart from each other; dx and dy in typographic points."""
    from matplotlib.patheffects import withStroke

    points = sorted(points, key=lambda point: point[1])
    pixels = [float(axes.transData.transform((x, y))[1]) for x, y, _ in points]
    scale = _DPI / 72
    for (x, y, name), pixel, moved in zip(points, pixels, spread_labels(pixels, 7.6 * scale), strict=True):
        axes.annotate(
            name, (x, y), xytext=(dx, dy + (moved - pixel) / scale), textcoords="offset points", ha=side, va="center",
            fontsize=6.5, color=_DARK, zorder=5, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _draw_peers(axes: Axes, found: list[Mean]) -> None:
    left: list[tuple[float, float, str]] = []
    above: list[tuple[float, float, str]] = []  # between the two columns of 4.25 and 4.5 bits
    right: list[tuple[float, float, str]] = []
    for mean in found:
        row = mean.first
        marker = _MARKERS[row.variant.base_encoder]
        axes.plot(row.bits_per_weight, mean.mean_kld, marker, color=_GREY, ms=_SIZES[marker] - 0.5, mew=0, zorder=2)
        side = left if row.bits_per_weight < 4.35 else above if row.bits_per_weight < 4.48 else right
        side.append((row.bits_per_weight, mean.mean_kld, row.type))
    _label(axes, left, -5, "right")
    _label(axes, above, 0, "center", dy=6)
    _label(axes, right, 5, "left")


def _larger_name(row: Row) -> str:
    calibration = f" {row.encoder}" if row.encoder != "none" else ""
    return f"{row.type}{calibration}: {row.bits_per_weight:.3g} bits"


def _draw_larger(axes: Axes, found: list[Mean]) -> None:
    """A line for each type that is larger than the panel shows: the best of its encoders."""
    by_type: dict[str, Mean] = {}
    for mean in found:
        by_type[mean.first.type] = min(mean, by_type.get(mean.first.type, mean), key=lambda m: m.mean_kld)
    for mean in by_type.values():
        axes.axhline(mean.mean_kld, color=_GREY, lw=0.8, ls=(0, (4, 3)), zorder=1)
    edge = axes.get_xlim()[1]  # where no points with labels are
    names = [(edge, m.mean_kld, _larger_name(m.first)) for m in by_type.values()]
    _label(axes, names, -3, "right", dy=4.5)


def _draw_ours(axes: Axes, found: list[Mean]) -> None:
    """A line through the encoders for each type and quantile; the name below the best point of a type."""
    best = []
    for name, color in zip(OUR_TYPES, COLORS, strict=False):
        of_type = [mean for mean in found if mean.first.type == name]
        for opq in dict.fromkeys(mean.first.opq for mean in of_type):
            line = [mean for mean in of_type if mean.first.opq == opq]
            line.sort(key=lambda mean: OUR_ENCODERS.index(mean.first.variant.base_encoder))
            bits, divergences = [m.first.bits_per_weight for m in line], [m.mean_kld for m in line]
            without = opq == NO_LISTS
            axes.plot(bits, divergences, color=color, lw=1.2, ls=":" if without else "-", zorder=3)
            for x, y, mean in zip(bits, divergences, line, strict=True):
                marker, fill = _MARKERS[mean.first.variant.base_encoder], "white" if without else color
                axes.plot(x, y, marker, ms=_SIZES[marker], mec=color, mew=1, mfc=fill, zorder=4)
        if of_type:
            best.append((min(of_type, key=lambda mean: mean.mean_kld), color))
    best.sort(key=lambda pair: pair[0].first.bits_per_weight)
    for i, (mean, color) in enumerate(best):
        # names of neighbours extend in opposite directions
        side, dx = ("right", 9) if i == 0 and len(best) > 1 else ("left", -9)
        axes.annotate(
            mean.first.type, (mean.first.bits_per_weight, mean.mean_kld), xytext=(dx, -12),
            textcoords="offset points", ha=side, fontsize=8, fontweight="bold", color=color,
        )  # fmt: skip


def _draw_panel(axes: Axes, model: str, found: list[Mean]) -> None:
    from matplotlib.ticker import LogLocator, MultipleLocator, NullLocator, StrMethodFormatter

    inside = [mean for mean in found if mean.first.bits_per_weight <= _WIDEST]
    divergences = [mean.mean_kld for mean in found]
    axes.set_yscale("log")
    axes.set_xlim(4.13, _WIDEST - 0.05)
    axes.set_ylim(min(divergences) / 1.25, max(divergences) * 1.15)
    axes.xaxis.set_major_locator(MultipleLocator(0.1))
    axes.yaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="#ececec", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7, length=2)
    axes.set_title(_MODEL_NAMES.get(model, model), fontsize=9, loc="left")
    axes.set_xlabel("bits per weight", fontsize=8)
    axes.figure.canvas.draw()  # places the axes, which labels are measured in
    _draw_peers(axes, [mean for mean in inside if not mean.first.variant.ours])
    _draw_larger(axes, [mean for mean in found if mean not in inside])
    _draw_ours(axes, [mean for mean in inside if mean.first.variant.ours])


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    def entry(name: str, marker: str, fill: str = _DARK, color: str = _DARK, line: str = "none") -> Line2D:
        return Line2D(
            [], [], marker=marker, ms=_SIZES.get(marker, 5), mfc=fill, mec=color, color=color, ls=line, label=name
        )

    figure.legend(
        handles=[
            *(entry(name, _MARKERS[encoder]) for encoder, name in _ENCODER_NAMES.items()),
            entry("outlier lists", "p", line="-"),
            entry("no lists", "p", fill="white", line=":"),
            entry("types of llama.cpp", "o", fill=_GREY, color=_GREY),
        ],
        loc="lower center", ncols=8, fontsize=6.5, frameon=False, handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip


def plot(rows: Iterable[Row], models: Sequence[str], target: Path) -> None:
    """Draw rows of one number of chunks; missing measurements are left out.

    Raises:
        UserError: there is nothing to draw, matplotlib is missing, or the file cannot be written.
    """
    check_available()
    from matplotlib.figure import Figure

    rows = list(rows)
    panels = {model: found for model in models if (found := means(rows, model))}
    if not panels:
        raise UserError("no row of these models, texts and chunks has been measured: there is nothing to draw")
    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, facecolor="white")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(left=0.065, right=0.99, top=0.93, bottom=0.17, wspace=0.2)
    for axes, (model, found) in zip(grid, panels.items(), strict=True):
        _draw_panel(axes, model, found)
    grid[0].set_ylabel("mean KL divergence from the unquantized model", fontsize=8)
    _legend(figure)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="png")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}. Give another --png.") from error
