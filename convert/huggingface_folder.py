"""Checks of a Hugging Face folder before upstream's converter is started on it.

Upstream reports these mistakes by tracebacks, or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.parts import parse_part_name

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.*", "vocab.*", "*.model", "*.tiktoken", "tekken.json", "*vocab*", "tokenization_*.py")
_GIT_LFS = b"version https://git-lfs"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is no JSON ({error})") from error


def _names_from_index(index: Path) -> set[str]:
    content = _read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{index} is damaged: it has no weight_map")
    return set(weight_map.values())


def _numbered_names(names: set[str]) -> set[str]:
    """The names, and those of all other parts of the same models."""
    found = set(names)
    for name in names:
        if part := parse_part_name(name):
            found |= set(part.all())
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, those that upstream's converter reads.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    index = next((folder / name for name in _INDICES if (folder / name).is_file()), None)
    present = {p.name for p in folder.iterdir() if p.is_file()}
    found = {n for n in present if n.startswith("model") and n.endswith(".safetensors")}
    found = found or {n for n in present if n.startswith("pytorch_model") and n.endswith(".bin")}
    wanted = _names_from_index(index) if index is not None else _numbered_names(found)
    if missing := sorted(wanted - present):
        raise UserError(
            f"{folder} is not complete: {', '.join(missing)} is missing"
            + (f", which {index.name} names" if index is not None else "")
            + ". Download the model again, or finish the download"
        )
    if not wanted:
        raise UserError(f"{folder} has no weights: there is neither model*.safetensors nor pytorch_model*.bin in it")
    return [folder / name for name in sorted(wanted)]


def check_safetensors(path: Path) -> None:
    """Check that a file is complete, before it is mapped.

    Raises:
        UserError: it cannot be read, is no safetensors file, or ends early.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, size))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if (length.to_bytes(8, "little") + header).startswith(_GIT_LFS):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights themselves: run `git lfs pull` in its folder")
    if len(header) < length or size < 8:
        raise UserError(f"{path} is truncated or no safetensors file: it has {size} bytes, its header alone {length}")
    try:
        tensors = {name: t for name, t in json.loads(header).items() if name != "__metadata__"}
        ends = {name: int(t["data_offsets"][1]) for name, t in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    for name, end in ends.items():
        if 8 + length + end > size:
            raise UserError(f"{path} is truncated: tensor {name} ends at byte {8 + length + end}, the file at {size}")


def check_folder(folder: Path) -> list[Path]:
    """Check that a folder has what a conversion needs.

    Returns:
        The files that hold the weights.

    Raises:
        UserError: config.json, weights or tokenizer are missing or damaged.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} is no Hugging Face model: it has no config.json")
    if not isinstance(_read_json(config), dict):
        raise UserError(f"{config} is damaged: it is no JSON object")
    files = weight_files(folder)
    for path in files:
        if path.suffix == ".safetensors":
            check_safetensors(path)
    tokenizers = {p.name for pattern in _TOKENIZERS for p in folder.glob(pattern)}
    if not tokenizers:
        raise UserError(
            f"{folder} has no tokenizer: one of tokenizer.json, tokenizer.model, vocab.txt and vocab.json belongs "
            "beside the weights"
        )
    return files
