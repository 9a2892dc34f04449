"""From an open model to the finished files: plan, calibrate, encode. The same for GGUF files and folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4 import native
from gguf_bof4.convert.calibrated import calibrated
from gguf_bof4.convert.equalized import check_equalizable, equalized
from gguf_bof4.convert.imatrix import Imatrix
from gguf_bof4.convert.imatrix import chosen as chosen_imatrix
from gguf_bof4.convert.model_kinds import why_no_lists
from gguf_bof4.convert.opened import OpenedModel
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import (
    EQUALIZED,
    PlannedTensor,
    add_format_metadata,
    fill,
    part_names,
    refuse_existing,
    refuse_source,
    write,
)
from gguf_bof4.convert.output_lists import PlannedList, list_room
from gguf_bof4.convert.policy import NEED_IMATRIX, OUTPUT, Decision, decide, is_quantizable
from gguf_bof4.convert.recipe import Shape
from gguf_bof4.convert.report import TensorReport
from gguf_bof4.convert.sources import Source
from gguf_bof4.errors import UserError
from gguf_bof4.formats import OPQ_BLOCK
from gguf_bof4.gguf_files.header import MOST_DIMENSIONS
from gguf_bof4.gguf_files.model import Tensor
from gguf_bof4.lists import LISTED_TYPES, LONGEST_NAME, LONGEST_ROW, list_name
from gguf_bof4.outlier_choice import OutlierRule
from gguf_bof4.progress import Progress


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        architecture: general.architecture.
        outputs: the final names of the files.
        tensors: a report of each tensor.
    """

    architecture: str
    outputs: tuple[Path, ...]
    tensors: tuple[TensorReport, ...]


def _why_not_loaded(architecture: str, name: str) -> str | None:
    """Why llama.cpp would not load the list of a tensor of this name; None where it would."""
    if (length := len(list_name(name).encode(errors="surrogateescape"))) > LONGEST_NAME:
        return f"the name of its list would have {length} bytes, and llama.cpp loads at most {LONGEST_NAME}"
    return why_no_lists(architecture, name)


def why_no_list(architecture: str, name: str, columns: int) -> str | None:
    """Why a tensor of this name and rows of this length gets no list; None where it can have one."""
    return _why_not_loaded(architecture, name) or _why_rows_have_no_list(columns)


def _why_rows_have_no_list(columns: int) -> str | None:
    """Why rows of this length have no list; None where they have one."""
    if columns > LONGEST_ROW:
        return f"rows of {columns} are longer than {LONGEST_ROW}"
    if columns % OPQ_BLOCK:
        return f"rows of {columns} are no multiple of {OPQ_BLOCK}"
    return None


def _plan_list(
    architecture: str, source: Source, decision: Decision, rule: OutlierRule | None, source_list: Tensor | None
) -> tuple[PlannedList | None, str | None]:
    """The list of a tensor, and why it gets none where one was asked for.

    Raises:
        UserError: the tensor is copied, and llama.cpp would not load its list.
    """
    copied = source.qtype == decision.qtype
    if decision.qtype not in LISTED_TYPES or (source_list if copied else rule) is None:
        return None, None
    if copied and source_list is not None:
        if (not_loaded := _why_not_loaded(architecture, source.name)) is not None:
            raise UserError(
                f"{source.path}: the outlier list of tensor {source.name} cannot be kept: {not_loaded}. Convert the "
                f"unquantized file again, or give the tensor another type: --tensor-type {source.name}=q8_0"
            )
        return PlannedList(source.name, None, source_list.nbytes), None
    assert rule is not None
    no_list = why_no_list(architecture, source.name, source.shape[-1])
    if no_list is not None:
        return None, no_list
    return PlannedList(source.name, rule, list_room(source.shape, rule)), None


def _importance(source: Source, decision: Decision, imatrix: Imatrix | None) -> npt.NDArray[np.float32] | None:
    """The importance of the columns of a tensor that is encoded in blocks."""
    if imatrix is None or source.qtype == decision.qtype or gguf.GGML_QUANT_SIZES[decision.qtype][0] == 1:
        return None
    found = imatrix.of(source.name, source.shape)
    if found is None and decision.qtype.name in NEED_IMATRIX:
        raise UserError(
            f"{imatrix.path} says nothing about the tensor {source.name}, but {decision.qtype.name} without importance "
            "is garbage: give the tensor another type"
        )
    return found


def _check_shape(source: Source) -> None:
    """Refuse what no GGUF file can hold; GGUF sources were checked when they were opened."""
    if len(source.shape) > MOST_DIMENSIONS:
        raise UserError(
            f"{source.path}: tensor {source.name} has {len(source.shape)} dimensions, and GGUF files have at most "
            f"{MOST_DIMENSIONS}: the pinned llama.cpp cannot convert this model"
        )
    if 0 in source.shape:
        raise UserError(f"{source.path}: tensor {source.name} of shape {list(source.shape)} has no weights")


def _unknown_architecture(opened: OpenedModel, error: native.NativeError) -> UserError:
    return UserError(f"{opened.path}: llama.cpp does not know the architecture {opened.architecture!r} ({error})")


def check_recipe(opened: OpenedModel, options: Options) -> None:
    """Refuse a recipe that does not fit the model.

    Raises:
        UserError: as `Recipe.check`.
        native.NativeError: llama.cpp does not know the architecture.
    """
    recipe = options.chosen_recipe
    if recipe is not None:
        shapes = [
            Shape(s.name, s.shape[-1], is_quantizable(opened.architecture, s.name, s.shape, s.qtype))
            for s in opened.sources
        ]
        recipe.check(shapes, options.rules_of_options.named)


def plan(opened: OpenedModel, options: Options, imatrix: Imatrix | None = None) -> list[PlannedTensor]:
    """Decide the type of every tensor, whether it gets an outlier list, and the importance of its columns.

    Raises:
        UserError: llama.cpp does not know the architecture or would not load a list that is to be copied, or the
            importance matrix is of another model.
    """
    rules, list_rules, architecture, lists = options.rules, options.list_rules, opened.architecture, opened.lists
    tied = all(source.name != OUTPUT for source in opened.sources)
    for source in opened.sources:
        _check_shape(source)
    try:
        check_recipe(opened, options)
    except native.NativeError as error:
        raise _unknown_architecture(opened, error) from error
    planned = []
    for source in opened.sources:
        if (qtype := opened.fixed.get(source.name)) is not None:
            decision = Decision(qtype)
        else:
            try:
                decision = decide(architecture, source.name, source.shape, source.qtype, rules, tied)
            except native.NativeError as error:
                raise _unknown_architecture(opened, error) from error
        planned_list, no_list = _plan_list(
            architecture, source, decision, list_rules.of(source.name), lists.get(source.name)
        )
        importance = _importance(source, decision, imatrix)
        planned.append(
            PlannedTensor(source, decision, planned_list, lists.get(source.name), no_list, importance=importance)
        )
    return planned


def _unweighted(planned: PlannedTensor, imatrix: Imatrix | None) -> bool:
    """Was the tensor encoded without weights on errors although there is an importance matrix?"""
    in_blocks = gguf.GGML_QUANT_SIZES[planned.decision.qtype][0] > 1 and not planned.copied
    return imatrix is not None and in_blocks and planned.importance is None and planned.ready is None


def _is_decoded(planned: PlannedTensor) -> bool:
    """Is the tensor quantized in the source, and of another type in the output?"""
    return not planned.copied and gguf.GGML_QUANT_SIZES[planned.source.qtype][0] > 1


def _reports(tensors: Sequence[PlannedTensor], imatrix: Imatrix | None) -> tuple[TensorReport, ...]:
    """A report of each tensor, after it was written."""
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
            decoded=_is_decoded(t),
            not_compensated=t.not_compensated,
            unweighted=_unweighted(t, imatrix),
            errors=t.errors if t.errors.squared_weights else None,
            requantized=_is_decoded(t) and gguf.GGML_QUANT_SIZES[t.decision.qtype][0] > 1,
        )
        for t in tensors
    )


def run(opened: OpenedModel, options: Options, output: Path, folder: Path | None, progress: Progress) -> Converted:
    """Plan the tensors of an open model, encode them, and write them and the metadata into a folder.

    Args:
        opened: its writer is filled here.
        output: the name of the file, or of the parts before they are numbered.
        folder: a staging folder; None writes nothing, and runs no model.
        progress: called with the current step, weights done and weights in all.

    Raises:
        UserError: llama.cpp does not know the architecture, an output exists or is a source, the disk is full, a tensor
            cannot be encoded, the model cannot be calibrated, or lists are so long that a part gets too large.
    """
    writer, imatrix = opened.writer, chosen_imatrix(options)
    if options.equalize:
        check_equalizable(opened)
    if options.equalize and folder is not None and imatrix is not None:
        opened, imatrix = equalized(opened, imatrix, options.equalize_strength, options.threads, progress)
    tensors = plan(opened, options, imatrix)
    if folder is not None:
        tensors = calibrated(tensors, opened, options, output, progress)
    add_format_metadata(writer, options, tensors, imatrix)
    if opened.factors:
        writer.kv_data[0].pop(EQUALIZED, None)  # of the source
        writer.add_bool(EQUALIZED, True)
    fill(writer, tensors, options, progress)
    outputs = part_names(writer, output)
    for path in outputs:
        refuse_source(path, [t.source.path for t in tensors])
    refuse_existing(outputs, options.force)
    if folder is not None:
        write(writer, folder, output, [t.planned_list for t in tensors if t.planned_list])
    return Converted(opened.architecture, outputs, _reports(tensors, imatrix))
