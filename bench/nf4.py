"""NF4, simulated: llama.cpp has no such type, so its values are written over the weights of the unquantized model.

NF4 is the type of QLoRA (arXiv 2305.14314): blocks divided by their largest magnitude, and 16 levels that are
quantiles of the normal distribution. Here with blocks of 64 and scales of 16 bits, without QLoRA's second quantization
of the scales.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.bench.measure import block_matrices
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.normal import normal_quantile

NF4 = "NF4"
BLOCK = 64
BITS_PER_WEIGHT = 4 + 16 / BLOCK

_SLICE = 2**22  # weights at a time

Floats = npt.NDArray[np.float32]


def levels() -> Floats:
    """The 16 levels, ascending: quantiles of the standard normal, 8 above and 7 below an exact zero, over the largest.

    The outermost probability is the mean of those that 15 and 16 equal bins would have (QLoRA, section 3).
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = np.array([normal_quantile(float(p)) for p in np.linspace(outermost, 0.5, 9)[:-1]])
    below = -np.array([normal_quantile(float(p)) for p in np.linspace(outermost, 0.5, 8)[:-1]])
    found = np.sort(np.concatenate([below, [0.0], above]))
    return np.asarray(found / found[-1], dtype=np.float32)


def simulate(weights: Floats) -> Floats:
    """What weights become when they are written in NF4 and read again.

    Args:
        weights: float32 [..., n], n a multiple of 64.
    """
    table = levels()
    blocks = weights.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    normalized = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0)
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, normalized)
    return np.asarray(scales * table[codes], dtype=np.float32).reshape(weights.shape)


def make_nf4(source: Path, target: Path) -> None:
    """A copy of `source` whose matrices of the blocks have the values of NF4, in the type that they have there.

    So nothing but the levels differs from the unquantized model. In F32 the values are exact; in F16 (the large model)
    they are rounded to 11 bits, a ten-thousandth of NF4's own error.

    Raises:
        UserError: rows are no multiple of 64, or a matrix is neither F32 nor F16.
    """
    shutil.copyfile(source, target)
    dtypes = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    with target.open("r+b") as file:
        for t in block_matrices(open_model(target)):
            dtype = dtypes.get(t.qtype)
            if dtype is None or t.shape[-1] % BLOCK:
                raise UserError(
                    f"{source}: {t.name} is {t.qtype.name} with rows of {t.shape[-1]}, but NF4 is simulated in F32 or "
                    f"F16 rows of a multiple of {BLOCK}: leave {NF4} out of --types"
                )
            rows = max(1, _SLICE // t.shape[-1])
            for first in range(0, t.n_rows, rows):
                data = t.read_rows(first, min(rows, t.n_rows - first))
                file.seek(t.offset + first * t.row_bytes)
                file.write(simulate(data.view(dtype).astype(np.float32)).astype(dtype).tobytes())
