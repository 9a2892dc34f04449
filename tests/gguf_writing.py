"""GGUF files of a few given tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy.typing as npt


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tensors(
    path: Path,
    tensors: Mapping[str, npt.NDArray[Any]],
    encoded: gguf.GGMLQuantizationType | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Path:
    """A file of the architecture llama.

    Args:
        tensors: numbers; arrays of bytes are encoded rows.
        encoded: the type of arrays of bytes.
        numbers: unsigned metadata.
    """
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (numbers or {}).items():
        writer.add_uint32(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=encoded if array.dtype == "uint8" else None)
    finish(writer)
    return path
