"""Pictures of the study's results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_bof4.bench.plot import check_available
from gguf_bof4.errors import UserError
from gguf_bof4.study.error import ALL, block_of
from gguf_bof4.study.registry import parse_format
from gguf_bof4.study.tables import ErrorRow, ModelRow, TaskRow, VarianceRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
_MARKERS = "osD^vP*Xhd<>"


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    check_available()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * panels, 5), dpi=_DPI, facecolor="white", layout="constrained")
    found = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for axes in found:
        axes.grid(color="#ececec", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def _save(figure: Figure, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, format="png")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}. Give another --png.") from error


def without_block(name: str) -> str:
    """The name of a format without its parameter I."""
    return ":".join(part for part in name.split(":") if not part.startswith("I="))


def plot_errors(rows: Sequence[ErrorRow], target: Path) -> None:
    """Relative squared error against I, a panel for each source; formats without I are left out."""
    sources = list(dict.fromkeys(row.source for row in rows))
    figure, panels = _figure(max(1, len(sources)))
    for axes, source in zip(panels, sources, strict=False):
        own = [row for row in rows if row.source == source and row.kind == ALL and row.block]
        names = list(dict.fromkeys(without_block(row.format) for row in own))
        for i, name in enumerate(names):
            line = sorted((row.block, row.squared) for row in own if without_block(row.format) == name)
            if len(line) > 1:
                marker = _MARKERS[i % len(_MARKERS)]
                axes.plot(*zip(*line, strict=True), marker=marker, ms=4, lw=1, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(source, fontsize=10, loc="left")
        axes.set_xlabel("weights in a block, I")
        if axes.lines:
            axes.legend(fontsize=6, frameon=False)
    panels[0].set_ylabel("relative squared error")
    _save(figure, target)


def plot_models(rows: Sequence[ModelRow], target: Path) -> None:
    """Mean KL divergence against bits: of a weight, or of weights and activations together; unquantized is left out."""
    figure, (axes,) = _figure(1)
    for row in rows:
        if row.mean_kld <= 0:
            continue
        both = row.activations != "F32"
        x = 32 / row.density
        axes.plot([x], [row.mean_kld], "s" if both else "o", ms=4, color="#a92b0c" if both else "#2a7fc9")
        name = f"{row.weights} × {row.activations}" if both and row.weights != row.activations else row.weights
        axes.annotate(name, (x, row.mean_kld), xytext=(4, 1), textcoords="offset points", fontsize=5)
    axes.set_yscale("log")
    axes.set_xlabel("bits of a number (weights, and activations where they are quantized)")
    axes.set_ylabel("mean KL divergence from the unquantized model")
    _save(figure, target)


def plot_blocks(rows: Sequence[ModelRow], target: Path) -> None:
    """Mean KL divergence and perplexity against the block size of the weights, a line for each format."""
    figure, (left, right) = _figure(2)
    for i, name in enumerate(dict.fromkeys(without_block(row.weights) for row in rows)):
        own = [row for row in rows if without_block(row.weights) == name]
        line = sorted((block_of(parse_format(row.weights)), row.mean_kld, row.ppl) for row in own)
        sizes, klds, ppls = zip(*line, strict=True)
        for axes, values in ((left, klds), (right, ppls)):
            axes.plot(sizes, values, marker=_MARKERS[i % len(_MARKERS)], ms=4, lw=1, label=name)
    for axes, title in ((left, "mean KL divergence"), (right, "perplexity")):
        axes.set_xscale("log", base=2)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("weights in a block, I")
        axes.legend(fontsize=6, frameon=False)
    _save(figure, target)


def plot_variances(rows: Sequence[VarianceRow], target: Path) -> None:
    """Variances of weights and of activations against depth."""
    figure, (left, right) = _figure(2)
    for i, kind in enumerate(dict.fromkeys(row.kind for row in rows)):
        own = sorted((row for row in rows if row.kind == kind), key=lambda row: row.layer)
        layers, marker = [row.layer for row in own], _MARKERS[i % len(_MARKERS)]
        left.plot(layers, [row.weight_variance for row in own], marker=marker, ms=3, lw=1, label=kind)
        right.plot(layers, [row.activation_variance for row in own], marker=marker, ms=3, lw=1, label=kind)
    for axes, title in ((left, "weights"), (right, "inputs of the layers")):
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("decoder layer")
        axes.legend(fontsize=6, frameon=False)
    left.set_ylabel("mean square")
    _save(figure, target)


def plot_tasks(rows: Sequence[TaskRow], target: Path) -> None:
    """Accuracy of each pair of formats, with its standard error, a marker for each set; dashed: chance."""
    figure, (axes,) = _figure(1)
    names = list(dict.fromkeys((row.weights, row.activations) for row in rows))
    for i, tasks in enumerate(dict.fromkeys(row.tasks for row in rows)):
        own = [row for row in rows if row.tasks == tasks]
        axes.errorbar(
            [row.accuracy for row in own], [names.index((row.weights, row.activations)) for row in own],
            xerr=[(row.accuracy * (1 - row.accuracy) / row.count) ** 0.5 for row in own],
            fmt=_MARKERS[i % len(_MARKERS)], color=f"C{i}", ms=5, lw=1, label=f"{tasks}, {own[0].count} tasks",
        )  # fmt: skip
        axes.axvline(own[0].chance, color=f"C{i}", ls="--", lw=0.7)
    axes.set_yticks(range(len(names)), [w if w == a else f"{w} × {a}" for w, a in names], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of tasks that are solved")
    axes.legend(fontsize=6, frameon=False)
    _save(figure, target)
