"""GPTQ over a whole model: one decoder layer after another, each behind the quantized layers before it.

Errors are compensated twice: those of a row's own columns by the columns behind them, and those of all layers before by
weights that are fitted to give, for the inputs which the quantized model has, what the unquantized model has there (as
GPTAQ, arXiv 2504.02692, does).

In memory are one decoder layer, quantized and not, its moments, and the activations of the samples in both models,
whatever the depth of the model.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from gguf_bof4 import lists as opq
from gguf_bof4 import native
from gguf_bof4.encoders.gptq import RECIPE
from gguf_bof4.encoders.gptq.checkpoint import Checkpoint
from gguf_bof4.encoders.gptq.encoded import Encoded
from gguf_bof4.encoders.gptq.factor import Drift, Factor, drift, factor
from gguf_bof4.encoders.gptq.layer import Layer, Workers, to_device
from gguf_bof4.encoders.gptq.matching import find_rows
from gguf_bof4.encoders.gptq.model import INSTEAD, LayerInputs, Skeleton, assign, first_inputs, make_skeleton, release
from gguf_bof4.encoders.gptq.samples import Samples, enough_samples, make_samples, read_text
from gguf_bof4.encoders.gptq.weights import Weights, tensor_names
from gguf_bof4.errors import UserError

Floats = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]

SWEEPS = 2
"""Rounds of coordinate descent behind the columns."""


@dataclass(frozen=True)
class Settings:
    """How the model is run, and its layers are quantized.

    Attributes:
        text: the calibration text.
        samples: how many windows of it; None: enough_samples().
        length: tokens in each.
        damping: what is added to the diagonal of the moments, in units of its mean.
        act_order: blocks of columns with large inputs first.
        device: as torch names it.
        threads: 0 means all cores.
        sweeps: rounds of coordinate descent over codes and scales.
    """

    text: Path
    samples: int | None
    length: int
    damping: float
    act_order: bool
    device: str
    threads: int = 0
    sweeps: int = SWEEPS


@dataclass(frozen=True)
class Target:
    """A tensor of the output that is to be encoded in one of this project's types.

    Attributes:
        name: of the tensor.
        shape: rows before columns.
        quantile: of its outliers; None where it gets no list.
        read: float32 [rows, n], checked.
        search: encodes it without compensation, weighted by float32 [n], or by nothing.
    """

    name: str
    qtype: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    quantile: float | None
    read: Callable[[], Floats]
    search: Callable[[Floats | None], tuple[npt.NDArray[np.uint8], opq.OutlierList | None]]

    @property
    def n_weights(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def layer(self) -> int | None:
        """The decoder layer that it belongs to."""
        match = re.match(r"blk\.(\d+)\.", self.name)
        return None if match is None else int(match[1])


def parse_device(name: str) -> torch.device:
    """A device of torch.

    Raises:
        UserError: there is none of this name.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device {name}: torch cannot use it here ({reason}); --device cpu works everywhere"
        ) from error
    return device


def _fingerprint(files: Sequence[Path], targets: Sequence[Target], settings: Settings, count: int) -> dict[str, Any]:
    """Everything that the result depends on, as JSON."""
    import transformers

    stats = [(path.name, path.stat()) for path in files]
    tensors = repr([(t.name, t.qtype.name, t.shape, t.quantile) for t in targets])
    return {
        "recipe": RECIPE,
        "source": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "types and lists": hashlib.sha256(tensors.encode()).hexdigest(),
        "calibration text": hashlib.sha256(settings.text.read_bytes()).hexdigest(),
        "--calibration-samples": count,
        "--calibration-length": settings.length,
        "--damping": settings.damping,
        "--act-order": settings.act_order,
        "--device": settings.device,
        "sweeps": settings.sweeps,
        "versions of torch and transformers": [torch.__version__, transformers.__version__],
    }


def _drift_damping(inputs: int, tokens: int) -> float:
    """What is added to the diagonal of the moments where weights are fitted to the unquantized model's outputs, in
    units of its mean.

    Much, because that fit takes up noise of few samples far more easily than compensation does; and more, the fewer
    tokens there are for an input (bench/NOTES.md).
    """
    return max(1.0, 11.0 * inputs / tokens)


@dataclass(frozen=True)
class Unquantized:
    """The same layer of the unquantized model.

    Attributes:
        layer: with its own weights.
        hidden: what it gets, float32 [samples, tokens, width].
    """

    layer: Layer
    hidden: torch.Tensor


@dataclass(frozen=True)
class _Encoder:
    """Encodes the tensors of one layer."""

    settings: Settings
    done: Callable[[str, Target | None], None]
    original: Unquantized

    def _compensated(self, target: Target, rows: Floats, wanted: Floats, factored: Factor) -> tuple[Encoded, Floats]:
        """Encode `wanted`, rows [rows, n] fitted to the inputs that they get."""
        outliers = None
        if target.quantile is not None:
            outliers = native.select_outliers(rows, target.quantile, self.settings.threads)
        data, decoded, outliers, _ = native.gptq(
            wanted, target.qtype, factored.order, factored.feedback, factored.curvature, factored.moments,
            self.settings.sweeps, outliers, self.settings.threads,
        )  # fmt: skip
        return Encoded(data, outliers), decoded

    def _group(
        self, layer: Layer, names: Sequence[str], targets: Mapping[str, Target], hidden: torch.Tensor
    ) -> dict[str, Encoded]:
        """Linear modules that share an input."""
        self.done(", ".join(targets[name].name.split(".")[2] for name in names), None)
        moments, moved = layer.moments_and_drift(names[0], hidden, self.original.layer, self.original.hidden)
        if not bool(torch.isfinite(moments).all()):
            raise UserError(
                f"{targets[names[0]].name}: its inputs are not finite numbers when the model reads the calibration "
                f"text. {INSTEAD}"
            )
        factors: dict[Any, Factor] = {}
        # by workers: the number of threads of this one may be anything, and sums depend on it
        make_drift = partial(drift, moments, damping=_drift_damping(len(moments), hidden.shape[0] * hidden.shape[1]))
        drifted: Drift = layer.workers.map(make_drift, [moved])[0]
        found = {}
        for name in names:
            target, module = targets[name], layer.module.get_submodule(name)
            rows = target.read()
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            places = find_rows(rows, weight.cpu().numpy())
            if places is None:
                importance = moments.diagonal().cpu().numpy().copy() if rows.shape[1] == len(moments) else None
                found[target.name] = _searched(target, importance, f"its rows are not those of {name} in transformers")
            else:
                if target.qtype not in factors:
                    make = partial(factor, moments, damping=self.settings.damping, act_order=self.settings.act_order)
                    factors[target.qtype] = layer.workers.map(make, [target.qtype])[0]
                wanted = rows + drifted.correction(rows, layer.workers)
                found[target.name], decoded = self._compensated(target, rows, wanted, factors[target.qtype])
                back = np.empty_like(decoded)
                back[places] = decoded
                assign(layer.module, f"{name}.weight", torch.from_numpy(back).to(layer.workers.device))
            self.done("", target)
        return found

    def layer(
        self, layer: Layer, modules: Mapping[str, str], targets: Sequence[Target], hidden: torch.Tensor
    ) -> dict[str, Encoded]:
        """All targets of a layer, in the order in which the layer uses them.

        Args:
            modules: the tensors that linear modules should be, by the modules' names.
        """
        by_name = {t.name: t for t in targets}
        reached = {module: by_name[tensor] for module, tensor in modules.items() if tensor in by_name}
        found: dict[str, Encoded] = {}
        for names in layer.groups(reached, hidden[:1]):
            found.update(self._group(layer, names, reached, hidden))
        rest = [t for t in targets if t.name not in found]
        importance = _expert_importance(layer, hidden) if rest else None
        for target in rest:
            fits = importance is not None and importance.size == target.shape[-1] and "down" not in target.name
            why_not = "no linear module of transformers is this tensor"
            found[target.name] = _searched(target, importance if fits else None, why_not)
            self.done("", target)
        return found


def _searched(target: Target, importance: Floats | None, why_not: str) -> Encoded:
    kind = "unweighted" if importance is None else "weighted by the mean squares of its inputs"
    return Encoded(*target.search(importance), f"{why_not}: encoder search, {kind}")


def _expert_importance(layer: Layer, hidden: torch.Tensor) -> Floats | None:
    """Mean squares of what the module with the stacked weights of experts gets; None where there is no such module."""
    stacks = {name.rpartition(".")[0] for name, p in layer.module.named_parameters() if p.dim() == 3}
    if len(stacks) != 1:
        return None
    return layer.moments(stacks.pop(), hidden).diagonal().cpu().numpy().copy()


@dataclass(frozen=True)
class Calibration:
    """Finished work on a model.

    Attributes:
        layer_of: the decoder layer of each tensor that is ready.
        why_not: of those that were not compensated, why.
        samples: that the model read.
    """

    checkpoint: Checkpoint
    layer_of: Mapping[str, int]
    why_not: Mapping[str, str]
    samples: Samples

    def read(self, name: str) -> Encoded:
        """A tensor that is ready."""
        return self.checkpoint.read(self.layer_of[name], name)


def calibrate(
    weights: Weights,
    source: Path,
    files: Sequence[Path],
    architecture: str,
    targets: Sequence[Target],
    settings: Settings,
    folder: Path,
    restart: bool,
    progress: Progress,
) -> Calibration:
    """Encode all targets that belong to decoder layers; what is done already in `folder` is not done again.

    Args:
        weights: of the model.
        source: the model, for messages.
        files: that hold it.
        architecture: general.architecture.
        folder: where work is kept until the output is complete.
        restart: give up work in `folder` that was done for other options.
        progress: called with what is being done, weights done and weights in all.

    Raises:
        UserError: the model cannot be run, the text is too short, or the folder holds other work.
    """
    device = parse_device(settings.device)
    text = read_text(settings.text)
    progress("reading the calibration text", 0, 0)
    widest = max((t.shape[-1] for t in targets if t.layer is not None), default=1)
    wanted = settings.samples or enough_samples(widest, settings.length)
    samples = make_samples(weights.tokenizer(), text, settings.text, wanted, settings.length)
    checkpoint = Checkpoint(folder, _fingerprint(files, targets, settings, samples.count), restart)
    skeleton = make_skeleton(weights.config(), source)
    by_layer: dict[int, list[Target]] = defaultdict(list)
    for target in targets:
        if target.layer is not None and target.layer < len(skeleton.layers):
            by_layer[target.layer].append(target)
    workers = Workers(settings.threads or os.cpu_count() or 1, device)
    total = sum(t.n_weights for group in by_layer.values() for t in group)
    done = 0

    def report(i: int, what: str, target: Target | None) -> None:
        nonlocal done
        done += target.n_weights if target else 0
        if what:
            progress(f"layer {i + 1} of {len(skeleton.layers)}: {what}", done, total)

    try:
        with torch.inference_mode():
            inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), samples.tokens)
            first = checkpoint.finished()
            unquantized = inputs.hidden.clone()
            if 0 < first < len(skeleton.layers):
                inputs.hidden, unquantized = checkpoint.activations(first - 1)
            done = sum(t.n_weights for i in range(first) for t in by_layer[i])
            for i in range(first, len(skeleton.layers)):
                report(i, "reading weights", None)
                layer = _load_layer(skeleton, weights, i, inputs, workers)
                original = Unquantized(replace(layer, module=copy.deepcopy(layer.module)), unquantized)
                encoder = _Encoder(settings, partial(report, i), original)
                found = encoder.layer(layer, tensor_names(skeleton, i, architecture), by_layer[i], inputs.hidden)
                last = i + 1 == len(skeleton.layers)
                if not last:
                    report(i, "activations", None)
                    layer.advance(inputs.hidden)
                    original.layer.advance(unquantized)
                release(layer.module)
                checkpoint.save(i, found, None if last else (inputs.hidden, unquantized))
    finally:
        workers.close()
    reasons = {name: why for i in range(len(skeleton.layers)) for name, why in checkpoint.why_not(i).items()}
    return Calibration(
        checkpoint,
        {t.name: i for i, group in by_layer.items() for t in group},
        {name: why for name, why in reasons.items() if why is not None},
        samples,
    )


def _load_layer(skeleton: Skeleton, weights: Weights, i: int, inputs: LayerInputs, workers: Workers) -> Layer:
    prefix = f"{skeleton.layers_name}.{i}."
    weights.fill(skeleton, [prefix + name for name, _ in skeleton.layers[i].named_parameters()])
    module = skeleton.layers[i].to(workers.device)
    return Layer(module, to_device(inputs.arguments[i], workers.device), workers)
