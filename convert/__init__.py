"""Converts a model to a GGUF file of this project's types."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_bof4 import hub
from gguf_bof4.convert import from_gguf, from_huggingface, pipeline
from gguf_bof4.convert.hub_files import fetch_source
from gguf_bof4.convert.huggingface_folder import check_folder
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import check_folder_of, output_path, publish, refuse_existing, refuse_source, staging
from gguf_bof4.convert.pipeline import Converted
from gguf_bof4.convert.preparation import prepared
from gguf_bof4.convert.report import ConversionReport, TensorReport
from gguf_bof4.encoders import ENCODERS
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.gguf_files.model import part_files
from gguf_bof4.progress import Progress, no_progress

__all__ = ["ConversionReport", "Options", "TensorReport", "convert"]


def _convert_file(source: Path, output: Path, staging: Path | None, options: Options, progress: Progress) -> Converted:
    return pipeline.run(from_gguf.open_source(source, options), options, output, staging, progress)


def _check_exists(source: Path) -> None:
    try:
        found = source.exists()
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"{source} does not exist")


def _local(source: Path | str, revision: str | None, progress: Progress) -> Path:
    """The source as a path that exists; what a model hub has is downloaded into its cache."""
    name = hub.wanted(source, bare=True) if isinstance(source, str) else None
    if name is None:
        if revision is not None:
            raise UserError(f"--revision {revision} is for repositories of a model hub, and {source} is a path")
        _check_exists(Path(source))
        return Path(source)
    if revision is not None and name.revision is not None:
        raise UserError(f"{source} names a revision already: give it once")
    return fetch_source(replace(name, revision=revision or name.revision), progress)


def convert(
    source: Path | str,
    output: Path,
    *,
    revision: str | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> ConversionReport:
    """Convert a model.

    The output appears under its name when it is complete; an exception leaves nothing, except for finished layers of an
    encoder that runs the model.

    Args:
        source: a Hugging Face folder, or a GGUF file (the first of its parts). A str may also name a repository of a
            model hub, as "ORGANIZATION/NAME" where there is no such path, or as "hf:ORGANIZATION/NAME[:FILE]".
        output: the file to write; "{ftype}" in its name is replaced by the type, and with
            `split_max_size` parts get numbered names.
        revision: branch, tag or commit of a repository.
        progress: called with the current step, weights (of a download bytes) done and in all.
        options: the fields of `Options`, such as type="BOF4_S", threads=4, force=True.

    Raises:
        UserError: the source is missing, damaged or not supported, a weight is NaN or infinite, an option is
            wrong, or the output exists or cannot be written. The message names the remedy.
    """
    started = time.monotonic()
    chosen = Options(**options).completed
    chosen.check()
    output = output_path(output, chosen.output_type.name, in_parts=chosen.split_bytes > 0)
    installed_bin()  # fails now rather than after an hour of reading or downloading
    if isinstance(source, str) and hub.wanted(source, bare=True):
        check_folder_of(output)
        if chosen.split_bytes == 0:
            refuse_existing([output], chosen.force)
    source = _local(source, revision, progress)
    source_files = check_folder(source) if source.is_dir() else part_files(source)
    beside = [p for p in source.iterdir() if p.suffix != ".gguf"] if source.is_dir() else []
    refuse_source(output, [*beside, *source_files])
    if chosen.split_bytes == 0:
        refuse_existing([output], chosen.force)
    run = from_huggingface.convert_folder if source.is_dir() else _convert_file
    if chosen.dry_run:
        with prepared(chosen, source, run, progress) as options_of_run:
            converted = run(source, output, None, options_of_run, progress)
        outputs = converted.outputs
        after = sum(t.nbytes for t in converted.tensors)
    else:
        with staging(output) as folder, prepared(chosen, source, run, progress) as options_of_run:
            converted = run(source, output, folder, options_of_run, progress)
            outputs = publish(folder, output, chosen.force)
        for encoder in ENCODERS:
            if encoder.calibrate is not None:
                shutil.rmtree(encoder.work_folder(output), ignore_errors=True)
        after = sum(p.stat().st_size for p in outputs)
    return ConversionReport(
        source=source,
        outputs=outputs,
        architecture=converted.architecture,
        tensors=converted.tensors,
        bytes_before=sum(p.stat().st_size for p in source_files),
        bytes_after=after,
        seconds=time.monotonic() - started,
        dry_run=chosen.dry_run,
    )
