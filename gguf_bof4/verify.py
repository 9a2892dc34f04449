"""Checks a file: every BOF4 tensor is decoded in numpy and in C, and multiplied by the CPU backend.

Outlier lists are checked when the file is opened, and are part of the products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4 import native
from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMAT_OF_TYPE_ID, FORMATS, SCALE_BYTES
from gguf_bof4.gguf_files.model import Model, Tensor, open_model
from gguf_bof4.lists import OutlierList, list_name
from gguf_bof4.quants import REFERENCES

CHUNK_WEIGHTS = 1 << 23
"""Weights decoded at a time, which bounds memory."""

LARGEST = {32: 2.35, 256: 3.04}
"""Mean magnitude of the largest of as many Gaussian activations as are rounded with one scale, in standard deviations.

By their number: Activation.block_size.
"""


@dataclass(frozen=True)
class TensorCheck:
    """The result of checking one tensor.

    Attributes:
        product_error: largest |product - float64 product| / (|row| |activations|); outliers are part of the row.
        n_outliers: in its list.
    """

    tensor: Tensor
    product_error: float
    n_outliers: int


def product_tolerance(qtype: gguf.GGMLQuantizationType, n: int) -> float:
    """The largest |product - exact| / (|row| |activations|) that is accepted of rows of n weights.

    A step of the rounded activations is LARGEST / 127 of their standard deviation, and a rounding error is uniform over
    a step: the standard deviation of the quotient is LARGEST / 127 / sqrt(12) / sqrt(n). No file reaches 7.5 of those
    by chance, while a kernel that takes wrong weights is off by 1 / sqrt(n).

    The same holds with outliers in the row: kernels multiply them by the rounded activations or by the activations
    themselves. Where one outlier dominates a row, the error is that of one activation, at most half a step, which is
    half of the tolerance for the largest of the Gaussian activations used here.

    Args:
        qtype: one of this project's types.
        n: weights in a row.
    """
    largest = LARGEST[FORMAT_OF_TYPE_ID[int(qtype)].activation.block_size]
    return 7.5 * largest / 127 / math.sqrt(12 * n)


def chunks(tensor: Tensor) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The index of the first row, and encoded rows, uint8 [rows, bytes of a row], of one run of rows after another."""
    step = max(1, CHUNK_WEIGHTS // tensor.shape[-1])
    for first in range(0, tensor.n_rows, step):
        yield first, tensor.read_rows(first, min(step, tensor.n_rows - first))


def _first_bad_block(rows: npt.NDArray[np.uint8], block_bytes: int) -> int:
    scales = rows.reshape(-1, block_bytes)[:, :SCALE_BYTES].copy().view(np.float16)[:, 0]
    return int(np.flatnonzero(~np.isfinite(scales))[0])


def _check_zeros(tensor: Tensor, first: int, decoded: npt.NDArray[np.float32], outliers: OutlierList) -> None:
    """A weight that is an outlier is 0 in its block."""
    in_blocks = decoded[outliers.rows, outliers.columns]
    if in_blocks.any():
        at = int(np.flatnonzero(in_blocks)[0])
        raise UserError(
            f"{tensor.path}: tensor {tensor.name}: the weight at row {first + outliers.rows[at]}, column "
            f"{outliers.columns[at]} is in {list_name(tensor.name)}, but not 0 in its block: the list belongs to other "
            "weights, or the file is damaged; convert it again"
        )


def check_tensor(tensor: Tensor, outliers: OutlierList | None = None) -> TensorCheck:
    """Decode in numpy and in C, compare the bits, and check products against float64.

    Args:
        outliers: the list of the tensor, where it has one.

    Raises:
        UserError: a scale is NaN or infinite, the two decoders differ, a weight is an outlier and not 0 in its block,
            or a product is wrong.
    """
    qtype = gguf.GGMLQuantizationType(int(tensor.qtype))
    reference = REFERENCES[int(qtype)]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    generator = np.random.default_rng(0)
    activations = generator.standard_normal((2, tensor.shape[-1]), dtype=np.float32)
    worst = 0.0
    for first, rows in chunks(tensor):
        where = f"{tensor.path}: tensor {tensor.name}"
        decoded = reference.dequantize(rows)
        if not np.isfinite(decoded).all():
            block = _first_bad_block(rows, block_bytes)
            row, column = divmod(block * block_size, tensor.shape[-1])
            raise UserError(
                f"{where}: the scale of the block at row {first + row}, column {column} is NaN or infinite: "
                "the file is damaged, convert it again"
            )
        native.validate(rows, qtype)
        in_c = native.dequantize(rows, qtype)
        if not np.array_equal(decoded.view(np.uint32), in_c.view(np.uint32)):
            index = int(np.flatnonzero(decoded.view(np.uint32).ravel() != in_c.view(np.uint32).ravel())[0])
            row, column = divmod(index, tensor.shape[-1])
            raise UserError(
                f"{where}: row {first + row}, column {column} decodes to {decoded.ravel()[index]!r} in Python and "
                f"{in_c.ravel()[index]!r} in C: this library and this package do not belong together"
            )
        part = None if outliers is None else outliers.part(first, len(rows))
        products = native.mul_mat(rows, qtype, activations, outliers=part)
        if part is not None:
            _check_zeros(tensor, first, decoded, part)
            part.add_to(decoded)
        inputs, weights = activations.astype(np.float64), decoded.astype(np.float64)  # float32 overflows in squares
        exact = inputs @ weights.T
        norms = np.outer(np.linalg.norm(inputs, axis=1), np.linalg.norm(weights, axis=1))
        errors = np.abs(products - exact) / np.where(norms > 0, norms, 1)
        worst = float(np.maximum(worst, errors.max()))  # max() would lose a NaN
    tolerance = product_tolerance(qtype, tensor.shape[-1])
    if not worst <= tolerance:
        raise UserError(
            f"{tensor.path}: tensor {tensor.name}: a product is off by {worst:.2g} of the norms of its factors "
            f"(at most {tolerance:.2g} is rounding): the kernels of this build are wrong, please report it"
        )
    return TensorCheck(tensor, worst, 0 if outliers is None else outliers.entries.size)


def bof4_tensors(model: Model) -> list[Tensor]:
    """The tensors of this project's types, in file order."""
    return [t for t in model.tensors if int(t.qtype) in REFERENCES]


def check_metadata(model: Model) -> None:
    """Check that a file with tensors of this project's types has their version and levels in its metadata.

    Raises:
        UserError: a key is missing. (Wrong values are refused when the file is opened.)
    """
    used = {int(t.qtype) for t in model.tensors}
    for fmt in FORMATS:
        if fmt.type_id not in used:
            continue
        for key in ("bof4.version", fmt.levels_key):
            if model.value(key) is None:
                raise UserError(
                    f"{model.path} holds {fmt.name} tensors but no {key}: it was not written by `bof4 convert`, "
                    "or it is damaged"
                )


def verify(source: Path | Model) -> Iterator[TensorCheck]:
    """Check a file, open or not, tensor by tensor.

    Raises:
        UserError: at the first thing that is wrong; the message names it.
    """
    model = source if isinstance(source, Model) else open_model(source)
    check_metadata(model)
    for tensor in bof4_tensors(model):
        yield check_tensor(tensor, model.outliers(tensor))
