"""An encoded tensor as the product of its parts: scales, scales of sub-blocks, codes, and outliers beside them."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4 import native
from gguf_bof4.formats import SCALE_BYTES, Format
from gguf_bof4.lists import OutlierList

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """An encoded tensor as factors: weight = scale * unit * multiplier, plus outliers.

    Attributes:
        scales: of blocks, float32 [rows, blocks of a row].
        multipliers: levels times scales of sub-blocks, integers [rows, n].
        unit: what a multiplier of 1 is worth where the scale is 1.
    """

    scales: Floats
    multipliers: npt.NDArray[np.int8] | npt.NDArray[np.int16]
    unit: float


def _blocks(data: Bytes, fmt: Format) -> Bytes:
    return data.reshape(len(data), -1, fmt.block_bytes)


def factors(data: Bytes, fmt: Format) -> Factors:
    """Take the scales of blocks out of an encoded tensor.

    Args:
        data: uint8 [rows, bytes of a row].
    """
    blocks = _blocks(data, fmt)
    scales = blocks[..., :SCALE_BYTES].copy().view(np.float16)[..., 0].astype(np.float32)
    of_one = blocks.copy()
    of_one[..., :SCALE_BYTES] = np.array([1], dtype=np.float16).view(np.uint8)
    numerator, denominator = fmt.unit
    unit = numerator / denominator
    decoded = native.dequantize(of_one.reshape(data.shape), gguf.GGMLQuantizationType(fmt.type_id))
    multipliers = np.rint(decoded / np.float32(unit)).astype(np.int16)
    small = multipliers.astype(np.int8)
    return Factors(scales, small if np.array_equal(small, multipliers) else multipliers, unit)


def with_scales(data: Bytes, fmt: Format, scales: npt.NDArray[np.float16]) -> Bytes:
    """An encoded tensor with other scales of its blocks.

    Args:
        data: uint8 [rows, bytes of a row].
        scales: float16 [rows, blocks of a row].
    """
    blocks = _blocks(data, fmt).copy()
    blocks[..., :SCALE_BYTES] = scales[..., None].view(np.uint8)
    return blocks.reshape(data.shape)


def codes_of(data: Bytes, fmt: Format) -> Bytes:
    """The codes of an encoded tensor, uint8 [rows, n].

    Args:
        data: uint8 [rows, bytes of a row].
    """
    packed = _blocks(data, fmt)[..., fmt.codes_at :]
    runs = packed.reshape(*packed.shape[:2], -1, 1, fmt.code_run)
    return np.concatenate([runs & np.uint8(15), runs >> np.uint8(4)], axis=3).reshape(len(data), -1)


def with_codes(data: Bytes, fmt: Format, codes: Bytes) -> Bytes:
    """An encoded tensor with other codes.

    Args:
        data: uint8 [rows, bytes of a row].
        codes: uint8 [rows, n].
    """
    blocks = _blocks(data, fmt).copy()
    runs = codes.reshape(*blocks.shape[:2], -1, 2, fmt.code_run)
    packed = runs[..., 0, :] | runs[..., 1, :] << np.uint8(4)
    blocks[..., fmt.codes_at :] = packed.reshape(*blocks.shape[:2], -1)
    return blocks.reshape(data.shape)


def sub_scales(data: Bytes, fmt: Format) -> Floats:
    """The scales of sub-blocks, integers as float32 [rows, sub-blocks of a row]; 1 where the type has none.

    Args:
        data: uint8 [rows, bytes of a row].
    """
    n = data.shape[1] // fmt.block_bytes * fmt.block_size
    largest = np.full((len(data), n), len(fmt.levels) - 1, dtype=np.uint8)
    multipliers = factors(with_codes(data, fmt, largest), fmt).multipliers[:, :: fmt.sub_block_size]
    return multipliers.astype(np.float32) / np.float32(fmt.levels[-1])


def placed(
    outliers: OutlierList | None, places: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Rows of the module, columns and values of outliers; None where there are none.

    Args:
        places: for each row of the tensor the row of the module, int64 [rows].
    """
    if outliers is None or not outliers.entries.size:
        return None
    rows = torch.from_numpy(places[outliers.rows])
    return rows, torch.from_numpy(outliers.columns), torch.from_numpy(outliers.values.copy())
