"""The matrices of a model file, as samples for the codebook solver."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import UserError, require
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.lists import decode

ROWS = 1024
"""Rows of a GGUF tensor decoded at a time."""


def matrices(path: Path) -> Iterator[npt.ArrayLike]:
    """The tensors of a file that have two dimensions or more, in some pieces; a .npy array whole.

    Args:
        path: a .npy, .safetensors or .gguf file. Quantized GGUF tensors are decoded, outliers included.

    Yields:
        Arrays or torch tensors for sampled_law() and solve_samples().

    Raises:
        ValueError: another kind of file.
        UserError: the file cannot be read as what its name says.
    """
    readers = {".npy": _npy, ".safetensors": _safetensors, ".gguf": _gguf}
    if path.suffix not in readers:
        raise ValueError(f"{path}: give a .npy, .safetensors or .gguf file")
    yield from readers[path.suffix](path)


def _npy(path: Path) -> Iterator[npt.ArrayLike]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"it holds {array.dtype}, not floating-point numbers")
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a readable .npy file of weights: {error}") from error
    yield array


def _safetensors(path: Path) -> Iterator[npt.ArrayLike]:
    require("hf", f"reading {path}", "safetensors", "torch")
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")  # numpy has no bfloat16
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable .safetensors file: {error}") from error
    with file as tensors:
        for name in tensors.keys():  # noqa: SIM118  (it is no mapping)
            tensor = tensors.get_tensor(name)
            if tensor.ndim >= 2 and tensor.is_floating_point():
                yield tensor


def _gguf(path: Path) -> Iterator[npt.ArrayLike]:
    model = open_model(path)
    for tensor in model.tensors:
        if len(tensor.shape) < 2:
            continue
        outliers = model.outliers(tensor)
        step = min(ROWS, tensor.n_rows)
        for part in range(math.ceil(tensor.n_rows / step)):
            first, count = part * step, min(step, tensor.n_rows - part * step)
            rows = tensor.read_rows(first, count)
            try:
                yield decode(rows, tensor.qtype, None if outliers is None else outliers.part(first, count))
            except NotImplementedError as error:
                raise UserError(f"{path}: tensor {tensor.name} of type {tensor.qtype.name} has no decoder") from error
