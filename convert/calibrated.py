"""The gptq encoder's part of a conversion: what calibration makes takes the place of what would be encoded later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguf_bof4 import lists as opq
from gguf_bof4.convert.encoding import encode, read_floats
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import PlannedTensor
from gguf_bof4.convert.planned_lists import PlannedList
from gguf_bof4.convert.report import Progress
from gguf_bof4.encoders.gptq.driver import Settings, Target, calibrate
from gguf_bof4.encoders.gptq.encoded import work_folder
from gguf_bof4.encoders.gptq.weights import Weights

Floats = npt.NDArray[np.float32]


def _search(
    planned: PlannedTensor, options: Options, importance: Floats | None
) -> tuple[npt.NDArray[np.uint8], opq.OutlierList | None]:
    """A tensor by the encoder search: uint8 [rows, bytes of a row], and its list."""
    listed = planned.planned_list
    own_list = None if listed is None else PlannedList(planned.source.name, listed.quantile, listed.room)
    job = planned.job(options)
    job = replace(job, planned=own_list, importance=job.importance if importance is None else importance)
    data = np.concatenate(list(encode(planned.source, job)))
    return data, None if own_list is None else own_list.found()


def _target(planned: PlannedTensor, options: Options) -> Target:
    return Target(
        name=planned.source.name,
        qtype=planned.decision.qtype,
        shape=planned.source.shape,
        quantile=None if planned.planned_list is None else planned.planned_list.quantile,
        read=lambda: read_floats(planned.source, planned.job(options)),
        search=lambda importance: _search(planned, options, importance),
    )


def calibrated(
    tensors: Sequence[PlannedTensor],
    weights: Weights,
    source: Path,
    files: Sequence[Path],
    architecture: str,
    options: Options,
    output: Path,
    progress: Progress,
) -> list[PlannedTensor]:
    """Plans in which all tensors of decoder layers that get one of this project's types are ready.

    Args:
        weights: of the model.
        files: that hold the model.
        output: finished layers are kept beside it until it is complete.

    Raises:
        UserError: the model cannot be run, the text is too short, or there is interrupted work of other options.
    """
    assert options.calibration is not None
    wanted = [t for t in tensors if t.decision.qtype in opq.LISTED_TYPES and not t.copied]
    settings = Settings(
        text=Path(options.calibration),
        samples=options.samples,
        length=options.sample_length,
        damping=options.damping,
        act_order=options.act_order,
        device=options.device,
        threads=options.threads,
    )
    targets = [_target(planned, options) for planned in wanted]
    done = calibrate(
        weights, source, files, architecture, targets, settings, work_folder(output), options.force, progress
    )
    return [
        replace(
            t,
            ready=partial(done.read, t.source.name) if t.source.name in done.layer_of else None,
            not_compensated=done.why_not.get(t.source.name),
        )
        for t in tensors
    ]
