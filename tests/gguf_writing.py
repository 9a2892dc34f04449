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


def write_imatrix(
    path: Path, entries: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]], **keys: bool
) -> Path:
    """An importance matrix as llama-imatrix writes it.

    Args:
        entries: sums of squared inputs, [matrices, n], and numbers of uses, [matrices], by the names of tensors.
        keys: `chunk_size=False` and so on leave a key out.
    """
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["some.txt", "more.txt"])
    for key, value in (("chunk_count", 3), ("chunk_size", 512)):
        if keys.get(key, True):
            writer.add_uint32(f"imatrix.{key}", value)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts[:, None])
    finish(writer)
    return path


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
