"""Encoders that run the model: the tensors that calibration has encoded replace those to be encoded while writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.convert.encoding import encode, read_floats
from gguf_bof4.convert.opened import OpenedModel
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import PlannedTensor
from gguf_bof4.convert.output_lists import PlannedList
from gguf_bof4.encoders.encoder import Calibration, CalibrationSettings, Encoder, Target
from gguf_bof4.lists import OutlierList
from gguf_bof4.progress import Progress

Floats = npt.NDArray[np.float32]


def _encode_blocks(
    planned: PlannedTensor, options: Options, importance: Floats | None
) -> tuple[npt.NDArray[np.uint8], OutlierList | None]:
    """A tensor by the block encoder: uint8 [rows, bytes of a row], and its list."""
    listed = planned.planned_list
    own_list = None if listed is None else PlannedList(planned.source.name, listed.rule, listed.room)
    job = planned.job(options)
    job = replace(job, planned=own_list, errors=None, importance=job.importance if importance is None else importance)
    data = np.concatenate(list(encode(planned.source, job)))
    return data, None if own_list is None else own_list.found()


def _target(planned: PlannedTensor, options: Options) -> Target:
    return Target(
        name=planned.source.name,
        qtype=planned.decision.qtype,
        shape=planned.source.shape,
        rule=None if planned.planned_list is None else planned.planned_list.rule,
        read=lambda: read_floats(planned.source, planned.job(options)),
        encode_blocks=lambda importance: _encode_blocks(planned, options, importance),
    )


def _is_target(encoder: Encoder, planned: PlannedTensor) -> bool:
    """Of what no layer runs, only this project's types: why errors are not compensated in Q6_K embeddings is plain."""
    qtype = planned.decision.qtype
    in_layer = planned.source.name.startswith("blk.")
    return not planned.copied and encoder.can_encode(qtype) and (in_layer or qtype not in encoder.stock_types)


def _vectors(tensors: Sequence[PlannedTensor], options: Options) -> dict[str, Callable[[], Floats]]:
    """What gives the vectors that the output has in F32, float32 [n], by name."""
    return {
        t.source.name: lambda t=t: read_floats(t.source, t.job(options))[0]  # type: ignore[misc]
        for t in tensors
        if len(t.source.shape) == 1 and t.decision.qtype == gguf.GGMLQuantizationType.F32
    }


def calibrated(
    tensors: Sequence[PlannedTensor], opened: OpenedModel, options: Options, output: Path, progress: Progress
) -> list[PlannedTensor]:
    """Plans in which the tensors that the encoder encodes with the model's inputs are ready.

    Args:
        output: finished layers are kept beside it until it is complete.

    Raises:
        UserError: the model cannot be run, the text is too short, or there are layers of an interrupted job with other
            options.
    """
    encoder = options.chosen_encoder
    if encoder.calibrate is None:
        return list(tensors)
    finished = encoder.calibrate(
        Calibration(
            source=opened.path,
            files=opened.files,
            model=opened.model,
            architecture=opened.architecture,
            targets=[_target(planned, options) for planned in tensors if _is_target(encoder, planned)],
            settings=CalibrationSettings(
                texts=options.calibration_texts,
                samples=options.samples,
                length=options.sample_length,
                damping=options.damping,
                act_order=options.act_order,
                token_weights=options.token_weights,
                device=options.device,
                precision=options.precision,
                threads=options.threads,
            ),
            folder=encoder.work_folder(output),
            restart=options.force,
            progress=progress,
            refinement=options.refinement,
            vectors=_vectors(tensors, options) if options.refine else {},
            factors=opened.factors,
        )
    )
    return [
        replace(t, ready=done.read, not_compensated=done.why_not, is_refined=done.is_refined)
        if (done := finished.get(t.source.name)) is not None
        else t
        for t in tensors
    ]
