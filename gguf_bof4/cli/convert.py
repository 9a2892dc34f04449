"""bof4 convert: converts a Hugging Face folder or a GGUF file to a GGUF file of BOF4 types."""

from __future__ import annotations

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.box
import typer
from rich.table import Table

from gguf_bof4.cli.terminal import table_console
from gguf_bof4.convert.options import DEFAULT_OPQ, Options
from gguf_bof4.convert.output_types import OUTPUT_TYPES, output_type_of
from gguf_bof4.convert.recipe import read_recipe
from gguf_bof4.convert.report import size_text
from gguf_bof4.encoders import ENCODERS, encoder_of
from gguf_bof4.encoders.encoder import PRECISIONS
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.header import escaped
from gguf_bof4.gguf_files.model import bits_per_weight
from gguf_bof4.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from gguf_bof4.convert.report import ConversionReport
    from gguf_bof4.search.targets import Target

_ENCODER_HELP = "; ".join(f"{e.name}: {e.help}" for e in ENCODERS)
_CALIBRATED = ", ".join(e.name for e in ENCODERS if e.calibrate is not None)
_TYPES = ", ".join(t.name for t in OUTPUT_TYPES)

_WORST = 5
"""Tensors with the largest errors that are printed."""

_NAMED_TENSORS = 8
"""Tensors without list that have one reason are named up to this number; a projector has hundreds."""


def _print_tensors(report: ConversionReport) -> None:
    width = max(len(t.name) for t in report.tensors)
    for t in report.tensors:
        shape = " x ".join(str(n) for n in t.shape)
        outliers = f"  {t.outliers} outliers" if t.outliers else ""
        print(f"{t.name:{width}}  {shape:>22}  {t.source_type:>7} -> {t.qtype:<7} {size_text(t.nbytes):>10}{outliers}")


def _print_reasons(reasons: Sequence[tuple[str, str]]) -> None:
    """Names of tensors and the reasons why; where many have the same reason, they are one line."""
    count = Counter(why for _, why in reasons)
    for why, n in count.items():
        names = [name for name, other in reasons if other == why]
        if n > _NAMED_TENSORS:
            print(f"    {names[0]} and {n - 1} more: {why}")
        else:
            for name in names:
                print(f"    {name}: {why}")


def _print_exceptions(report: ConversionReport) -> None:
    """Tensors that are not as the options say, and why."""
    if report.fallbacks:
        print(f"fallbacks:     {len(report.fallbacks)}, because their rows do not divide into blocks")
        for t in report.fallbacks:
            print(f"    {t.name}: {t.fallback}")
    if report.without_list:
        print(f"no list:       {len(report.without_list)} tensors, whose outliers are quantized like other weights")
        _print_reasons([(t.name, t.no_list or "") for t in report.without_list])
    if report.unweighted:
        print(f"unweighted:    {len(report.unweighted)} tensors, which are not in the importance matrix")
        for t in report.unweighted:
            print(f"    {t.name}")
    if report.not_compensated:
        print(f"uncompensated: {len(report.not_compensated)} tensors, in which errors are not compensated")
        for t in report.not_compensated:
            print(f"    {t.name}: {t.not_compensated}")


def _types(types: dict[str, int]) -> str:
    return " + ".join(f"{count} {name}" for name, count in types.items())


def _first_look(report: ConversionReport, console: Console) -> list[Table]:
    """Where the bits and the errors are: a table of groups of tensors, and one of the worst tensors."""
    box = rich.box.HEAVY_HEAD if console.is_terminal else None
    groups = Table("matrices", "types", title="by place in the model", title_justify="left", box=box)
    for heading in ("size", "bits per weight", "relative squared error"):
        groups.add_column(heading, justify="right")
    for group in report.groups:
        errors = "" if (found := group.errors) is None else f"{found.relative:.5f}"
        groups.add_row(
            group.name, _types(group.types), size_text(group.nbytes), f"{group.bits_per_weight:.2f}", errors
        )
    worst = Table("worst tensors", "type", box=box)
    for heading in ("bits per weight", "relative squared error"):
        worst.add_column(heading, justify="right")
    for t in report.worst[:_WORST]:
        assert t.errors is not None
        worst.add_row(escaped(t.name), t.qtype, f"{t.bits_per_weight:.2f}", f"{t.errors.relative:.5f}")
    return [table for table in (groups, worst) if table.row_count]


def _how_to_use(report: ConversionReport) -> list[str]:
    """Commands that run the output and compare it with the source."""
    output = shlex.quote(str(report.outputs[0]))
    architecture = report.architecture
    if architecture == "clip":
        return []  # a projector belongs to another model
    if "bert" in architecture or "embedding" in architecture:
        return [f"bof4 run --program llama-embedding {output}"]
    compared = f"bof4 compare {shlex.quote(str(report.source))} {output} -f TEXT"
    return [f"bof4 run {output}", *([compared] if report.source.is_file() else [])]


def _print_summary(report: ConversionReport, stock: bool) -> None:
    """Print the report.

    Args:
        stock: an unpatched llama.cpp is meant to run the output.
    """
    types = ", ".join(f"{count} {name}" for name, count in report.types.items())
    print(f"architecture:  {report.architecture}")
    print(f"tensors:       {len(report.tensors)} ({types})")
    print(
        f"size:          {size_text(report.bytes_before)} before, {size_text(report.bytes_after)} after, "
        f"{report.bits_per_weight:.2f} bits per weight"
    )
    if report.listed:
        n_weights = sum(t.n_weights for t in report.listed)
        outliers, nbytes = sum(t.outliers or 0 for t in report.listed), sum(t.list_nbytes for t in report.listed)
        print(
            f"outliers:      {outliers:,} in {len(report.listed)} lists: {100 * outliers / n_weights:.2g} % of the "
            f"weights there, {bits_per_weight(nbytes, n_weights):.2g} bits per weight"
        )
    print(f"time:          {report.seconds:.1f} s")
    _print_exceptions(report)
    for name, count in report.copied.items():
        print(f"copied:        {count} tensors were {name} already; --opq and --encoder change nothing in them")
    if (decoded := Counter(report.decoded_types) - Counter(report.requantized_types)).total():
        types = ", ".join(f"{count} {name}" for name, count in decoded.items())
        print(f"decoded:       {types}; outliers, where there were any, are applied")
    for name, count in report.requantized_types.items():
        print(
            f"warning: {count} tensors were {name} already; converting them again adds a second error. "
            "Convert from F32, F16 or BF16 where you can."
        )
    if any(t.outliers is None for t in report.tensors):
        print("outliers:      not counted in a dry run, which reads no weights")
    if stock and report.needs_patch:
        types = ", ".join(f"{count} {name}" for name, count in report.needs_patch.items())
        print(f"warning: {types} are left, by your options: only the patched llama.cpp runs this file")
    console = table_console()
    for table in _first_look(report, console):
        console.print()
        console.print(table)
    print("\na dry run; it would write:" if report.dry_run else "\nwritten:")
    for path in report.outputs:
        print(f"    {path}")
    if not report.dry_run and (commands := _how_to_use(report)):
        print("next:")
        for command in commands:
            print(f"    {command}")


def _main_type(recipe: Path | None, importance: bool) -> str:
    """The type where --type is not given."""
    named = None if recipe is None else read_recipe(recipe, importance).main_type
    return named or Options.type


def _target(bits: float | None, size: str | None, type_: str | None) -> Target | None:
    """The target of a search of types; None: there is none."""
    if bits is None and size is None:
        return None
    from gguf_bof4.search.targets import parse_target

    if type_ is not None:
        raise UserError("--type says types, and with --target-bpw or --target-size they are searched: give one")
    return parse_target(bits, size)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hugging Face folder, a GGUF file (the first of its parts), or a repository of a model hub: "
            "ORGANIZATION/NAME, or hf:ORGANIZATION/NAME[:FILE]. A path that exists goes first.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The GGUF file to write; {ftype} in its name becomes the type.", show_default=False
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a repository (default: main).")
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE",
            help=f"Type of the matrices: {_TYPES} (default: BOF4_S; with --recipe, the type of most of its lines).",
        ),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            metavar="BITS",
            help="In the place of --type: search the type of each tensor, as bof4 search does, for so many bits per "
            "weight of the decoder layers' matrices, outlier lists included.",
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="N(K|M|G)",
            help="The same for the size of the file, all of it: 900M, 3.9G (powers of 1000) or 3.6GiB.",
        ),
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the token embeddings; any ggml type (default: Q6_K).")
    ] = None,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Type of output.weight, and of token embeddings that serve as output, too (default: Q6_K).",
        ),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="Type of the tensors whose name the regular expression is found in, such as attn_v=q8_0. "
            "May be given several times; the first that matches counts.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Types and outlier lists of tensors, as bof4 search writes them: a file of PATTERN=TYPE, as "
            "llama-quantize --tensor-type-file reads it. --tensor-type and --opq PATTERN= go first.",
        ),
    ] = None,
    opq: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PATTERN=]Q|off",
            help="Keep outliers in 16 bits, in a list beside each tensor of a BOF4 type: weights that exceed the "
            f"Q-quantile of the largest of 64, 0.95 for example; off: no lists (default: {DEFAULT_OPQ}). "
            "With a PATTERN, for the tensors whose name the regular expression is found in; the first that matches "
            "counts.",
        ),
    ] = None,
    opq_bits: Annotated[
        float | None,
        typer.Option(
            metavar="BITS",
            help="Instead of --opq Q: bits per weight for outliers, 0.05 for example. Those are listed that save the "
            "most error under --imatrix, or under the inputs that the encoder gptq finds.",
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Encoder of the BOF4 types; {_CALIBRATED} encodes llama.cpp's types, too. {_ENCODER_HELP}.",
        ),
    ] = Options.encoder,
    imatrix: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|self|random",
            help="An importance matrix of llama-imatrix, GGUF or .dat, by which errors are weighted. "
            "self: make one by running the model on text that it writes itself; random: on random tokens, which is "
            "faster.",
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT|self",
            help=f"{_CALIBRATED} and targets: the calibration text, like the texts that the model will read; 100 kB or "
            "more: a file, a folder, or JSON Lines of chats (.jsonl). self: text that the model itself writes, kept in "
            "the cache. May be given several times: all get equal shares.",
            show_default="self",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--calibration-samples",
            min=1,
            help=f"{_CALIBRATED}: windows of the calibration text that the model reads.",
            show_default="32, or more for wide layers",
        ),
    ] = Options.samples,
    sample_length: Annotated[
        int, typer.Option("--calibration-length", min=2, help=f"{_CALIBRATED}: tokens in each window.")
    ] = Options.sample_length,
    damping: Annotated[
        float, typer.Option(help=f"{_CALIBRATED}: Hessian damping, as a fraction of the mean diagonal.")
    ] = Options.damping,
    act_order: Annotated[
        bool, typer.Option(help=f"{_CALIBRATED}: quantize the columns with the largest inputs first.")
    ] = Options.act_order,
    token_weights: Annotated[
        bool,
        typer.Option(
            help=f"{_CALIBRATED}: weigh each token by how much the model's loss depends on it, which takes a backward "
            "pass of the model first."
        ),
    ] = Options.token_weights,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help=f"{_CALIBRATED}: device that runs the model: cpu, cuda, cuda:1.")
    ] = Options.device,
    precision: Annotated[
        str,
        typer.Option(
            "--calibration-precision",
            metavar="|".join(PRECISIONS),
            help=f"{_CALIBRATED}: in which matrices are multiplied; auto: bf16 on processors with AVX512-BF16 or AMX.",
        ),
    ] = Options.precision,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help=f"{_CALIBRATED}: afterwards train codes and scales by gradient descent, on the calibration text.",
        ),
    ] = False,
    refine_parts: Annotated[
        str,
        typer.Option(
            metavar="PARTS",
            help="--refine: what it trains, separated by commas: rounding (codes and scales, layer by layer, so that "
            "the outputs of each are those of the unquantized one), scales (of blocks and norms, so that the model's "
            "next tokens are those of the unquantized one).",
        ),
    ] = Options.refine_parts,
    refine_minutes: Annotated[
        float, typer.Option(metavar="N", help="--refine: how long it trains, in all.")
    ] = Options.refine_minutes,
    refine_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="--refine: train for as many steps instead (rounding: for each layer): the same result on a faster "
            "machine.",
        ),
    ] = None,
    refine_samples: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="--refine: windows of the calibration text that it trains on or judges by, at most. Between the "
            "layers they take as long as a pass of the text through both models: fewer for large models.",
        ),
    ] = Options.refine_samples,
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize",
            help="First make weights and inputs of each channel of a matrix more alike, so that blocks fit better; "
            "what makes the channel is divided by the same. The model computes the same. Inputs are those of --imatrix "
            "(default: self). LoRA adapters of the model do not fit the file.",
        ),
    ] = False,
    equalize_strength: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="--equalize: how much, above 0, at most 1; 0.5 makes them equal (default: what is measured to be best "
            "for each matrix).",
            show_default=False,
        ),
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="Embeddings and output get --type, too.")] = False,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Keep the type of output.weight.")
    ] = False,
    split_max_size: Annotated[
        str, typer.Option(metavar="N(K|M|G)", help="Write parts of at most this many bytes of tensors; 0: one file.")
    ] = "0",
    model_name: Annotated[str | None, typer.Option(metavar="NAME", help="Set general.name.")] = None,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="Encoding threads; 0: all cores.")] = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite OUT where it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the type of every tensor and the size; write nothing.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v",
            help="List every tensor, show what upstream's converter logs, and the traceback of an internal error.",
        ),
    ] = False,
) -> None:
    """Convert a model to a GGUF file of BOF4 types.

    SRC is a Hugging Face folder of any architecture that the pinned
    llama.cpp knows, a GGUF file of any type, or a repository of a model
    hub, which is downloaded into the hub's cache. Matrices get --type.
    Embeddings and output get Q6_K, but with --type F16, BF16, F32 or Q8_0
    that. Types other than BOF4_S and BOF4_K run on an unpatched llama.cpp.
    Vectors, norms and whatever llama-quantize never quantizes stay in F32
    or F16. Rows that do not divide into blocks of their type get the next
    type that fits: of BOF4_K, BOF4_S, Q8_0, F16; the summary lists them.

    OUT appears when it is complete. An error or Ctrl-C leaves nothing
    behind, except that --encoder gptq keeps finished layers in a hidden
    folder beside OUT: the same command resumes from them. A file that is
    named self or random is given as ./self.
    """
    from gguf_bof4.convert import convert as run

    target = _target(target_bpw, target_size, type_)
    options = Options(
        type=type_ or _main_type(recipe, imatrix is not None or equalize),
        token_embedding_type=token_embedding_type,
        output_tensor_type=output_tensor_type,
        tensor_types=tuple(tensor_type or ()),
        recipe=None if recipe is None else str(recipe),
        opq=tuple(opq or ()),
        opq_bits=opq_bits,
        encoder=encoder,
        imatrix=imatrix,
        calibration=tuple(calibration or ()) or None,
        samples=samples,
        sample_length=sample_length,
        damping=damping,
        act_order=act_order,
        token_weights=token_weights,
        device=device,
        precision=precision,
        refine=refine,
        refine_parts=refine_parts,
        refine_minutes=refine_minutes,
        refine_steps=refine_steps,
        refine_samples=refine_samples,
        equalize=equalize,
        equalize_strength=equalize_strength,
        pure=pure,
        leave_output_tensor=leave_output_tensor,
        split_max_size=split_max_size,
        model_name=model_name,
        threads=threads,
        force=force,
        dry_run=dry_run,
        verbose=verbose,
    )
    try:
        with progress_bar("reading the model") as progress:
            if target is None:
                report = run(source, output, revision=revision, progress=progress, **vars(options))
            else:
                from gguf_bof4.search.fitting import convert_to_target

                report = convert_to_target(source, output, target, options, revision=revision, progress=progress)
    except KeyboardInterrupt:
        kept = ""
        if target is not None:
            kept = "; what was measured is kept: the same command resumes from it"
        elif encoder_of(encoder).calibrate is not None:
            kept = "; finished layers are kept: the same command resumes from them"
        print(f"bof4: interrupted; nothing was written{kept}", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    if verbose or dry_run:
        _print_tensors(report)
    _print_summary(report, stock=target is None and output_type_of(options.type).format is None)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("convert")(convert)
