"""Checks of a Hugging Face folder before upstream's converter is started on it.

Upstream reports these mistakes by tracebacks, or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.header import escaped
from gguf_bof4.gguf_files.parts import listed, parse_part_name

INDEX_OF_SAFETENSORS = "model.safetensors.index.json"
INDEX_OF_PYTORCH = "pytorch_model.bin.index.json"
_TOKENIZERS = ("tokenizer.*", "vocab.*", "*.model", "*.tiktoken", "tekken.json", "*vocab*", "tokenization_*.py")
_ADAPTER_CONFIG = "adapter_config.json"
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of an element, of the types of safetensors that have whole bytes."""
_LARGEST = {
    "num_hidden_layers": 10_000, "n_layers": 10_000, "n_layer": 10_000, "num_layers": 10_000, "vocab_size": 10_000_000,
}  # fmt: skip
"""Numbers of config.json, each far beyond every model, up to which upstream's converter makes lists in seconds."""
_GIT_LFS = b"version https://git-lfs"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no JSON ({error})") from error


def names_from_index(index: Path) -> set[str]:
    """The files that an index of shards names.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
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


def _is_file(path: Path) -> bool:
    """Path.is_file, also for names that no file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def _adapter_message(folder: Path) -> str:
    """What to do with a PEFT adapter, which stands alone in its folder."""
    content = _read_json(folder / _ADAPTER_CONFIG)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return (
        f"{folder} is a PEFT adapter, no model: it has {_ADAPTER_CONFIG} and no weights of a model. Load its base model"
        + (f" {base}" if isinstance(base, str) and base else "")
        + " with peft, call merge_and_unload() and save_pretrained(), and convert the folder that this writes"
    )


def _no_config_message(folder: Path) -> str:
    """What a folder without config.json is, and what to give instead."""
    if _is_file(folder / _ADAPTER_CONFIG):
        return _adapter_message(folder)
    if files := sorted(p.name for p in folder.glob("*.gguf")):
        return f"{folder} is no Hugging Face model but holds GGUF files: give one of them, such as {files[0]}"
    if snapshots := sorted(p for p in (folder / "snapshots").glob("*") if p.is_dir()):
        return f"{folder} is a folder of the Hugging Face cache: give a snapshot in it, such as {snapshots[0]}"
    return f"{folder} is no Hugging Face model: it has no config.json"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, those that upstream's converter reads.

    As there, safetensors go first, only the index of the chosen kind counts, and an index may name files in subfolders.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    present = {p.name for p in folder.iterdir() if p.is_file()}
    found = {n for n in present if n.startswith("model") and n.endswith(".safetensors")}
    index = folder / INDEX_OF_SAFETENSORS
    if not found and not index.is_file():
        found = {n for n in present if n.startswith("pytorch_model") and n.endswith(".bin")}
        index = folder / INDEX_OF_PYTORCH
    is_indexed = index.is_file()
    wanted = names_from_index(index) if is_indexed else _numbered_names(found)
    if missing := sorted(name for name in wanted if not _is_file(folder / name)):
        raise UserError(
            f"{folder} is not complete: {listed(missing)} is missing"
            + (f", which {index.name} names" if is_indexed else "")
            + ". Download the model again, or finish the download"
        )
    if not wanted:
        if _is_file(folder / _ADAPTER_CONFIG):
            raise UserError(_adapter_message(folder))
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
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged or no safetensors file: its header is no JSON object")
    for name, tensor in content.items():
        if name != "__metadata__":
            _check_tensor(path, name, tensor, 8 + length, size)


def _check_tensor(path: Path, name: str, tensor: Any, start: int, size: int) -> None:
    """Check a tensor of a safetensors header against the file; data begins at byte `start` of its `size` bytes."""
    shown = escaped(name)
    fields = tensor if isinstance(tensor, dict) else {}
    shape, offsets, dtype = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2 and isinstance(dtype, str)):
        raise UserError(f"{path} is damaged or no safetensors file: tensor {shown} has no shape, type or offsets")
    first, end = offsets
    if start + end > size:
        raise UserError(f"{path} is truncated: tensor {shown} ends at byte {start + end}, the file at {size}")
    nbytes = math.prod(shape) * _ITEM_BYTES.get(dtype, 0)
    if first > end or (dtype in _ITEM_BYTES and end - first != nbytes):
        raise UserError(
            f"{path} is damaged: tensor {shown} of type {dtype} and shape {shape} has {end - first} bytes, not {nbytes}"
        )


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    """Is it a list of whole numbers from 0 on?"""
    return isinstance(values, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in values)


def _check_sizes(config: Path, content: Mapping[str, Any]) -> None:
    """Refuse sizes for which upstream's converter would make lists until memory runs out."""
    nested = [value for value in content.values() if isinstance(value, dict)]
    for owner in (content, *nested):
        for key, largest in _LARGEST.items():
            value = owner.get(key)
            if isinstance(value, int) and value > largest:
                raise UserError(f"{config} is damaged: {key} is {value}, and no model has more than {largest}")


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
        raise UserError(_no_config_message(folder))
    content = _read_json(config)
    if not isinstance(content, dict):
        raise UserError(f"{config} is damaged: it is no JSON object")
    _check_sizes(config, content)
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
