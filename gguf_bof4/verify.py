"""Check a file: every BOF4 tensor decoded twice, in numpy and in C, and multiplied through the CPU backend.

Outlier lists are checked when the file is opened, and take part in the products.
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
from gguf_bof4.formats import BOF4_K, BOF4_S, FORMATS
from gguf_bof4.gguf_files.model import Model, Tensor, open_model
from gguf_bof4.lists import OutlierList, list_name
from gguf_bof4.quants import REFERENCES

CHUNK_WEIGHTS = 1 << 23
"""Weights decoded at a time: memory stays small whatever the tensor."""

LARGEST = {BOF4_S.type_id: 2.35, BOF4_K.type_id: 3.04}
"""Mean magnitude of the largest of those Gaussian activations that get one scale, in standard deviations.

They are rounded to Q8_0, 32 under a scale, to meet BOF4_S, and to Q8_K, 256 under a scale, to meet BOF4_K.
"""


@dataclass(frozen=True)
class TensorCheck:
    """What was found of one tensor.

    Attributes:
        product_error: largest |product - float64 product| / (|row| |activations|); outliers are part of the row.
        n_outliers: in its list.
    """

    tensor: Tensor
    product_error: float
    n_outliers: int


def product_tolerance(qtype: gguf.GGMLQuantizationType, n: int) -> float:
    """Largest |product - exact| / (|row| |activations|) that rows of n weights of one of our types are allowed.

    A step of the rounded activations is LARGEST / 127 of their standard deviation, and an error is uniform over a
    step: that explains a standard deviation of LARGEST / 127 / sqrt(12) / sqrt(n). 7.5 of those are not reached by
    chance in any file, and a kernel that mixes up weights misses by 1 / sqrt(n).

    That holds with outliers in the row, too: kernels multiply them with the same rounded activations, or with the
    activations themselves. Where one outlier is most of a row, the error is that of one activation, at most half a
    step, which is half of the tolerance for the largest of the Gaussian activations used here.
    """
    return 7.5 * LARGEST[int(qtype)] / 127 / math.sqrt(12 * n)


def chunks(tensor: Tensor) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Runs of encoded rows of a tensor, each with the number of its first row."""
    step = max(1, CHUNK_WEIGHTS // tensor.shape[-1])
    for first in range(0, tensor.n_rows, step):
        yield first, tensor.read_rows(first, min(step, tensor.n_rows - first))


def _first_bad_block(rows: npt.NDArray[np.uint8], block_bytes: int) -> int:
    scales = rows.reshape(-1, block_bytes)[:, :2].copy().view(np.float16)[:, 0]
    return int(np.flatnonzero(~np.isfinite(scales))[0])


def _check_zeros(tensor: Tensor, first: int, decoded: npt.NDArray[np.float32], outliers: OutlierList) -> None:
    """Below an outlier, the format has the level 0."""
    below = decoded[outliers.rows, outliers.columns]
    if below.any():
        at = int(np.flatnonzero(below)[0])
        raise UserError(
            f"{tensor.path}: tensor {tensor.name}: the weight at row {first + outliers.rows[at]}, column "
            f"{outliers.columns[at]} is in {list_name(tensor.name)}, but not 0 in its block: the list belongs to other "
            "weights, or the file is damaged; convert it again"
        )


def check_tensor(tensor: Tensor, outliers: OutlierList | None = None) -> TensorCheck:
    """Decode in numpy and in C and demand equal bits; check products against float64.

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
        exact = activations.astype(np.float64) @ decoded.astype(np.float64).T
        norms = np.outer(np.linalg.norm(activations, axis=1), np.linalg.norm(decoded, axis=1))
        errors = np.abs(products - exact) / np.where(norms > 0, norms, 1)
        worst = max(worst, float(errors.max()))
    tolerance = product_tolerance(qtype, tensor.shape[-1])
    if not worst <= tolerance:
        raise UserError(
            f"{tensor.path}: tensor {tensor.name}: a product is off by {worst:.2g} of the norms of its factors "
            f"(at most {tolerance:.2g} is rounding): the kernels of this build are wrong, please report it"
        )
    return TensorCheck(tensor, worst, 0 if outliers is None else outliers.entries.size)


def bof4_tensors(model: Model) -> list[Tensor]:
    """The tensors of our types, in file order."""
    return [t for t in model.tensors if int(t.qtype) in REFERENCES]


def check_metadata(model: Model) -> None:
    """A file with our tensors must say which version and which levels they have.

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
