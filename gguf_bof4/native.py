"""The library of the patched llama.cpp, called from Python through cffi.

`bof4 build` makes it; the declarations are those of the headers in ggml_patch/src/bindings. A call that
the library refuses raises NativeError with its message.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import IntEnum
from pathlib import Path
from typing import Any

import cffi
import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.formats import FP16_OVERFLOW
from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.gguf_files.header import MOST_DIMENSIONS
from gguf_bof4.lists import OutlierList, from_counts, refuse_large_outliers, threshold, without

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
TensorType = gguf.GGMLQuantizationType

_HEADERS = ("bof4-bindings.h", "bof4-timing.h", "bof4-writer.h")
_LIBRARY_NAMES = {"darwin": "libbof4.dylib", "win32": "bof4.dll"}
_BF16 = gguf.GGMLQuantizationType.BF16


class BlockEncoder(IntEnum):
    """How the native library finds the scales and codes of blocks: enum bof4_encoder of bof4-bindings.h."""

    ABSMAX = 0
    """The paper's: the scale is the maximum of its weights."""
    SEARCH = 1
    """Scales of least squared error, weighted by the importance matrix where there is one."""


class NativeError(UserError):
    """The native library refused a call; the message says why."""


class NonFiniteWeightError(ValueError):
    """A weight is NaN or infinite.

    Attributes:
        position: index of the first such weight, one number a dimension, rows before columns.
        value: the weight.
    """

    def __init__(self, position: tuple[int, ...], value: float) -> None:
        super().__init__(f"weight {list(position)} is {value}")
        self.position = position
        self.value = value


@functools.cache
def library() -> tuple[cffi.FFI, Any]:
    """The loaded library, and the cffi declarations of its functions.

    Raises:
        gguf_bof4.ggml_patch.build.NotBuiltError: `bof4 build` has not been run.
    """
    ffi = cffi.FFI()
    for header in _HEADERS:
        text = (SOURCES / "bindings" / header).read_text()
        ffi.cdef(re.sub(r"//.*", "", text).replace("BOF4_API ", ""))
    path = installed_bin() / _LIBRARY_NAMES.get(sys.platform, "libbof4.so")
    return ffi, ffi.dlopen(str(path))


def _string(characters: Any) -> str:
    ffi, _ = library()
    found = ffi.string(characters)
    return found.decode(errors="replace") if isinstance(found, bytes) else found


def _checked(result: int) -> int:
    _, lib = library()
    if result == lib.BOF4_FAILED:
        raise NativeError(_string(lib.bof4_last_error()))
    return result


def instruction_set() -> str:
    """The instruction set of the CPU backend, or of its variant that is loaded, like "avx512-vnni".

    Raises:
        NativeError: no variant of the CPU backend is beside the library that this processor can run.
    """
    ffi, lib = library()
    found = lib.bof4_instruction_set()
    if found == ffi.NULL:
        raise NativeError(_string(lib.bof4_last_error()))
    return _string(found)


def _address(array: npt.NDArray[Any]) -> Any:
    ffi, _ = library()
    return ffi.cast("void *", array.ctypes.data)


def _floats(array: npt.NDArray[np.float32]) -> Any:
    ffi, _ = library()
    return ffi.cast("float *", array.ctypes.data)


def _ints(array: npt.NDArray[np.int32]) -> Any:
    ffi, _ = library()
    return ffi.cast("int32_t *", array.ctypes.data)


def source_of(weights: Any) -> tuple[npt.NDArray[Any], TensorType]:
    """Weights as a contiguous array and the ggml type of its elements, without a copy where possible.

    numpy float32 and float16, torch float32, float16 and bfloat16 stay as they are; other floats
    become float32.
    """
    if hasattr(weights, "detach"):
        import torch

        weights = weights.detach().cpu().contiguous()
        if weights.dtype == torch.bfloat16:
            return weights.view(torch.uint16).numpy(), _BF16
        weights = weights.numpy()
    array = np.asarray(weights)
    if array.dtype == np.float16:
        return np.ascontiguousarray(array), gguf.GGMLQuantizationType.F16
    return np.ascontiguousarray(array, dtype=np.float32), gguf.GGMLQuantizationType.F32


def row_bytes(qtype: TensorType, n_per_row: int) -> int:
    """Bytes of a row of `n_per_row` weights.

    Raises:
        NativeError: the row does not divide into blocks of the type.
    """
    _, lib = library()
    return _checked(int(lib.bof4_row_size(int(qtype), n_per_row)))


def quantize(
    weights: Any,
    qtype: TensorType,
    imatrix: Floats | None = None,
    threads: int = 0,
    encoder: BlockEncoder = BlockEncoder.ABSMAX,
    outliers: OutlierList | None = None,
) -> Bytes:
    """Encode weights with the patched ggml.

    Args:
        weights: [..., n] floats of numpy or torch; bfloat16 as a torch tensor only.
        qtype: any type that ggml can encode.
        imatrix: float32 [n], importance of each column, 0 or more.
        threads: 0 for all cores.
        encoder: of a BOF4 type; other types have one encoder only.
        outliers: weights for which the blocks hold zero; rows are counted over all dimensions but the last.

    Returns:
        uint8 [..., bytes of a row].

    Raises:
        NonFiniteWeightError: a weight is NaN or infinite.
        TooLargeWeightError: one is too large for a scale of the type.
        NativeError: the type cannot be encoded, rows do not divide into its blocks, or an importance is NaN, infinite
            or negative.
    """
    array, source = source_of(weights)
    return quantize_raw(array, source, qtype, imatrix, threads, encoder, outliers)


def quantize_raw(
    array: npt.NDArray[Any],
    source: TensorType,
    qtype: TensorType,
    imatrix: Floats | None = None,
    threads: int = 0,
    encoder: BlockEncoder = BlockEncoder.ABSMAX,
    outliers: OutlierList | None = None,
) -> Bytes:
    """`quantize` for an array whose elements are F32, F16 or BF16 (as uint16) as `source` says."""
    ffi, lib = library()
    n = array.shape[-1]
    out = np.empty((*array.shape[:-1], row_bytes(qtype, n)), dtype=np.uint8)
    if imatrix is not None and imatrix.shape != (n,):
        raise NativeError(f"importance of shape {imatrix.shape} does not belong to rows of {n} weights")
    kept = None if imatrix is None else np.ascontiguousarray(imatrix, dtype=np.float32)  # alive during the call
    importance = ffi.NULL if kept is None else _floats(kept)
    pointers, entries = ffi.NULL, ffi.NULL
    if outliers is not None:
        if outliers.n_rows != array.size // n:
            raise NativeError(f"a list of {outliers.n_rows} rows does not belong to {array.size // n} rows of weights")
        pointers, entries = _ints(outliers.row_pointers), _ints(outliers.entries)
    first_bad = _checked(
        int(
            lib.bof4_quantize(
                int(qtype), int(source), _address(array), _address(out), array.size // n, n,
                encoder, importance, pointers, entries, threads,
            )
        )
    )  # fmt: skip
    if first_bad >= 0:
        value = array.reshape(-1)[first_bad : first_bad + 1]
        if source == _BF16:
            value = (value.astype(np.uint32) << 16).view(np.float32)
        position = tuple(int(i) for i in np.unravel_index(first_bad, array.shape))
        if np.isfinite(value[0]):
            raise TooLargeWeightError(position)
        raise NonFiniteWeightError(position, float(value[0]))
    return out


PANEL = 64
"""Columns of a panel: `gptq` takes n x n matrices as float32 [n / 64, n, 64]."""


def gptq(
    weights: Floats,
    qtype: TensorType,
    order: npt.NDArray[np.int32],
    feedback: Floats,
    curvature: Floats,
    hessian: Floats | None = None,
    sweeps: int = 0,
    outliers: OutlierList | None = None,
    threads: int = 0,
) -> tuple[Bytes, Floats, OutlierList | None, tuple[float, float]]:
    """Encode rows column by column, each correcting the errors of those before it (Frantar et al., GPTQ).

    encoders.gptq.factor makes the matrices.

    Args:
        weights: float32 [rows, n].
        order: int32 [n], the column that is processed k-th; the columns of a block are consecutive.
        feedback: float32 [n / 64, n, 64], strictly upper triangular, in the order of processing.
        curvature: float32 [n], positive.
        hessian: float32 [n / 64, n, 64], the matrix whose factors are `feedback` and `curvature`; needed for sweeps.
        sweeps: rounds of coordinate descent over codes and scales that follow.
        outliers: weights for which the blocks hold zero.
        threads: 0 for all cores.

    Returns:
        uint8 [rows, bytes of a row], float32 [rows, n] decoded with outliers, the outliers with the values that
        compensation gave them, and the loss after the columns and after the sweeps.

    Raises:
        TooLargeWeightError: a weight is too large for a scale of the type, or for the BF16 of an outlier.
        NativeError: gptq does not encode the type, rows do not divide into blocks, or `order` separates the columns of
            a block.
    """
    ffi, lib = library()
    rows, n = weights.shape
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    encoded = np.empty((rows, row_bytes(qtype, n)), dtype=np.uint8)
    decoded = np.empty((rows, n), dtype=np.float32)
    for matrix in (feedback, *(() if hessian is None else (hessian,))):
        if matrix.shape != (n // PANEL, n, PANEL) or not matrix.flags.c_contiguous:
            raise NativeError(f"a matrix of shape {matrix.shape} is no {n} x {n} matrix in panels")
    if sweeps and hessian is None:
        raise NativeError("sweeps need the Hessian")
    pointers, entries, found = ffi.NULL, ffi.NULL, None
    if outliers is not None:
        if outliers.n_rows != rows:
            raise NativeError(f"a list of {outliers.n_rows} rows does not belong to {rows} rows of weights")
        found = OutlierList(outliers.row_pointers, outliers.entries.copy())
        pointers, entries = _ints(found.row_pointers), _ints(found.entries)
    _refuse_large(weights if outliers is None else without(weights, outliers), FP16_OVERFLOW)
    losses = ffi.new("double[2]")
    _checked(
        lib.bof4_gptq(
            int(qtype), _floats(weights), rows, n, _ints(np.ascontiguousarray(order, dtype=np.int32)),
            _floats(feedback), _floats(np.ascontiguousarray(curvature, dtype=np.float32)),
            ffi.NULL if hessian is None else _floats(hessian), sweeps, pointers, entries,
            _address(encoded), _floats(decoded), losses, threads,
        )
    )  # fmt: skip
    _refuse_large(decoded, np.inf)  # compensation can make weights larger
    return encoded, decoded, found, (float(losses[0]), float(losses[1]))


def _refuse_large(weights: Floats, limit: float) -> None:
    """Raise TooLargeWeightError for the first weight [row, column] whose magnitude is not below the limit."""
    if not (good := np.abs(weights) < np.float32(limit)).all():
        row, column = np.unravel_index(int(good.argmin()), good.shape)
        raise TooLargeWeightError((int(row), int(column)))


def select_outliers(weights: Any, quantile: float, threads: int = 0) -> OutlierList:
    """The outliers that lists.select finds, on several threads.

    Args:
        weights: [..., n] floats of numpy or torch, n a multiple of 64.
        quantile: of the distribution of block maxima; weights beyond it are outliers (paper, eq. 9).
        threads: 0 for all cores.

    Raises:
        ValueError: the quantile is not between 0 and 1.
        TooLargeWeightError: an outlier is too large for BF16.
        NativeError: rows are no multiple of 64, or longer than 65536.
    """
    array, source = source_of(weights)
    return select_outliers_raw(array, source, quantile, threads)


def select_outliers_raw(array: npt.NDArray[Any], source: TensorType, quantile: float, threads: int = 0) -> OutlierList:
    """`select_outliers` for an array whose elements are F32, F16 or BF16 (as uint16) as `source` says."""
    ffi, lib = library()
    n = array.shape[-1]
    rows = array.size // n
    counts = np.zeros(rows, dtype=np.int32)
    limit = threshold(quantile)
    _checked(lib.bof4_select_outliers(int(source), _address(array), rows, n, limit, _ints(counts), ffi.NULL, threads))
    entries = np.empty(int(counts.sum(dtype=np.int64)), dtype=np.int32)
    _checked(
        lib.bof4_select_outliers(int(source), _address(array), rows, n, limit, _ints(counts), _ints(entries), threads)
    )
    found = from_counts(counts, entries)
    refuse_large_outliers(found, array.shape)
    return found


def dequantize(data: Bytes, qtype: TensorType, threads: int = 0) -> Floats:
    """Decode uint8 [..., bytes of a row] into float32 [..., n] with the patched ggml.

    Raises:
        NativeError: the type cannot be decoded.
    """
    _, lib = library()
    data = np.ascontiguousarray(data).view(np.uint8)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    n = data.shape[-1] // block_bytes * block_size
    out = np.empty((*data.shape[:-1], n), dtype=np.float32)
    rows = out.size // n
    _checked(int(lib.bof4_dequantize(int(qtype), _address(data), _floats(out), rows, n, threads)))
    return out


def validate(data: Bytes, qtype: TensorType) -> None:
    """Refuse encoded data that ggml refuses under --check-tensors.

    Raises:
        NativeError: a block is not valid.
    """
    _, lib = library()
    data = np.ascontiguousarray(data)
    _checked(int(lib.bof4_validate(int(qtype), _address(data), data.nbytes)))


def vec_dot(row: Bytes, qtype: TensorType, activations: Floats) -> float:
    """Product of one encoded row with float32 [n] activations, by the CPU backend's vec_dot.

    The activations are quantized first, to the type's `Format.activation`.

    Raises:
        NativeError: the row is not one of n weights.
    """
    ffi, lib = library()
    row = np.ascontiguousarray(row)
    activations = np.ascontiguousarray(activations, dtype=np.float32)
    out = ffi.new("float *")
    if row.nbytes != row_bytes(qtype, activations.size):
        raise NativeError(f"{row.nbytes} bytes are not a row of {activations.size} weights")
    _checked(int(lib.bof4_vec_dot(int(qtype), _address(row), _floats(activations), activations.size, out)))
    return float(out[0])


def mul_mat(
    weights: Bytes, qtype: TensorType, activations: Floats, threads: int = 0, outliers: OutlierList | None = None
) -> Floats:
    """One ggml_mul_mat on the CPU backend, outliers included.

    Args:
        weights: uint8 [rows, bytes of a row].
        activations: float32 [m, n].

    Returns:
        float32 [m, rows], the activations times the transposed weights.

    Raises:
        NativeError: shapes do not fit, or the list is not valid.
    """
    ffi, lib = library()
    weights = np.ascontiguousarray(weights)
    activations = np.ascontiguousarray(activations, dtype=np.float32)
    (rows, nbytes), (m, n) = weights.shape, activations.shape
    if nbytes != row_bytes(qtype, n):
        raise NativeError(f"rows of {nbytes} bytes are not rows of {n} weights")
    packed = None if outliers is None else outliers.packed()
    out = np.empty((m, rows), dtype=np.float32)
    _checked(
        int(
            lib.bof4_mul_mat(
                int(qtype), _address(weights), rows, n,
                ffi.NULL if packed is None else _ints(packed), 0 if packed is None else packed.size,
                _floats(activations), m, _floats(out), threads,
            )
        )
    )  # fmt: skip
    return out


def allows_quantization(architecture: str, name: str, shape: Sequence[int]) -> bool:
    """Would llama-quantize quantize this tensor? `shape` has 1 to 4 dimensions, rows before columns, as numpy.

    Raises:
        NativeError: llama.cpp does not know the architecture, or the shape has another number of dimensions.
    """
    if not 1 <= len(shape) <= MOST_DIMENSIONS:
        # ggml would abort the process
        raise NativeError(f"a tensor of shape {tuple(shape)} has not 1 to {MOST_DIMENSIONS} dimensions")
    ffi, lib = library()
    ne = ffi.new("int64_t[]", list(reversed([int(n) for n in shape])))
    return bool(_checked(lib.bof4_allows_quantization(architecture.encode(), name.encode(), len(shape), ne)))


class Writer(AbstractContextManager["Writer"]):
    """A model that writes text by llama.cpp on the CPU: samples of its own distribution, many sequences at once.

    Args:
        path: a GGUF file, the first of its parts.
        sequences: written at once.
        length: tokens of a text at most, the start token included.
        seed: the same seed gives the same text, with any number of threads.
        threads: 0 for all cores.

    Raises:
        NativeError: llama.cpp cannot load the model, it has no start token, or it cannot write text.
    """

    def __init__(self, path: Path, sequences: int, length: int, seed: int, threads: int = 0) -> None:
        ffi, lib = library()
        self._writer = lib.bof4_writer_new(str(path).encode(), sequences, length, seed, threads)
        if self._writer == ffi.NULL:
            raise NativeError(_string(lib.bof4_last_error()))
        self._tokens = np.empty(sequences, dtype=np.int32)
        self._ended = np.empty(sequences, dtype=np.int32)

    def __exit__(self, *_: object) -> None:
        lib = library()[1]
        lib.bof4_writer_free(self._writer)

    def visible_start(self) -> int | None:
        """The start token; None where the tokenizer puts it in front of every text anyway."""
        _, lib = library()
        token = int(lib.bof4_writer_visible_start(self._writer))
        return None if token < 0 else token

    def next(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """The next token of each sequence, int32 [sequences], and whether its text ends with it, bool [sequences].

        Raises:
            NativeError: the model gives no numbers.
        """
        _, lib = library()
        _checked(int(lib.bof4_writer_next(self._writer, _ints(self._tokens), _ints(self._ended))))
        return self._tokens.copy(), self._ended != 0

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special ones by their names; bytes that are no UTF-8 are replaced."""
        ffi, lib = library()
        array = np.array(tokens, dtype=np.int32)
        needed = -int(lib.bof4_writer_text(self._writer, _ints(array), array.size, ffi.NULL, 0))
        if needed <= 0:
            return ""
        buffer = ffi.new("char[]", needed)
        lib.bof4_writer_text(self._writer, _ints(array), array.size, buffer, needed)
        return bytes(ffi.buffer(buffer)).decode(errors="replace")
