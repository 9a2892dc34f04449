"""From a list of sources and a writer with the metadata to the finished files: what both routes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import (
    PlannedTensor,
    Writer,
    add_format_metadata,
    fill,
    part_names,
    refuse_existing,
    refuse_source,
    write,
)
from gguf_bof4.convert.policy import OUTPUT, Decision, decide
from gguf_bof4.convert.report import Progress, TensorReport
from gguf_bof4.convert.sources import Source

from gguf_bof4 import native
from gguf_bof4.errors import UserError


def plan(
    architecture: str,
    sources: Sequence[Source],
    options: Options,
    fixed: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> list[PlannedTensor]:
    """Decide the type of every tensor.

    Args:
        architecture: general.architecture.
        fixed: types that are not up to the rules, by name.

    Raises:
        UserError: llama.cpp does not know the architecture.
    """
    rules, fixed = options.rules, fixed or {}
    tied = all(source.name != OUTPUT for source in sources)
    planned = []
    for source in sources:
        if (qtype := fixed.get(source.name)) is not None:
            decision = Decision(qtype)
        else:
            try:
                decision = decide(architecture, source.name, source.shape, source.qtype, rules, tied)
            except native.NativeError as error:
                raise UserError(
                    f"{source.path}: llama.cpp does not know the architecture {architecture!r} ({error})"
                ) from error
        planned.append(PlannedTensor(source, decision))
    return planned


def run(
    writer: Writer,
    tensors: Sequence[PlannedTensor],
    options: Options,
    output: Path,
    folder: Path | None,
    progress: Progress,
) -> tuple[Path, ...]:
    """Write the tensors and the writer's metadata into `folder`; returns the names that the files are to have.

    Args:
        writer: holds the metadata, and no tensors yet.
        output: the name of the file, or of the parts before they are numbered.
        folder: a staging folder; None writes nothing.

    Raises:
        UserError: an output exists or is a source, the disk is full, or a tensor cannot be encoded.
    """
    add_format_metadata(writer, options.format.file_type, tensors)
    fill(writer, tensors, options.threads, progress)
    outputs = part_names(writer, output)
    for path in outputs:
        refuse_source(path, [t.source.path for t in tensors])
    refuse_existing(outputs, options.force)
    if folder is not None:
        write(writer, folder, output)
    return outputs


def reports(tensors: Sequence[PlannedTensor]) -> tuple[TensorReport, ...]:
    """What became of each tensor."""
    return tuple(
        TensorReport(
            name=t.source.name,
            shape=t.source.shape,
            source_type=t.source.qtype.name,
            qtype=t.decision.qtype.name,
            nbytes=t.nbytes,
            fallback=t.decision.fallback,
            decoded=t.source.qtype != t.decision.qtype and gguf.GGML_QUANT_SIZES[t.source.qtype][0] > 1,
        )
        for t in tensors
    )
