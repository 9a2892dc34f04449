"""Errors of quantized weights: relative squared errors of tensors, and the groups that tensors are reported in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model, Tensor
from gguf_bof4.lists import decode
from gguf_bof4.progress import Progress, no_progress

Floats = npt.NDArray[np.float32]
Dequantize = Callable[[Any, gguf.GGMLQuantizationType], Floats]

AT_ONCE = 1 << 20
"""Weights that are compared at a time: 4 MiB of floats stay in the caches of a core."""


def _squares(rows: Floats) -> float:
    """The sum of the squares of float32 [rows, n]: along a row in float32, of the rows in float64."""
    with np.errstate(over="ignore"):
        total = float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64))
    # squares of outliers beyond 1e19 are no float32
    return total if np.isfinite(total) else float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))


@dataclass
class ErrorSums:
    """Sums over the weights of a tensor, or of several.

    Attributes:
        squared_error: of the squared differences between decoded and exact weights.
        squared_weights: of the squared exact weights.
    """

    squared_error: float = 0.0
    squared_weights: float = 0.0

    def add(self, decoded: Floats, exact: Floats) -> None:
        """Add rows, both float32 [rows, n]; `decoded` is overwritten."""
        self.squared_error += _squares(np.subtract(decoded, exact, out=decoded))
        self.squared_weights += _squares(exact)

    @property
    def relative(self) -> float:
        """The squared error over the squared weights; 0 where all weights are 0 and none has an error."""
        if self.squared_weights:
            return self.squared_error / self.squared_weights
        return 0.0 if self.squared_error == 0 else float("inf")


_PARTS: tuple[tuple[str, str], ...] = (
    ("attn_qkv", "attention q, k, v"),
    ("attn_q", "attention q"),
    ("attn_kv", "attention k, v"),
    ("attn_k", "attention k"),
    ("attn_v", "attention v"),
    ("attn_output|attn_out|attn_o", "attention output"),
    ("ffn_gate_up_exps|ffn_gate_up_chexps", "experts gate, up"),
    ("ffn_gate_exps|ffn_gate_chexps", "experts gate"),
    ("ffn_up_exps|ffn_up_chexps", "experts up"),
    ("ffn_down_exps|ffn_down_chexps", "experts down"),
    ("ffn_(?:gate|up|down)_shexp", "shared experts"),
    ("ffn_gate_inp", "router"),
    ("ffn_gate", "ffn gate"),
    ("ffn_up", "ffn up"),
    ("ffn_down", "ffn down"),
    ("ssm_|time_mix|channel_mix|shortconv", "recurrent"),
)
_GROUPS = (("token embeddings", r"token_embd|per_layer_token_embd"), ("output", r"output\."))
OTHER = "other matrices"
GROUPS = ("token embeddings", *(group for _, group in _PARTS), OTHER, "output")
"""All groups, in the order of a report."""


def group_of(name: str) -> str:
    """The group of a tensor, by its name in a GGUF file."""
    inside = re.sub(r"^(?:\w+\.)?blk\.\d+\.", "", name)
    if inside == name:
        return next((group for group, pattern in _GROUPS if re.match(pattern, name)), OTHER)
    return next((group for pattern, group in _PARTS if re.match(pattern, inside)), OTHER)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to, from 0 on; None where it belongs to none."""
    match = re.match(r"(?:\w+\.)?blk\.(\d+)\.", name)
    return None if match is None else int(match[1])


def _counterpart(tensor: Tensor, model: Model, reference: Model, tensors: dict[str, Tensor]) -> Tensor:
    found = tensors.get(tensor.name)
    if found is None or found.shape != tensor.shape:
        what = "has no tensor of this name" if found is None else f"has it with the shape {list(found.shape)}"
        raise UserError(
            f"{reference.path} is not the model that {model.path} was made from: {tensor.name} of shape "
            f"{list(tensor.shape)} is in the one, and the other {what}"
        )
    return found


def tensor_errors(
    model: Model, reference: Model, dequantize: Dequantize = gguf.dequantize, progress: Progress = no_progress
) -> dict[str, ErrorSums]:
    """Errors of the matrices of a model against those of the model that it was made from, outliers included.

    Args:
        dequantize: gguf.dequantize (numpy) or native.dequantize.
        progress: called with weights.

    Returns:
        By tensor; without vectors, and without tensors that have the same type in both files.

    Raises:
        UserError: a file ends early, or `reference` is another model.
        NotImplementedError, native.NativeError: `dequantize` has no decoder for a type.
    """
    tensors = {t.name: t for t in reference.tensors}
    pairs = [(t, _counterpart(t, model, reference, tensors)) for t in model.tensors if len(t.shape) > 1]
    pairs = [(t, exact) for t, exact in pairs if t.qtype != exact.qtype]
    total, done = sum(t.n_weights for t, _ in pairs), 0
    found = {}
    for tensor, exact in pairs:
        sums = found[tensor.name] = ErrorSums()
        lists = model.outliers(tensor), reference.outliers(exact)
        step = max(1, AT_ONCE // tensor.shape[-1])
        for first in range(0, tensor.n_rows, step):
            count = min(step, tensor.n_rows - first)
            decoded, wanted = (
                decode(t.read_rows(first, count), t.qtype, None if o is None else o.part(first, count), dequantize)
                for t, o in zip((tensor, exact), lists, strict=True)
            )
            sums.add(np.array(decoded, np.float32), np.asarray(wanted, np.float32))
            done += count * tensor.shape[-1]
            progress(tensor.name, done, total)
    return found
