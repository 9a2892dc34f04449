"""Hugging Face folders whose weights are quantized already: by what, as the folder says it.

Upstream's converter decodes some of these kinds. Which, depends on the model class, too, so it is asked first; this is
for the message when it fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONFIGS = ("quantization_config", "compression_config")
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Of older AutoGPTQ, of older AutoAWQ, of ModelOpt."""

_SUFFIXES = {
    ".quant_state.bitsandbytes__": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes, 8 bits",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or another kind with scales",
}
"""Tensors that only quantized weights have, by parts of their names."""


def _object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _bits(config: Mapping[str, Any]) -> Any:
    for key in ("bits", "w_bit", "num_bits"):
        if key in config:
            return config[key]
    return 4 if config.get("load_in_4bit") is True else 8 if config.get("load_in_8bit") is True else None


def _weights_of_groups(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How compressed-tensors has quantized the weights of its first group of layers."""
    groups = config.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights if isinstance(weights, dict) else {}


def _described(config: Mapping[str, Any]) -> str:
    nested = config.get("quantization")
    if isinstance(nested, dict):
        config = {**config, **nested}
    producer = config.get("producer")
    method = config.get("quant_method") or (producer.get("name") if isinstance(producer, dict) else None)
    weights = _weights_of_groups(config)
    kinds = (config.get(key) for key in ("bnb_4bit_quant_type", "format", "quant_algo"))
    bits = _bits(config) or weights.get("num_bits")
    details = [
        str(method or "an unnamed method"),
        *([f"{bits} bits"] if bits is not None else []),
        *(kind for kind in kinds if isinstance(kind, str)),
        *([f"scales per {weights['strategy']}"] if isinstance(weights.get("strategy"), str) else []),
    ]
    return ", ".join(details)


def quantization(folder: Path, error: str = "") -> str | None:
    """How the weights of a folder were quantized, for a message; None where nothing says that they were.

    Args:
        error: what upstream's converter said, which may name a tensor that only quantized weights have.
    """
    config = _object(folder / "config.json")
    text = config.get("text_config")
    for owner in (config, text if isinstance(text, dict) else {}):
        for key in _CONFIGS:
            if isinstance(owner.get(key), dict) and owner[key]:
                return _described(owner[key])
    for name in _FILES:
        if found := _object(folder / name):
            return f"{_described(found)} ({name})"
    return next((kind for suffix, kind in _SUFFIXES.items() if suffix in error), None)
