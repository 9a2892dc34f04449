"""Kinds of GGUF files: which of them are models, and which can have outlier lists.

Only the model loader of the patched llama.cpp applies lists, and refuses those of a tensor that its graph would use
without its list. All other loaders refuse files with lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROJECTOR = "clip"
"""general.architecture of multimodal projectors, whose only reader is libmtmd."""

COPIED = "per_layer_token_embd.weight"
"""Per-layer embeddings of Gemma 3n and Gemma 4. Every other matrix of the pinned llama.cpp's architectures is used by
operations that apply lists only: all of those that its test-llama-archs makes were run with lists on every tensor."""

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


def why_no_lists(architecture: str, name: str) -> str | None:
    """Why this tensor can have no outlier list; None where it can.

    Args:
        architecture: general.architecture.
        name: of the tensor.
    """
    if architecture == PROJECTOR:
        return "the loader of multimodal projectors (libmtmd) applies no outlier lists"
    if name == COPIED:
        return "llama.cpp copies a row of it where a batch holds embeddings (images, audio), without its outliers"
    return None
