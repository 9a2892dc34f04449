"""Refines what gptq has encoded: codes layer by layer, then scales of blocks and norms of the whole model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4.encoders.encoder import (
    LEAST_REFINED_SAMPLES,
    ROUNDING,
    SCALES,
    Calibration,
    Encoded,
    Finished,
    Refinement,
)
from gguf_bof4.encoders.gptq.layer import Workers
from gguf_bof4.encoders.gptq.model import make_skeleton
from gguf_bof4.encoders.gptq.refine.factors import with_scales
from gguf_bof4.encoders.gptq.refine.rounding import with_rounding
from gguf_bof4.encoders.gptq.refine.student import make_student
from gguf_bof4.encoders.gptq.refine.training import Budget, train
from gguf_bof4.encoders.gptq.samples import make_samples
from gguf_bof4.encoders.gptq.sources import read_files, tokens_of
from gguf_bof4.encoders.gptq.weights import Weights
from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMAT_OF_TYPE_ID, Format
from gguf_bof4.paths import atomic_path, write_text

Floats = npt.NDArray[np.float32]

RECIPE = 3
"""To be raised with every change of results: interrupted work of another recipe starts again."""

_WORK = "refine.pt"
_ABOUT = "refine.json"
_RESULT = "refined.npz"


def _about(job: Calibration, refinement: Refinement, count: int) -> dict[str, Any]:
    """Everything that the result depends on beside the layers in the work folder, as JSON."""
    return {
        "minutes": refinement.minutes if refinement.steps is None else None,
        "steps": refinement.steps,
        "parts": list(refinement.parts),
        "recipe": RECIPE,
        "samples": count,
        "length": job.settings.length,
        "threads": job.settings.threads,
        "precision": job.settings.precision,
    }


def _open_work(folder: Path, about: dict[str, Any]) -> None:
    """Keep what an interrupted refinement has left where it is of this job; remove it otherwise."""
    place = folder / _ABOUT
    known = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    if known != about:
        for name in (_WORK, _RESULT):
            (folder / name).unlink(missing_ok=True)
        write_text(place, json.dumps(about))


def _stored(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """The result of an earlier, complete refinement: scales and vectors by the names of their tensors."""
    if not path.is_file():
        return None
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _refined(before: Callable[[], Encoded], fmt: Format, scales: npt.NDArray[np.float16]) -> Encoded:
    made = before()
    return replace(made, data=with_scales(made.data, fmt, scales))


def _vector(values: Floats) -> Encoded:
    return Encoded(values[None].view(np.uint8), None)


@contextmanager
def _threads(job: Calibration) -> Iterator[Workers]:
    """Torch uses the threads of the settings within the block."""
    threads = job.settings.threads or os.cpu_count() or 1
    workers = Workers(threads, torch.device(job.settings.device))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield workers
    finally:
        torch.set_num_threads(before)
        workers.close()


def _budget(refinement: Refinement) -> Budget:
    """Of each part."""
    return Budget(refinement.minutes / len(refinement.parts), refinement.steps)


def _trained(
    job: Calibration, refinement: Refinement, weights: Weights, tokens: torch.Tensor, encoded: Mapping[str, Encoded]
) -> dict[str, npt.NDArray[Any]]:
    """What could be trained, by name: scales, float16 [rows, blocks of a row], and vectors, float32 [n]."""
    skeleton = make_skeleton(weights.config(), job.source)
    depth = len(skeleton.layers)
    with _threads(job) as workers:
        student = make_student(
            skeleton, weights, job.architecture, job.targets, encoded, job.vectors, tokens, workers,
            lambda i: job.progress(f"refine: layer {i + 1} of {depth}, unquantized", 0, 0),
        )  # fmt: skip
        if not student.matrices:
            return {}
        job.progress("refine: the first divergence", 0, 0)
        with torch.inference_mode(False), torch.enable_grad():  # upstream's converter turns gradients off
            train(student, _budget(refinement), job.folder / _WORK, partial(_report, job))
        scales = {name: matrix.stored_scales() for name, matrix in student.matrices.items()}
        return scales | {name: vector.values() for name, vector in student.vectors.items()}


def _report(job: Calibration, step: int, used: float, before: float, lowest: float) -> None:
    what = f"refine: step {step}, KL divergence of samples not trained on {before:.4f}, now {lowest:.4f}"
    job.progress(what, min(1000, int(1000 * used)), 1000)


def _with_scales(
    job: Calibration, refinement: Refinement, weights: Weights, tokens: torch.Tensor, finished: Mapping[str, Finished]
) -> dict[str, Finished]:
    """Train scales of blocks and norms on the whole model; codes, scales of sub-blocks and outliers stay as they are.

    What was best for samples that are not trained on is kept; it is never worse for these than what was given.
    """
    formats = {t.name: FORMAT_OF_TYPE_ID.get(int(t.qtype)) for t in job.targets}
    ours = {name: done.read for name, done in finished.items() if done.read is not None and formats.get(name)}
    trained = _stored(job.folder / _RESULT)
    if trained is None:
        encoded = {name: read() for name, read in ours.items()}
        trained = _trained(job, refinement, weights, tokens, encoded)
        with atomic_path(job.folder / _RESULT) as place, place.open("wb") as file:
            np.savez(file, allow_pickle=False, **trained)
    made = dict(finished)
    for name, values in trained.items():
        if (fmt := formats.get(name)) is None:
            made[name] = Finished(partial(_vector, values), None, is_refined=True)
        else:
            made[name] = replace(finished[name], read=partial(_refined, ours[name], fmt, values), is_refined=True)
    return made


def refine(
    job: Calibration, refinement: Refinement, weights: Weights, finished: Mapping[str, Finished]
) -> dict[str, Finished]:
    """Train the parts of a model that `refinement` names: what was judged to be better is kept, the rest stays.

    Args:
        finished: what gptq has done with the targets.

    Returns:
        The same, with other codes and scales, and the norms that were trained.

    Raises:
        UserError: the text has too few samples, or the disk cannot be written.
    """
    tokenizer = weights.tokenizer()
    sources = [(source, tokens_of(read_files(source), tokenizer)) for source in dict.fromkeys(job.settings.texts)]
    samples = make_samples(tokenizer, sources, max(refinement.samples, len(sources)), job.settings.length)
    if samples.count < LEAST_REFINED_SAMPLES:
        raise UserError(
            f"--refine trains on some samples and judges by others, and the calibration texts have "
            f"{samples.count} of {job.settings.length} tokens: give a longer text, or a smaller --calibration-length"
        )
    about, made = _about(job, refinement, samples.count), dict(finished)
    try:
        _open_work(job.folder, about)
        if ROUNDING in refinement.parts:
            skeleton = make_skeleton(weights.config(), job.source)
            with _threads(job) as workers:
                made = with_rounding(job, weights, skeleton, workers, samples.tokens, made, _budget(refinement), about)
        if SCALES in refinement.parts:
            made = _with_scales(job, refinement, weights, samples.tokens, made)
    except OSError as error:
        raise UserError(f"{job.folder} cannot be written: {error.strerror or error}") from error
    return made
