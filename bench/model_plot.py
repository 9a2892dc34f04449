"""A file as a picture: bits per weight and errors by layer, a line for each kind of matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_bof4.errors import UserError, require
from gguf_bof4.gguf_files.model import Model, Tensor, bits_per_weight
from gguf_bof4.pictures import save_picture
from gguf_bof4.weight_errors import GROUPS, ErrorSums, group_of, layer_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 160
_WIDTH = 9.0
_PANEL_HEIGHT = 3.4

Points = dict[str, dict[int, float]]
"""A value by layer, by group. Layer -1 is that of the token embeddings, and the one behind the last that of the
output."""


def check_available() -> None:
    """Raise UserError where matplotlib is missing."""
    require("bench", "--plot", "matplotlib")


def _place(tensor: Tensor, layers: int) -> int:
    if (layer := layer_of(tensor.name)) is not None:
        return layer
    return -1 if group_of(tensor.name) == "token embeddings" else layers


def _by_place(model: Model) -> dict[tuple[str, int], list[Tensor]]:
    """The matrices by group and place."""
    layers = 1 + max((n for t in model.tensors if (n := layer_of(t.name)) is not None), default=-1)
    found: dict[tuple[str, int], list[Tensor]] = {}
    for t in model.tensors:
        if len(t.shape) > 1:
            found.setdefault((group_of(t.name), _place(t, layers)), []).append(t)
    return found


def bits_by_layer(model: Model) -> Points:
    """Bits per weight of the matrices, outlier lists included."""
    points: Points = {}
    for (group, place), tensors in _by_place(model).items():
        nbytes = sum(model.stored_nbytes(t) for t in tensors)
        points.setdefault(group, {})[place] = bits_per_weight(nbytes, sum(t.n_weights for t in tensors))
    return points


def errors_by_layer(model: Model, errors: Mapping[str, ErrorSums]) -> Points:
    """Relative squared errors of the matrices that have some."""
    points: Points = {}
    for (group, place), tensors in _by_place(model).items():
        found = [errors[t.name] for t in tensors if t.name in errors]
        total = ErrorSums(sum(e.squared_error for e in found), sum(e.squared_weights for e in found))
        if total.relative > 0:
            points.setdefault(group, {})[place] = total.relative
    return points


def _draw(axes: Axes, points: Points, layers: int) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    colors = colormaps["tab10" if len(points) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    for color, group in zip(colors, (g for g in GROUPS if g in points), strict=False):
        places = sorted(points[group])
        axes.plot(places, [points[group][p] for p in places], marker="o", ms=3.2, lw=1, label=group, color=color)
    axes.set_xlim(-1.5, layers + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#ececec", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_model(model: Model, errors: Mapping[str, ErrorSums] | None, target: Path) -> None:
    """Draw bits per weight by layer, and below it errors where they are known.

    Args:
        errors: by tensor, as `weight_errors.tensor_errors` gives them.
        target: a PNG, PDF or SVG file, by its suffix.

    Raises:
        UserError: matplotlib is missing, the model has no matrices, or the file cannot be written.
    """
    check_available()
    from matplotlib.figure import Figure

    bits = bits_by_layer(model)
    if not bits:
        raise UserError(f"{model.path} has no matrices: there is nothing to draw")
    layers = max(place for by_place in bits.values() for place in by_place) + 1
    found = None if errors is None else errors_by_layer(model, errors)
    panels = 2 if found else 1
    figure = Figure(figsize=(_WIDTH, panels * _PANEL_HEIGHT), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False, sharex=True)[:, 0]
    _draw(axes[0], bits, layers)
    axes[0].set_ylabel("bits per weight")
    axes[0].set_ylim(bottom=0)
    axes[0].set_title(f"{model.path.name}: {model.bits_per_weight():.2f} bits per weight", loc="left", fontsize=10)
    if found:
        _draw(axes[1], found, layers)
        values = [error for by_place in found.values() for error in by_place.values()]
        if max(values) > 10 * min(values):
            axes[1].set_yscale("log")
        else:
            axes[1].set_ylim(bottom=0)
        axes[1].set_ylabel("relative squared error")
    axes[-1].set_xlabel("layer (left: token embeddings, right: output)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    save_picture(figure, target)
