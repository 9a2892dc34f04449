"""Which files of a repository on a model hub a conversion needs: those that `huggingface_folder` and upstream read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path

from gguf_bof4 import hub
from gguf_bof4.convert.huggingface_folder import INDEX_OF_PYTORCH, INDEX_OF_SAFETENSORS, names_from_index
from gguf_bof4.errors import UserError, require
from gguf_bof4.hub import PREFIX, HubName
from gguf_bof4.progress import Progress

_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.jinja", "README.md")
"""Configuration, tokenizer, chat template and model card, at the top."""

_OF_MODULES = ("*/config.json",)
"""Of sentence embedding models, in the folders of the modules."""

_TOKENIZER_CONFIG = "tokenizer_config.json"


def _is_description(path: str) -> bool:
    if path in {INDEX_OF_SAFETENSORS, INDEX_OF_PYTORCH}:
        return False  # one of them, where it is the one that counts
    if "/" in path:
        return path.count("/") == 1 and any(fnmatchcase(path, pattern) for pattern in _OF_MODULES)
    return any(fnmatchcase(path, pattern) for pattern in _DESCRIPTIONS)


def _weights(paths: Collection[str], read: Callable[[str], Path]) -> list[str]:
    """The index, where there is one, and the files that hold the weights; safetensors go first."""
    kinds = ((INDEX_OF_SAFETENSORS, "model", ".safetensors"), (INDEX_OF_PYTORCH, "pytorch_model", ".bin"))
    for index, start, end in kinds:
        if index in paths:
            return [index, *sorted(names_from_index(read(index)))]
        if found := [p for p in paths if p.startswith(start) and p.endswith(end) and "/" not in p]:
            return found
    return []


def _refuse_own_code(name: HubName, paths: Collection[str], read: Callable[[str], Path]) -> None:
    """Refuse a tokenizer that is Python code of the repository, which is not run unseen."""
    if _TOKENIZER_CONFIG not in paths or not any(path.endswith(".py") for path in paths):
        return
    try:
        config = json.loads(read(_TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        return  # the check of the folder will say so
    if isinstance(config, dict) and "AutoTokenizer" in (config.get("auto_map") or ()):
        raise UserError(
            f"the tokenizer of {name} is Python code in the repository, which is not run unseen: read it, download the "
            f"whole repository (hf download {name.repository} --local-dir FOLDER), and convert FOLDER"
        )


def files_to_convert(name: HubName, paths: Collection[str], read: Callable[[str], Path]) -> list[str]:
    """The files of a repository that a conversion needs.

    Args:
        paths: all files of the repository.
        read: fetches one of them.

    Raises:
        UserError: it has no configuration or no weights, its index is damaged or names files that are not there, or
            its tokenizer is Python code.
    """
    if "config.json" not in paths:
        if ggufs := sorted(path for path in paths if path.endswith(".gguf")):
            raise UserError(f"{name} holds GGUF files: give one of them, such as {PREFIX}{name}:{ggufs[0]}")
        adapter = "it is a PEFT adapter" if "adapter_config.json" in paths else "it has no config.json"
        raise UserError(f"{name} is no model that can be converted: {adapter}")
    weights = _weights(paths, read)
    if not weights:
        raise UserError(f"{name} has no weights: there is neither model*.safetensors nor pytorch_model*.bin in it")
    if missing := [path for path in weights if path not in paths]:
        raise UserError(f"{name} is not complete: {weights[0]} names {missing[0]}, which is not there")
    _refuse_own_code(name, paths, read)
    return [*(path for path in paths if _is_description(path)), *weights]


def fetch_source(name: HubName, progress: Progress) -> Path:
    """The folder or GGUF file to convert, in the hub's cache, downloaded where it is missing.

    Args:
        name: with a file or tag, a GGUF file.

    Raises:
        UserError: as `hub.gguf_file`, `files_to_convert` and `hub.download`, or a package of the extra "hf" is missing.
    """
    if name.file is not None:
        return hub.gguf_file(name, progress)
    require("hf", "converting a Hugging Face folder", "torch", "transformers", "safetensors")
    progress(f"asking for {name}", 0, 0)
    repository = hub.open_repository(name)

    def read(path: str) -> Path:
        return hub.download(repository, [path]) / path

    paths = files_to_convert(name, repository.files.keys(), read)
    return hub.download(repository, paths, progress)
