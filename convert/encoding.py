"""Encodes the rows of a source in another type, a run of rows at a time, on all cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as TensorType

from gguf_bof4 import native
from gguf_bof4.convert.output_lists import PlannedList
from gguf_bof4.convert.policy import FLOATS
from gguf_bof4.convert.sources import Bytes, Source, n_rows
from gguf_bof4.errors import UserError
from gguf_bof4.lists import OutlierList, decode
from gguf_bof4.native import BlockEncoder

RUN_WEIGHTS = 1 << 23
"""Weights in a run: 32 MiB of floats, some milliseconds of work for many cores."""

_ELEMENTS = {TensorType.F32: np.float32, TensorType.F16: np.float16, TensorType.BF16: np.uint16}
_EXPONENTS = {TensorType.F32: 0x7F800000, TensorType.F16: 0x7C00, TensorType.BF16: 0x7F80}


@dataclass(frozen=True)
class Job:
    """How a tensor is encoded.

    Attributes:
        target: its type in the output.
        encoder: of this project's types.
        planned: its list in the output, filled here.
        outliers: its list in the source.
        threads: 0 means all cores.
        importance: of each column, float32 [n], or of each column of each matrix (expert), [matrices, n]; None: the
            same for all.
    """

    target: TensorType
    encoder: BlockEncoder = BlockEncoder.SEARCH
    planned: PlannedList | None = None
    outliers: OutlierList | None = None
    threads: int = 0
    importance: npt.NDArray[np.float32] | None = None


def nbytes(shape: tuple[int, ...], qtype: TensorType) -> int:
    """Bytes of a tensor of this shape in `qtype`."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    return int(np.prod(shape, dtype=np.int64)) // int(block_size) * int(block_bytes)


def _first_nonfinite(rows: npt.NDArray[Any], qtype: TensorType) -> int | None:
    """Index of the first NaN or infinity, None without one; from the bits, so that subnormals stay as they are."""
    bits: npt.NDArray[Any] = rows.reshape(-1).view(np.uint32 if qtype == TensorType.F32 else np.uint16)
    mask = _EXPONENTS[qtype]
    bad = (bits & mask) == mask
    return int(bad.argmax()) if bad.any() else None


def _position(source: Source, first_row: int, column_index: int) -> list[int]:
    row, column = divmod(column_index, source.shape[-1])
    return [*(int(i) for i in np.unravel_index(first_row + row, source.shape[:-1])), column]


def _not_finite(source: Source, first_row: int, index: int) -> UserError:
    where = _position(source, first_row, index)
    return UserError(
        f"{source.path}: tensor {source.name} has a weight that is NaN or infinite, at {where} (rows before "
        "columns). The model is damaged: get it again, or repair that weight"
    )


def _select(
    source: Source, first_row: int, floats: npt.NDArray[Any], origin: TensorType, job: Job
) -> OutlierList | None:
    """Add the outliers of a run of rows to the planned list, and return them; None where no list is planned."""
    if job.planned is None or job.planned.quantile is None:
        return None
    found = native.select_outliers_raw(floats, origin, job.planned.quantile, job.threads)
    if not (finite := np.isfinite(found.values)).all():
        at = int(finite.argmin())
        where = _position(source, first_row + int(found.rows[at]), int(found.columns[at]))
        raise UserError(
            f"{source.path}: tensor {source.name} has a weight at {where} that is too large for a BF16 of an outlier "
            f"list; give the tensor no list: --opq '^{source.name}$=off'"
        )
    job.planned.add(found)
    return found


def _first_overflow(encoded: Bytes, floats: npt.NDArray[Any], origin: TensorType, target: TensorType) -> int | None:
    """Index of the first weight that the target cannot hold; None where it holds all.

    Args:
        encoded: `floats`, finite numbers of the type `origin`, in the type `target`.
    """
    if target in FLOATS:
        return _first_nonfinite(encoded, target)
    if target != TensorType.Q8_0:
        return None
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[target]
    scales = encoded.reshape(-1, block_bytes)[:, :2].copy().view(np.float16)
    if np.isfinite(scales).all():
        return None
    block = int(np.isinf(scales).reshape(-1).argmax())
    weights = native.dequantize(floats.reshape(-1).view(np.uint8), origin).reshape(-1, block_size)[block]
    return block * block_size + int(np.abs(weights).argmax())


def _too_large(source: Source, first_row: int, index: int, target: TensorType) -> UserError:
    where = _position(source, first_row, index)
    wider = "f32" if target == TensorType.BF16 else "bf16"
    all_of_it = " (--type BF16 for all matrices)" if target != TensorType.BF16 else ""
    return UserError(
        f"{source.path}: tensor {source.name} has a weight at {where} that is too large for {target.name}; "
        f"give it {wider.upper()}: --tensor-type '^{source.name}$={wider}'{all_of_it}"
    )


def _encode_floats(source: Source, first_row: int, rows: Bytes, origin: TensorType, job: Job) -> Bytes:
    floats = rows.view(_ELEMENTS[origin])
    target = job.target
    if origin == target:
        if (bad := _first_nonfinite(floats, origin)) is not None:
            raise _not_finite(source, first_row, bad)
        return rows
    found = _select(source, first_row, floats, origin, job)
    try:
        encoded = native.quantize_raw(
            floats, origin, target, job.importance, job.threads, job.encoder, found
        )
    except native.NonFiniteWeightError as error:
        row, column = error.position
        raise _not_finite(source, first_row, row * source.shape[-1] + column) from error
    if (bad := _first_overflow(encoded, floats, origin, target)) is not None:
        raise _too_large(source, first_row, bad, target)
    return encoded


def _runs(source: Source, job: Job) -> Iterator[tuple[int, int, Job]]:
    """First row, number of rows and job of each run; no run has rows of two matrices of different importance."""
    matrices = [None] if job.importance is None else list(np.atleast_2d(job.importance))
    rows = n_rows(source) // len(matrices)
    step = max(1, RUN_WEIGHTS // source.shape[-1])
    for i, importance in enumerate(matrices):
        of_matrix = replace(job, importance=importance)
        for first in range(i * rows, (i + 1) * rows, step):
            yield first, min(step, (i + 1) * rows - first), of_matrix


def encode(source: Source, job: Job) -> Iterator[Bytes]:
    """Encode the rows of a source, and fill the planned list.

    A tensor that has the target type is copied, and so is its list; one of another block type is decoded first,
    outliers included.

    Yields:
        uint8 [rows, bytes of a row] of one run after another.

    Raises:
        UserError: the source cannot be read, or a weight is NaN, infinite or too large for the target; the
            tensor and the place are named.
    """
    for first, count, run in _runs(source, job):
        try:
            rows = source.read_rows(first, count)
        except OSError as error:
            raise UserError(f"{source.path}: tensor {source.name} cannot be read: {error.strerror}") from error
        if source.qtype in FLOATS:
            yield _encode_floats(source, first, rows, source.qtype, run)
            continue
        if gguf.GGML_QUANT_SIZES[source.qtype][0] == 1:
            yield rows  # integers or doubles, which always keep their type
            continue
        copied = source.qtype == job.target
        part = None if job.outliers is None else job.outliers.part(first, len(rows))
        dequantize = partial(native.dequantize, threads=job.threads)
        try:
            floats = decode(rows, source.qtype, None if copied else part, dequantize)
        except native.NativeError as error:
            raise UserError(f"{source.path}: tensor {source.name} ({source.qtype.name}): {error}") from error
        if not copied:
            yield _encode_floats(source, first, floats.view(np.uint8), TensorType.F32, run)
            continue
        if (bad := _first_nonfinite(floats, TensorType.F32)) is not None:
            raise _not_finite(source, first, bad)
        if part is not None and job.planned is not None:
            job.planned.add(part)
        yield rows


def read_floats(source: Source, job: Job) -> npt.NDArray[np.float32]:
    """Decode a source: float32 [rows, n], its outliers included.

    Raises:
        UserError: the source cannot be read, or a weight is NaN or infinite.
    """
    whole = replace(job, target=TensorType.F32, planned=None)
    rows = np.concatenate([run.view(np.float32) for run in encode(source, whole)])
    return rows.reshape(-1, source.shape[-1])
