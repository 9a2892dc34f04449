"""bof4 codebook: solve for the levels of a block-wise quantizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gguf_bof4.errors import require

if TYPE_CHECKING:
    from gguf_bof4.codebook import Law

DRAWN = 2**24
"""Default number of samples: 16 levels are then accurate to about 0.001."""

SEARCHED = 2**19
"""Default number of samples for --scale-search, which takes half a minute; levels are accurate to about 0.005."""


class Normalization(str, Enum):
    """Values of --normalization."""

    signed = "signed"
    absolute = "absolute"


class Metric(str, Enum):
    """Values of --metric."""

    mse = "mse"
    mae = "mae"
    mae_normalized = "mae-normalized"


class Method(str, Enum):
    """Values of --method."""

    theory = "theory"
    samples = "samples"


def codebook(
    block: Annotated[int, typer.Option(help="Weights in a block, 8 to 4096.")] = 64,
    levels: Annotated[int, typer.Option(help="Number of levels, 2 to 256.")] = 16,
    normalization: Annotated[
        Normalization, typer.Option(help="Divide a block by its largest element, with its sign or without.")
    ] = Normalization.signed,
    metric: Annotated[
        Metric,
        typer.Option(help="The error to minimize: mean squared or absolute of the weights, or of normalized weights."),
    ] = Metric.mse,
    method: Annotated[
        Method | None,
        typer.Option(
            help="Integrate over the distribution of the weights, or iterate on samples.",
            show_default="theory; samples where --samples or --weights is given",
        ),
    ] = None,
    fixed: Annotated[str, typer.Option(help="Levels to keep: some of -1,0,1 with commas between, or none.")] = "0,1",
    distribution: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:PARAMETERS]",
            help="A continuous distribution of scipy.stats, like laplace, t:5 or gennorm:1.5.",
            show_default="norm",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="How many samples to draw.", show_default=str(DRAWN))
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples drawn.")] = 0,
    weights: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Samples: all matrices of a .safetensors or .gguf file, or a .npy array.",
        ),
    ] = None,
    scale_search: Annotated[
        bool,
        typer.Option(
            "--scale-search", help="Give each block the scale with the least error instead of its largest element."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Solve for the levels with the least error when weights are quantized block by block.

    The defaults give BOF4-S (MSE), the levels of the type BOF4_S. BOF4 is --normalization absolute --fixed -1,0,1.
    The levels of BOF4_K come from --block 16 --scale-search.
    """
    require("codebook", "bof4 codebook", "scipy")
    from gguf_bof4.codebook import check_levels, expected_error, int8_levels, solve
    from gguf_bof4.codebook.scale_search import blocks_of, searched_error, solve_searched

    try:
        kept = check_levels(levels, parse_fixed(fixed))
        if scale_search:
            check_searched(normalization, metric, method, kept)
            count = samples if weights is not None else samples or SEARCHED
            chunks, source = choose_samples(block, distribution, count, seed, weights)
            blocks = blocks_of(chunks, block)
            solution = solve_searched(blocks, levels)
            error = searched_error(solution, blocks)
        else:
            law, source = choose_law(block, normalization, metric, method, distribution, samples, seed, weights)
            solution = solve(law, levels, kept)
            error = expected_error(solution, law)
    except ValueError as refused:
        typer.echo(f"bof4 codebook: {refused}", err=True)
        raise typer.Exit(2) from refused
    found = {
        "block": block,
        "normalization": "searched" if scale_search else normalization.value,
        "metric": metric.value,
        "source": source,
        "fixed": kept,
        "levels": solution.tolist(),
        "int8": int8_levels(solution),
        "error": error,
    }
    if as_json:
        print(json.dumps(found))
    else:
        _print_table(found, Console())


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("codebook")(codebook)


def parse_fixed(text: str) -> tuple[float, ...]:
    """The levels in a list like "-1,0,1"; "none" is the empty list.

    Raises:
        ValueError: not numbers with commas between.
    """
    if text.strip() == "none":
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--fixed {text!r}: give some of -1,0,1 with commas between, or none") from None


def parse_distribution(text: str) -> Any:
    """The frozen distribution of scipy.stats named by "name" or "name:parameter,parameter".

    Raises:
        ValueError: no continuous distribution of that name, or parameters it does not take.
    """
    import numpy as np
    import scipy.stats

    name, _, parameters = text.partition(":")
    family = getattr(scipy.stats, name, None)
    if not isinstance(family, scipy.stats.rv_continuous):
        raise ValueError(f"--distribution {text!r}: scipy.stats has no continuous distribution {name!r}")
    try:
        frozen = family(*(float(part) for part in parameters.split(",") if part))
        valid = bool(np.isfinite(frozen.cdf(0.0)))  # NaN where a parameter is out of range
    except (TypeError, ValueError):
        valid = False
    if not valid:
        taken = ", ".join(filter(None, (family.shapes, "loc", "scale")))
        raise ValueError(f"--distribution {text!r}: give valid parameters of {name}, in the order {taken}")
    return frozen


def choose_law(
    block: int,
    normalization: Normalization,
    metric: Metric,
    method: Method | None,
    distribution: str | None,
    samples: int | None,
    seed: int,
    weights: Path | None,
) -> tuple[Law, str]:
    """The law of the weights given by the options, and its description.

    Raises:
        ValueError: options that contradict each other, or a value out of range.
        UserError: a file of weights that cannot be read.
    """
    from gguf_bof4.codebook import sampled_law, theoretical_law

    if method is Method.theory and (weights is not None or samples is not None):
        raise ValueError("--method theory takes no samples: drop it, or --weights and --samples")
    if weights is not None or method is Method.samples or samples is not None:
        chunks, source = choose_samples(block, distribution, samples, seed, weights)
        return sampled_law(chunks, block, normalization.value, metric.value), source
    name = distribution or "norm"
    return theoretical_law(block, normalization.value, metric.value, parse_distribution(name)), f"theory for {name}"


def choose_samples(
    block: int, distribution: str | None, samples: int | None, seed: int, weights: Path | None
) -> tuple[Iterator[Any], str]:
    """The samples given by the options, and their description.

    Raises:
        ValueError: options that contradict each other, or a distribution that is none.
        UserError: a file of weights that cannot be read.
    """
    from gguf_bof4.codebook import draw_samples
    from gguf_bof4.codebook.weights import matrices

    if weights is not None:
        if distribution is not None or samples is not None:
            raise ValueError("--weights excludes --distribution and --samples: drop it, or them")
        return matrices(weights), f"weights of {weights}"
    name = distribution or "norm"
    count = samples or DRAWN
    return draw_samples(count, block, parse_distribution(name), seed), f"{count} samples of {name}, seed {seed}"


def check_searched(
    normalization: Normalization, metric: Metric, method: Method | None, fixed: tuple[float, ...]
) -> None:
    """Check the options that --scale-search excludes.

    Raises:
        ValueError: another normalization, metric, method or other fixed levels.
    """
    if (normalization, metric) != (Normalization.signed, Metric.mse) or method is Method.theory or fixed != (0.0, 1.0):
        raise ValueError(
            "--scale-search minimizes the mean squared error over samples, level 0 fixed: drop --normalization, "
            "--metric, --method and --fixed"
        )


def _print_table(found: dict[str, Any], console: Console) -> None:
    table = Table(box=None)
    for heading in ("index", "level", "int8"):
        table.add_column(heading, justify="right")
    for index, (level, k) in enumerate(zip(found["levels"], found["int8"], strict=True)):
        table.add_row(str(index), f"{level:.6f}", str(k))
    console.print(table, highlight=False, markup=False)
    console.print(
        f"blocks of {found['block']}, {found['normalization']}, {found['source']}: "
        f"expected {found['metric'].upper()} of a weight {found['error']:.6g}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
