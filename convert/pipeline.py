"""From a list of sources and a writer with the metadata to the finished files: what both routes share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4 import lists as opq
from gguf_bof4 import native
from gguf_bof4.convert.imatrix import Imatrix
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
from gguf_bof4.convert.planned_lists import PlannedList, ample_nbytes
from gguf_bof4.convert.policy import NEED_IMATRIX, OUTPUT, Decision, decide
from gguf_bof4.convert.report import Progress, TensorReport
from gguf_bof4.convert.sources import Source
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Tensor


def _plan_list(
    source: Source, decision: Decision, quantile: float | None, source_list: Tensor | None
) -> tuple[PlannedList | None, str | None]:
    """The list that a tensor gets, and why it gets none where one was asked for."""
    if decision.qtype not in opq.LISTED_TYPES:
        return None, None
    if source.qtype == decision.qtype:
        copied = None if source_list is None else PlannedList(source.name, None, source_list.nbytes)
        return copied, None
    if quantile is None:
        return None, None
    if source.shape[-1] > opq.LONGEST_ROW:
        return None, f"rows of {source.shape[-1]} are longer than {opq.LONGEST_ROW}"
    return PlannedList(source.name, quantile, ample_nbytes(source.shape, quantile)), None


def _importance(source: Source, decision: Decision, imatrix: Imatrix | None) -> npt.NDArray[np.float32] | None:
    """What the importance matrix says of a tensor that is encoded in blocks."""
    if imatrix is None or source.qtype == decision.qtype or gguf.GGML_QUANT_SIZES[decision.qtype][0] == 1:
        return None
    found = imatrix.of(source.name, source.shape)
    if found is None and decision.qtype.name in NEED_IMATRIX:
        raise UserError(
            f"{imatrix.path} says nothing about the tensor {source.name}, but {decision.qtype.name} without importance "
            "is garbage: give the tensor another type"
        )
    return found


def plan(
    architecture: str,
    sources: Sequence[Source],
    options: Options,
    fixed: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    lists: Mapping[str, Tensor] | None = None,
    imatrix: Imatrix | None = None,
) -> list[PlannedTensor]:
    """Decide the type of every tensor, whether it gets an outlier list, and what is known of its columns.

    Args:
        architecture: general.architecture.
        fixed: types that are not up to the rules, by name.
        lists: outlier lists of the sources, by the names of their weights.

    Raises:
        UserError: llama.cpp does not know the architecture, or the importance matrix is of another model.
    """
    rules, list_rules, fixed, lists = options.rules, options.list_rules, fixed or {}, lists or {}
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
        planned_list, no_list = _plan_list(source, decision, list_rules.quantile(source.name), lists.get(source.name))
        importance = _importance(source, decision, imatrix)
        planned.append(
            PlannedTensor(source, decision, planned_list, lists.get(source.name), no_list, importance=importance)
        )
    return planned


def run(
    writer: Writer,
    tensors: Sequence[PlannedTensor],
    options: Options,
    output: Path,
    folder: Path | None,
    progress: Progress,
    imatrix: Imatrix | None = None,
) -> tuple[Path, ...]:
    """Write the tensors and the writer's metadata into `folder`; returns the names that the files are to have.

    Args:
        writer: holds the metadata, and no tensors yet.
        output: the name of the file, or of the parts before they are numbered.
        folder: a staging folder; None writes nothing.

    Raises:
        UserError: an output exists or is a source, the disk is full, or a tensor cannot be encoded, or lists are so
            long that a part gets too large.
    """
    add_format_metadata(writer, options, tensors, imatrix)
    fill(writer, tensors, options, progress)
    outputs = part_names(writer, output)
    for path in outputs:
        refuse_source(path, [t.source.path for t in tensors])
    refuse_existing(outputs, options.force)
    if folder is not None:
        write(writer, folder, output, [t.planned_list for t in tensors if t.planned_list])
    return outputs


def _unweighted(planned: PlannedTensor, imatrix: Imatrix | None) -> bool:
    """Was the tensor encoded in blocks without the importance that the others have?"""
    in_blocks = gguf.GGML_QUANT_SIZES[planned.decision.qtype][0] > 1 and not planned.copied
    return imatrix is not None and in_blocks and planned.importance is None and planned.ready is None


def reports(tensors: Sequence[PlannedTensor], imatrix: Imatrix | None = None) -> tuple[TensorReport, ...]:
    """What became of each tensor."""
    return tuple(
        TensorReport(
            name=t.source.name,
            shape=t.source.shape,
            source_type=t.source.qtype.name,
            qtype=t.decision.qtype.name,
            nbytes=t.nbytes,
            outliers=t.planned_list.n_outliers if t.planned_list else 0,
            list_nbytes=t.planned_list.nbytes if t.planned_list else 0,
            no_list=t.no_list,
            fallback=t.decision.fallback,
            decoded=t.source.qtype != t.decision.qtype and gguf.GGML_QUANT_SIZES[t.source.qtype][0] > 1,
            not_compensated=t.not_compensated,
            unweighted=_unweighted(t, imatrix),
        )
        for t in tensors
    )
