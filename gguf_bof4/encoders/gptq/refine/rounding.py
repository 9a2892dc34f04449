"""Reconstructs all decoder layers, one after another, with the inputs that the reconstructed layers before them give.

Memory holds one decoder layer with what is trained of it (about 36 bytes a weight), and the activations of all samples
in both models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from gguf_bof4 import native
from gguf_bof4.encoders.encoder import Calibration, Encoded, Finished, Target
from gguf_bof4.encoders.gptq import precision
from gguf_bof4.encoders.gptq.checkpoint import Checkpoint
from gguf_bof4.encoders.gptq.layer import Layer, Workers, load_layer
from gguf_bof4.encoders.gptq.model import (
    LayerInputs,
    Skeleton,
    first_inputs,
    release,
)
from gguf_bof4.encoders.gptq.refine.modules import encoded_modules
from gguf_bof4.encoders.gptq.refine.reconstruction import Reconstruction, SoftMatrix, reconstruct
from gguf_bof4.encoders.gptq.refine.training import Budget, split
from gguf_bof4.encoders.gptq.weights import Weights, tensor_names
from gguf_bof4.formats import FORMAT_OF_TYPE_ID
from gguf_bof4.lists import decode
from gguf_bof4.progress import NOTE

_FOLDER = "rounding"


def quantized_modules(
    layer: Layer, names: Mapping[str, str], targets: Mapping[str, Target], finished: Mapping[str, Finished]
) -> dict[str, SoftMatrix]:
    """Put encoded tensors in the place of the weights of a layer's linear modules.

    Args:
        names: of the tensors, by those of the modules.
        targets: of the calibration, by name.
        finished: what was done with them.

    Returns:
        Those of this project's types, by the names of their tensors. Transposed modules (Conv1D) are replaced by
        modules that are not.
    """
    made: dict[str, SoftMatrix] = {}
    reads = {name: done.read for name, done in finished.items() if done.read is not None}
    device = layer.workers.device
    for module in encoded_modules(layer.module, names, targets, reads):
        name, encoded = module.target.name, reads[module.target.name]()
        if module.format is None:
            module.assign(decode(encoded.data, module.target.qtype, encoded.outliers, native.dequantize), device)
        else:
            made[name] = SoftMatrix(encoded, module.format, module.rows, module.places, module.bias, device)
            module.replace(made[name].module)
    return made


@dataclass
class _Rounding:
    """The model, and where its layers are kept.

    Attributes:
        hidden: inputs of the next layer in the quantized model, float32 [samples, tokens, width].
        unquantized: the same in the unquantized model.
        budget: of the layers that are left; what a layer trained twice has taken, those behind it lack.
        left: how many.
        last: the last layer that has tensors of this project's types.
    """

    job: Calibration
    skeleton: Skeleton
    weights: Weights
    finished: Mapping[str, Finished]
    checkpoint: Checkpoint
    workers: Workers
    inputs: LayerInputs
    hidden: torch.Tensor
    unquantized: torch.Tensor
    budget: Budget
    left: int
    last: int

    def _report(self, i: int, step: int, used: float) -> None:
        what = f"refine: layer {i + 1} of {len(self.skeleton.layers)}, rounding: step {step}"
        self.job.progress(what, min(1000, int(1000 * used)), 1000)

    def _say(self, i: int, found: Reconstruction) -> None:
        kept = "kept" if found.is_better else "not kept: codes stay as gptq made them"
        self.job.progress(
            f"refine: layer {i + 1} of {len(self.skeleton.layers)}, error of samples not trained on "
            f"{found.before:.4g} before, {found.after:.4g} after rounding ({found.ratio:.3f}), {kept}", 0, NOTE,
        )  # fmt: skip

    def _advance(self, layer: Layer, hidden: torch.Tensor) -> None:
        """Replace inputs of the layer by its outputs, float32 [samples, tokens, width]."""
        with precision.linear_in(layer.dtype, layer.module):
            layer.advance(hidden)

    def layer(self, i: int) -> None:
        """Reconstruct a layer, keep it, and go on to the next one."""
        dtype = precision.DTYPES[self.job.settings.precision]
        layer = load_layer(self.skeleton, self.weights, i, self.inputs, self.workers, dtype)
        self._report(i, 0, 0.0)
        self._advance(layer, self.unquantized)
        targets = {t.name: t for t in self.job.targets}
        names = tensor_names(self.skeleton, i, self.job.architecture)
        matrices = quantized_modules(layer, names, targets, self.finished)
        changed: Mapping[str, Encoded] = {}
        if matrices:
            parts, began = split(len(self.hidden)), time.monotonic()
            of_layer = replace(self.budget, minutes=self.budget.minutes / self.left)
            with torch.enable_grad():
                found = reconstruct(
                    layer, matrices, self.hidden, self.unquantized, parts.trained, parts.judged, of_layer,
                    partial(self._report, i),
                )  # fmt: skip
            self._say(i, found)
            minutes = self.budget.minutes - (time.monotonic() - began) / 60
            self.left -= 1
            self.budget = replace(self.budget, minutes=max(minutes, 0.5 * of_layer.minutes * self.left))
            changed = found.tensors if found.is_better else {}
        if i < self.last:
            self._advance(layer, self.hidden)
        release(layer.module)
        self.checkpoint.save(i, changed, (self.hidden, self.unquantized) if i < self.last else None)


def with_rounding(
    job: Calibration, weights: Weights, skeleton: Skeleton, workers: Workers, tokens: torch.Tensor,
    finished: Mapping[str, Finished], budget: Budget, about: Mapping[str, Any],
) -> dict[str, Finished]:  # fmt: skip
    """Train the codes of this project's types, layer by layer; layers that are finished in the work folder are kept.

    Tensors of other types keep their codes, and so do fused experts, which the layers are run with unquantized.

    Args:
        tokens: int64 [samples, length].
        finished: what gptq has done with the targets.
        budget: of all layers.
        about: everything that the result depends on beside `finished`, as JSON.

    Returns:
        The same, with other codes and scales in the layers that gained.

    Raises:
        UserError: the disk cannot be written.
    """
    checkpoint = Checkpoint(job.folder / _FOLDER, about, restart=True)
    ours = {t.layer for t in job.targets if int(t.qtype) in FORMAT_OF_TYPE_ID}
    refined = [i for i in range(len(skeleton.layers)) if i in ours]
    last = max(refined, default=-1)
    if (first := checkpoint.finished()) <= last:
        with torch.inference_mode(False), torch.no_grad():
            inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), tokens)
            hidden, unquantized = checkpoint.activations(first - 1) if first else (inputs.hidden, inputs.hidden.clone())
            left = sum(i >= first for i in refined)
            rest = replace(budget, minutes=budget.minutes * left / len(refined))
            rounding = _Rounding(
                job, skeleton, weights, finished, checkpoint, workers, inputs, hidden, unquantized, rest, left, last
            )
            for i in range(first, last + 1):
                rounding.layer(i)
    changed = {name: i for i in range(last + 1) for name in checkpoint.why_not(i)}
    if not changed:
        job.progress("warning: refine: rounding lowered the error of no layer; all codes are still gptq's", 0, NOTE)
    return dict(finished) | {
        name: replace(finished[name], read=partial(checkpoint.read, i, name), is_refined=True)
        for name, i in changed.items()
    }
