"""Kinds of GGUF files: which of them are models, and which can have outlier lists.

Only the model loader of the patched llama.cpp applies lists. Other loaders ignore tensors that they do not know, so a
list would be lost without a message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROJECTOR = "clip"
"""general.architecture of multimodal projectors, whose only reader is libmtmd."""

_TYPES = {
    "adapter": "an adapter (general.type is adapter), no model: use it as it is beside the converted model (--lora), "
    "or merge it into the unquantized base model with llama-export-lora and convert the result",
    "imatrix": "an importance matrix, no model: give it with --imatrix when you convert its model",
}
_ARCHITECTURES = {
    "controlvector": "a control vector, no model: use it as it is beside the converted model (--control-vector)",
}


def why_no_model(path: Path, general_type: Any, architecture: Any) -> str | None:
    """The message for a file that no model loader reads; None where the metadata says nothing against it.

    Args:
        path: the file, for the message.
        general_type: the metadata value general.type, None where it is missing.
        architecture: the same of general.architecture.
    """
    found = _TYPES.get(general_type) if isinstance(general_type, str) else None
    if found is None and isinstance(architecture, str):
        found = _ARCHITECTURES.get(architecture)
    if found is None and not isinstance(architecture, str):
        found = "no model: it has no general.architecture"
    return None if found is None else f"{path} is {found}"


def why_no_lists(architecture: str) -> str | None:
    """Why no tensor of the architecture can have an outlier list; None where the model loader reads it."""
    if architecture == PROJECTOR:
        return "the loader of multimodal projectors (libmtmd) ignores outlier lists"
    return None
