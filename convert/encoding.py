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
from gguf_bof4.encoders.encoder import too_large_message
from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.lists import OutlierList, decode
from gguf_bof4.native import BlockEncoder
from gguf_bof4.outlier_choice import Quantile, choose
from gguf_bof4.weight_errors import AT_ONCE, ErrorSums

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
        errors: what encoding in blocks has cost is added here.
    """

    target: TensorType
    encoder: BlockEncoder = BlockEncoder.SEARCH
    planned: PlannedList | None = None
    outliers: OutlierList | None = None
    threads: int = 0
    importance: npt.NDArray[np.float32] | None = None
    errors: ErrorSums | None = None


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


def _too_large(source: Source, first_row: int, index: int, target: TensorType) -> UserError:
    where = _position(source, first_row, index)
    return UserError(too_large_message(source.path, source.name, where, target))


def as_floats(rows: npt.NDArray[Any], origin: TensorType) -> npt.NDArray[np.float32]:
    """Rows of F32, F16 or BF16 as float32 [rows, n], without a copy where possible.

    Args:
        rows: uint8 [rows, bytes of a row], or a view of them as elements (BF16: uint16).
    """
    elements = rows.view(_ELEMENTS[origin])
    if origin == TensorType.BF16:
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.astype(np.float32, copy=False)


def _select(floats: npt.NDArray[Any], origin: TensorType, job: Job) -> OutlierList | None:
    """Add the outliers of a run of rows to the planned list, and return them; None where no list is planned."""
    if job.planned is None or job.planned.rule is None:
        return None
    rule = job.planned.rule
    if isinstance(rule, Quantile):
        found = native.select_outliers_raw(floats, origin, rule.value, job.threads)
    else:
        weights = as_floats(floats, origin)
        found = choose(weights, job.target, rule.count(weights.size), job.importance, job.encoder, job.threads)
    job.planned.add(found)
    return found


def add_errors(
    errors: ErrorSums,
    encoded: Bytes,
    target: TensorType,
    rows: Bytes,
    origin: TensorType,
    outliers: OutlierList | None,
    threads: int,
) -> None:
    """Compare encoded rows with the floats that they were made from.

    Args:
        rows: uint8 [rows, bytes of a row], of F32, F16 or BF16 as `origin` says.
        outliers: of these rows, where the blocks hold zero.
    """
    exact = rows.view(_ELEMENTS[origin])
    step = max(1, AT_ONCE // exact.shape[-1])
    dequantize = partial(native.dequantize, threads=threads)
    for first in range(0, len(encoded), step):
        part = None if outliers is None else outliers.part(first, len(encoded[first : first + step]))
        floats = exact[first : first + step]
        decoded = decode(encoded[first : first + step], target, part, dequantize)
        errors.add(decoded, as_floats(floats, origin))


def _encode_floats(source: Source, first_row: int, rows: Bytes, origin: TensorType, job: Job) -> Bytes:
    floats = rows.view(_ELEMENTS[origin])
    target = job.target
    if origin == target:
        if (bad := _first_nonfinite(floats, origin)) is not None:
            raise _not_finite(source, first_row, bad)
        return rows
    try:
        found = _select(floats, origin, job)
        encoded = native.quantize_raw(floats, origin, target, job.importance, job.threads, job.encoder, found)
    except native.NonFiniteWeightError as error:
        row, column = error.position
        raise _not_finite(source, first_row, row * source.shape[-1] + column) from error
    except TooLargeWeightError as error:
        row, column = error.position
        raise _too_large(source, first_row, row * source.shape[-1] + column, target) from error
    if job.errors is not None and gguf.GGML_QUANT_SIZES[target][0] > 1:
        add_errors(job.errors, encoded, target, rows, origin, found, job.threads)
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
    whole = replace(job, target=TensorType.F32, planned=None, errors=None)
    rows = np.concatenate([run.view(np.float32) for run in encode(source, whole)])
    return rows.reshape(-1, source.shape[-1])
