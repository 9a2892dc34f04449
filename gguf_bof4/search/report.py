"""What a search writes: a recipe, a table of all tensors (CSV), and which tensors, kinds and layers suffer."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.convert.output import check_folder_of, refuse_existing
from gguf_bof4.convert.recipe import comment_line, recipe_text, tensor_line
from gguf_bof4.convert.report import size_text
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import bits_per_weight
from gguf_bof4.paths import write_text
from gguf_bof4.pictures import save_picture
from gguf_bof4.search.run import Assigned, Assignment, Measured
from gguf_bof4.weight_errors import GROUPS, group_of, layer_of


def loss_text(measured: Measured, loss: float) -> str:
    """A predicted loss with what it is."""
    what = "predicted KL divergence" if measured.settings.gradients else "weighted squared error"
    return f"{what} {loss:.4g}"


def recipe_of(measured: Measured, assignment: Assignment) -> str:
    """The text of a recipe."""
    lines = [
        comment_line(f"bof4 search of {measured.model.path.name}"),
        comment_line(
            f"{assignment.bits_per_weight:.3f} bits per weight; file of {size_text(assignment.file_bytes)}; "
            f"{loss_text(measured, assignment.loss)}"
        ),
    ]
    layer: int | None = None
    for assigned in assignment.all:
        if (found := layer_of(assigned.tensor.name)) is not None and found != layer:
            layer = found
            lines.append(comment_line(f"layer {layer}"))
        lines.append(tensor_line(assigned.tensor.name, assigned.candidate.qtype, assigned.candidate.rule))
    return recipe_text(lines)


def sensitivity_csv(measured: Measured, assignment: Assignment) -> str:
    """A row for each tensor: its type, alpha, what it costs, and what it would cost in every candidate."""
    names = list(dict.fromkeys(c.name for w in (*measured.tables, *measured.matrices) for c in w.candidates))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["tensor", "group", "layer", "rows", "columns", "type", "bits_per_weight", "alpha", "loss", *names]
    )
    for a in assignment.all:
        losses = measured.losses[a.tensor.name]
        layer = layer_of(a.tensor.name)
        writer.writerow([
            a.tensor.name, group_of(a.tensor.name), "" if layer is None else layer, a.tensor.n_rows, a.tensor.shape[-1],
            a.candidate.name, f"{a.bits_per_weight:.4f}", f"{losses[a.candidate.name].alpha:.6g}", f"{a.loss:.6g}",
            *(f"{losses[n].loss:.6g}" if n in losses else "" for n in names),
        ])  # fmt: skip
    return out.getvalue()


@dataclass(frozen=True)
class Share:
    """Some tensors together.

    Attributes:
        share: of the predicted loss, from 0 to 1.
    """

    name: str
    bits_per_weight: float
    loss: float
    share: float


def shares(assignment: Assignment, key: Callable[[Assigned], str | None], order: Sequence[str] = ()) -> list[Share]:
    """The loss by a property of tensors.

    Args:
        key: the property; tensors for which it is None are left out.
        order: of the result; without it, the largest loss first.
    """
    grouped: dict[str, list[Assigned]] = {}
    for a in assignment.all:
        if (name := key(a)) is not None:
            grouped.setdefault(name, []).append(a)
    found = []
    for name, of_group in grouped.items():
        loss = sum(a.loss for a in of_group)
        bits = bits_per_weight(sum(a.nbytes for a in of_group), sum(a.tensor.n_weights for a in of_group))
        found.append(Share(name, bits, loss, loss / assignment.loss if assignment.loss else 0.0))
    if order:
        return sorted(found, key=lambda s: order.index(s.name))
    return sorted(found, key=lambda s: -s.loss)


def by_group(assignment: Assignment) -> list[Share]:
    """By the kind of the matrix."""
    return shares(assignment, lambda a: group_of(a.tensor.name), GROUPS)


def by_layer(assignment: Assignment) -> list[Share]:
    """By the decoder layer, the largest loss first."""
    return shares(assignment, lambda a: None if (n := layer_of(a.tensor.name)) is None else f"layer {n}")


def by_alpha(measured: Measured, assignment: Assignment) -> list[tuple[Assigned, float]]:
    """Tensors and their alpha per weight, relative to the mean of all: what is most sensitive, first."""
    def alpha(a: Assigned) -> float:
        return measured.losses[a.tensor.name][a.candidate.name].alpha

    mean = sum(map(alpha, assignment.matrices)) / sum(a.tensor.n_weights for a in assignment.matrices)
    found = [(a, alpha(a) / a.tensor.n_weights / mean if mean else 0.0) for a in assignment.matrices]
    return sorted(found, key=lambda pair: -pair[1])


@dataclass(frozen=True)
class Point:
    """A size whose divergence was measured.

    Attributes:
        predicted: loss.
        measured: mean KL divergence.
        error: its standard error.
    """

    bits_per_weight: float
    file_bytes: int
    predicted: float
    measured: float
    error: float


def same_order(points: Sequence[Point]) -> bool:
    """Do predicted and measured divergences put the points in one order?"""
    places = range(len(points))
    return sorted(places, key=lambda i: points[i].predicted) == sorted(places, key=lambda i: points[i].measured)


def write(path: Path, text: str, force: bool) -> None:
    """Write a text file whole.

    Raises:
        UserError: it exists and `force` is off, or cannot be written.
    """
    check_output(path, force)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give another name") from error


def check_output(path: Path, force: bool) -> None:
    """Refuse an output before hours are spent on it.

    Raises:
        UserError: it exists and `force` is off, or is a folder, or its folder does not exist.
    """
    refuse_existing([path], force)
    check_folder_of(path)


def types_text(assignment: Assignment) -> str:
    """Types and the number of matrices of each."""
    count: dict[str, int] = {}
    for a in assignment.all:
        count[a.candidate.name] = count.get(a.candidate.name, 0) + 1
    return ", ".join(f"{n} {name}" for name, n in sorted(count.items(), key=lambda pair: -pair[1]))


Curve = Sequence[tuple[float, float]]
"""Bits per weight and predicted loss."""


def plot(
    path: Path,
    curve: Curve,
    chosen: Assignment,
    points: Sequence[Point],
    uniform: Mapping[str, tuple[float, float]],
) -> None:
    """Draw size against predicted and measured divergence.

    Args:
        curve: of the best assignments.
        chosen: the one of the recipe.
        points: that were measured.
        uniform: bits per weight and predicted loss of one type for all matrices, by its name.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), dpi=160, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True), color="#4363d8", lw=1.4, label="best types, predicted")
    for name, (bits, loss) in uniform.items():
        axes.plot(bits, loss, "s", ms=4, color="#9a9a9a")
        axes.annotate(name, (bits, loss), textcoords="offset points", xytext=(4, 3), fontsize=7, color="#555555")
    if uniform:
        axes.plot([], [], "s", ms=4, color="#9a9a9a", label="one type, predicted")
    axes.plot(chosen.bits_per_weight, chosen.loss, "o", ms=7, mfc="none", color="#e6194b", label="recipe, predicted")
    if points:
        axes.errorbar(
            [p.bits_per_weight for p in points], [p.measured for p in points], [p.error for p in points],
            fmt="D", ms=4, color="#3cb44b", lw=1, label="measured",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.1)  # room for the names
    axes.set_xlabel("bits per weight of the matrices, with lists")
    axes.set_ylabel("KL divergence from the unquantized model")
    axes.grid(color="#ececec", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    save_picture(figure, path)
