"""bof4 inspect: the contents of a GGUF file."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gguf
import typer
from rich.console import Console
from rich.table import Table

from gguf_bof4.cli.model_file import HELP, local_path
from gguf_bof4.errors import UserError
from gguf_bof4.progress import progress_bar

if TYPE_CHECKING:
    from gguf_bof4.gguf_files.model import Model
    from gguf_bof4.weight_errors import Dequantize, ErrorSums

LONGEST_VALUE = 60


def _finite(value: Any) -> Any:
    """A metadata value without the floats that JSON lacks: "nan", "inf" and "-inf" are strings."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def mixture(model: Model) -> dict[str, dict[str, Any]]:
    """Types of the matrices by their place in the model, such as the attention's q of all layers."""
    from gguf_bof4.weight_errors import GROUPS, group_of

    found = {}
    for group in GROUPS:
        tensors = [t for t in model.tensors if len(t.shape) > 1 and group_of(t.name) == group]
        if tensors:
            types = Counter(t.qtype.name for t in tensors)
            found[group] = {"types": dict(types.most_common()), "bits_per_weight": model.bits_per_weight(tensors)}
    return found


def summary(model: Model, errors: Mapping[str, ErrorSums] | None = None) -> dict[str, Any]:
    """The object that --json prints: file, metadata, tensors and totals.

    With `errors`, tensors that have one get "relative_squared_error".

    Bytes and bits per weight include outlier lists; list_bytes, list_bits_per_weight and outlier_share
    are those of the list alone.
    """
    from gguf_bof4.gguf_files.model import bits_per_weight

    weights = sum(t.n_weights for t in model.tensors)
    nbytes = sum(model.stored_nbytes(t) for t in model.tensors)
    by_type: Counter[str] = Counter()
    bytes_by_type: Counter[str] = Counter()
    count_by_type: Counter[str] = Counter()
    outliers_by_type: Counter[str] = Counter()
    for t in model.tensors:
        by_type[t.qtype.name] += t.n_weights
        bytes_by_type[t.qtype.name] += model.stored_nbytes(t)
        count_by_type[t.qtype.name] += 1
        outliers_by_type[t.qtype.name] += model.n_outliers(t)
    return {
        "file": str(model.path),
        "parts": len(model.readers),
        "bytes": sum(Path(p).stat().st_size for p in dict.fromkeys(t.path for t in model.tensors)),
        "weights": weights,
        "tensor_bytes": nbytes,
        "bits_per_weight": bits_per_weight(nbytes, weights),
        "outliers": outliers_by_type.total(),
        "list_bytes": sum(model.list_nbytes(t) for t in model.tensors),
        "types": {
            name: {
                "tensors": count_by_type[name],
                "weights": n,
                "bytes": bytes_by_type[name],
                "bits_per_weight": bits_per_weight(bytes_by_type[name], n),
                "outliers": outliers_by_type[name],
            }
            for name, n in by_type.most_common()
        },
        "matrices": mixture(model),
        "metadata": {key: _finite(value) for key, value in model.metadata().items()},
        "tensors": [
            {
                "name": t.name,
                "type": t.qtype.name,
                "shape": list(t.shape),
                "bytes": model.stored_nbytes(t),
                "bits_per_weight": model.bits_per_weight([t]),
                "outliers": model.n_outliers(t),
                "outlier_share": model.n_outliers(t) / t.n_weights,
                "list_bytes": model.list_nbytes(t),
                "list_bits_per_weight": bits_per_weight(model.list_nbytes(t), t.n_weights),
                **({"relative_squared_error": errors[t.name].relative} if errors and t.name in errors else {}),
            }
            for t in model.tensors
        ],
    }


def _short(value: Any) -> str:
    from gguf_bof4.gguf_files.header import escaped

    if isinstance(value, list) and len(value) > 16:
        return f"[{len(value)} values]"
    text = escaped(str(value))
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _print_tables(found: dict[str, Any], console: Console) -> None:
    from gguf_bof4.gguf_files.header import escaped

    metadata = Table("key", "value", title="metadata", title_justify="left", box=None)
    for key, value in found["metadata"].items():
        metadata.add_row(escaped(key), _short(value))
    tensors = Table(title="tensors", title_justify="left", box=None)
    tensors.add_column("name")
    tensors.add_column("type")
    lists = found["outliers"] > 0
    errors = any("relative_squared_error" in t for t in found["tensors"])
    of_lists = ("outliers", "share", "their bits/weight") if lists else ()
    for header in ("shape", "bytes", "bits/weight", *(("error",) if errors else ()), *of_lists):
        tensors.add_column(header, justify="right")
    for t in found["tensors"]:
        shape = " x ".join(str(n) for n in t["shape"])
        row = [escaped(t["name"]), t["type"], shape, f"{t['bytes']:,}", f"{t['bits_per_weight']:.4g}"]
        if errors:
            row.append(f"{t['relative_squared_error']:.5f}" if "relative_squared_error" in t else "")
        if lists and t["outliers"]:
            row += [f"{t['outliers']:,}", f"{100 * t['outlier_share']:.3f} %", f"{t['list_bits_per_weight']:.4f}"]
        tensors.add_row(*row)
    types = Table(title="types", title_justify="left", box=None)
    types.add_column("type")
    for header in ("tensors", "weights", "bytes", "bits/weight"):
        types.add_column(header, justify="right")
    for name, t in found["types"].items():
        types.add_row(
            name, str(t["tensors"]), f"{t['weights']:,}", f"{t['bytes']:,}", f"{t['bits_per_weight']:.4g}"
        )
    matrices = Table("matrices", "types", title="mixture", title_justify="left", box=None)
    matrices.add_column("bits/weight", justify="right")
    for group, m in found["matrices"].items():
        names = " + ".join(f"{count} {name}" for name, count in m["types"].items())
        matrices.add_row(group, names, f"{m['bits_per_weight']:.4g}")
    for table in (metadata, tensors, matrices, types):
        console.print(table, "", highlight=False, markup=False)
    listed = f", {found['outliers']:,} outliers in {found['list_bytes']:,} bytes of lists" if lists else ""
    console.print(
        f"{escaped(found['file'], len(found['file']))}: {found['weights']:,} weights, {found['bytes']:,} bytes, "
        f"{found['bits_per_weight']:.3f} bits per weight" + listed,
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _errors(model: Model, reference: str) -> dict[str, ErrorSums]:
    """Errors of the tensors against another file; decoded by the native library where there is one."""
    from gguf_bof4 import native
    from gguf_bof4.ggml_patch.build import NotBuiltError, installed_bin
    from gguf_bof4.gguf_files.model import open_model
    from gguf_bof4.weight_errors import tensor_errors

    other = open_model(local_path(reference))
    dequantize: Dequantize = native.dequantize
    try:
        installed_bin()
    except NotBuiltError:
        dequantize = gguf.dequantize  # equal bits, but slower
    with progress_bar("comparing weights") as progress:
        try:
            return tensor_errors(model, other, dequantize, progress)
        except NotImplementedError as error:
            raise UserError(f"{model.path}: {error}: `bof4 build` makes a library that decodes all types") from error


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help=HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    reference: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The file that it was made from: also errors of the weights."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="Draw bits per weight, and with --reference errors, by layer (PNG, SVG or PDF; needs matplotlib).",
        ),
    ] = None,
) -> None:
    """Print the tensors, types, bits per weight and metadata of a GGUF file.

    Errors are relative squared errors: the sum of the squared differences
    from the weights of --reference over the sum of their squares.
    """
    from gguf_bof4.gguf_files.model import open_model

    if plot is not None:
        from gguf_bof4.bench import model_plot

        model_plot.check_available()
    model = open_model(local_path(file))
    errors = None if reference is None else _errors(model, reference)
    if plot is not None:
        model_plot.plot_model(model, errors, plot)
    found = summary(model, errors)
    if as_json:
        # letters that standard output cannot encode are escaped as JSON escapes them
        print(json.dumps(found, ensure_ascii=(sys.stdout.encoding or "utf-8").lower() != "utf-8"))
    else:
        _print_tables(found, Console(width=None))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)
