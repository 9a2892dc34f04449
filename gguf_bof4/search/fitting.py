"""A conversion to a target: types are searched first, of the equalized model where that is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gguf_bof4.convert import ConversionReport, convert
from gguf_bof4.convert.list_rules import ListRules, parse_rules
from gguf_bof4.convert.options import RANDOM_TOKENS, SELF, Options
from gguf_bof4.convert.preparation import check_sources, needed_samples
from gguf_bof4.convert.recipe import read_recipe
from gguf_bof4.convert.report import TensorReport, size_text
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.paths import write_text
from gguf_bof4.progress import NOTE, Progress, no_progress
from gguf_bof4.search import run, texts
from gguf_bof4.search.candidates import DEFAULT_LIST_BITS, parse_tables, types_for
from gguf_bof4.search.preparation import Prepared, prepare
from gguf_bof4.search.report import loss_text, recipe_of, types_text
from gguf_bof4.search.targets import Target


def _list_bits(options: Options) -> float | None:
    """Bits per weight of outlier lists; None: no candidate has one."""
    if not options.opq:
        return DEFAULT_LIST_BITS if options.opq_bits is None else options.opq_bits
    if parse_rules(options.opq, default="off") == ListRules(None):
        return None
    raise UserError(
        f"--opq {options.opq[0]}: with a target the search says which tensors have outlier lists; give --opq-bits "
        "BITS for their size, or --opq off"
    )


def check(options: Options) -> None:
    """Raise UserError for options that do not go with a target, before anything is read."""
    decided = {
        "--recipe": options.recipe,
        "--tensor-type": options.tensor_types,
        "--pure": options.pure,
        "--leave-output-tensor": options.leave_output_tensor,
    }
    for name, given in decided.items():
        if given:
            raise UserError(f"{name} says types, and with --target-bpw or --target-size they are searched: give one")
    if not options.chosen_encoder.takes_imatrix:
        raise UserError(
            f"--encoder {options.encoder} uses no importance matrix, by which types are searched: choose another"
        )
    if options.imatrix == RANDOM_TOKENS:
        raise UserError(
            "--imatrix random: with a target the importance matrix is made from the calibration texts, or is a file"
        )
    _ = _list_bits(options)
    run.require_gradients("a search of types (--target-bpw, --target-size)")


def settings_of(options: Options) -> run.Settings:
    """All but the calibration texts."""
    return run.Settings(
        calibration=(),
        imatrix=None if options.imatrix in {None, SELF} else Path(str(options.imatrix)),
        gradients=True,
        types=types_for(options.chosen_encoder),
        list_bits=_list_bits(options),
        tables=parse_tables(options.token_embedding_type, options.output_tensor_type),
        threads=options.threads,
    )


def calibration_texts(
    path: Path, tensors: Sequence[TensorReport], options: Options, settings: run.Settings, progress: Progress
) -> tuple[Path, ...]:
    """The calibration texts; the model's own is as long as the search and the encoder need, and written once."""
    length, samples = run.CONTEXT, settings.imatrix_chunks
    if options.chosen_encoder.calibrate is not None:
        length = options.sample_length
        samples = max(needed_samples(options, tensors), math.ceil(samples * run.CONTEXT / length))
    return texts.resolved(path, options.named_sources, samples, length, options.threads, progress)


def _equalized(given: Prepared, path: Path, options: Options, progress: Progress) -> Path:
    """The equalized model, in the folder of measurements of the given one."""
    imatrix = run.importance_matrix(given.model, given.settings, given.folder, progress)
    strength = "" if options.equalize_strength is None else f"-{options.equalize_strength:g}"
    target = given.folder / f"{path.stem}-equalized{strength}.gguf"
    if not target.exists():
        convert(
            path, target, type="F32", equalize=True, equalize_strength=options.equalize_strength, imatrix=str(imatrix),
            threads=options.threads, progress=progress,
        )  # fmt: skip
    return target


def _tried(
    source: Path | str, output: Path, options: Options, revision: str | None, progress: Progress
) -> ConversionReport:
    """A dry run with one type, which says what is wrong before anything is measured.

    Raises:
        UserError: as of `convert`, or the model is quantized already.
    """
    named_by_type = "{ftype}" in output.name  # by another type than will be found
    tried = replace(options, dry_run=True, force=options.force or named_by_type)
    report = convert(source, output, revision=revision, progress=progress, **vars(tried))
    if report.source.is_file():
        run.quantizable(open_model(report.source))
    return report


def _searched(prepared: Prepared, target: Target, progress: Progress) -> tuple[Path, Path]:
    """The recipe for a target, in the folder of measurements, and the importance matrix.

    Raises:
        UserError: the target is below what is possible.
    """
    if estimate := prepared.estimate:
        progress(estimate, 0, NOTE)
    measured = run.measure(prepared.model, prepared.settings, target, prepared.folder, progress)
    assignment = run.assign(measured, target)
    recipe = prepared.folder / f"recipe-{target.name}.txt"
    write_text(recipe, recipe_of(measured, assignment))
    size = f"{assignment.bits_per_weight:.3f} bits per weight, file of at most {size_text(assignment.file_bytes)}"
    progress(f"{types_text(assignment)}: {size}, {loss_text(measured, assignment.loss)}", 0, NOTE)
    progress(f"recipe: {recipe}", 0, NOTE)
    return recipe, measured.imatrix


def convert_to_target(
    source: Path | str,
    output: Path,
    target: Target,
    options: Options,
    *,
    revision: str | None = None,
    progress: Progress = no_progress,
) -> ConversionReport:
    """Search the types of a target, and convert the model with them.

    What was measured is kept in the cache, so that an interrupted conversion resumes.

    Args:
        source: unquantized, as of `convert`.
        options: what they say of types is not used, but those of embeddings and output.
            `calibration` is for the search, too, also where the encoder takes none.
        progress: as of `convert`; lines that stay say what takes how long, and which types were found.

    Raises:
        UserError: as of `convert`; or the target is below what is possible, options contradict it, or the model is
            quantized already.
    """
    started = time.monotonic()
    check(options)
    check_sources(options.named_sources)
    calibrated = options.chosen_encoder.calibrate is not None
    first = _tried(source, output, options if calibrated else replace(options, calibration=None), revision, progress)
    path, settings = first.source, settings_of(options)
    read = calibration_texts(path, first.tensors, options, settings, progress)
    prepared = prepare(path, replace(settings, calibration=read))
    unquantized = path
    if options.equalize:
        unquantized = _equalized(prepared, path, options, progress)
        prepared = prepare(unquantized, replace(prepared.settings, imatrix=None))
    recipe, imatrix = _searched(prepared, target, progress)
    chosen = replace(
        options, type=read_recipe(recipe, True).main_type or options.type, recipe=str(recipe), imatrix=str(imatrix),
        calibration=tuple(map(str, read)) if calibrated else None, opq=(), opq_bits=None, equalize=False,
        equalize_strength=None,
    )  # fmt: skip
    report = convert(unquantized, output, progress=progress, **vars(chosen))
    if unquantized != path and not options.dry_run:
        unquantized.unlink()
    return replace(report, source=path, bytes_before=first.bytes_before, seconds=time.monotonic() - started)
