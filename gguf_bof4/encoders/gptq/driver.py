"""GPTQ over a whole model, one decoder layer after another, with the inputs that the quantized layers before it give.

Errors are compensated twice: those of a column by the columns of the same row that follow it (GPTQ, arXiv 2210.17323),
and those of all layers before by weights fitted to give, on the inputs of the quantized model, the outputs that the
unquantized model has there (GPTAQ, arXiv 2504.02692).

Memory holds one decoder layer, quantized and unquantized, its Hessians, and the activations of all samples in both
models, whatever the depth of the model.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as TensorType

from gguf_bof4 import native
from gguf_bof4.encoders.encoder import (
    Calibration,
    CalibrationSettings,
    Encoded,
    Finished,
    Target,
    too_large_message,
)
from gguf_bof4.encoders.gptq import precision, token_weights
from gguf_bof4.encoders.gptq.checkpoint import Checkpoint
from gguf_bof4.encoders.gptq.estimate import layer_seconds
from gguf_bof4.encoders.gptq.factor import Drift, Factor, drift, drifts_through_outputs, factor
from gguf_bof4.encoders.gptq.layer import Layer, Moments, Workers, load_layer
from gguf_bof4.encoders.gptq.model import (
    INSTEAD,
    LayerInputs,
    Skeleton,
    assign_linear,
    check_length,
    find_linear_rows,
    first_inputs,
    linear_weight,
    make_skeleton,
    release,
)
from gguf_bof4.encoders.gptq.samples import Samples, make_samples
from gguf_bof4.encoders.gptq.shares import enough_samples
from gguf_bof4.encoders.gptq.sources import digest, read_files, tokens_of
from gguf_bof4.encoders.gptq.weights import Weights, tensor_names
from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.outlier_choice import Quantile, choose
from gguf_bof4.progress import NOTE, duration_text

Floats = npt.NDArray[np.float32]

_WAITING_BYTES = 4 << 30
"""Most memory of forward passes that wait for a group of modules to be quantized, in both models together."""

SWEEPS = 2
"""Rounds of coordinate descent over codes and scales, after all columns are quantized."""


def parse_device(name: str) -> torch.device:
    """A device of torch, by its name.

    Raises:
        UserError: torch cannot use it.
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


def _fingerprint(job: Calibration, texts: str, count: int, recipe: int) -> dict[str, Any]:
    """Everything that the result depends on, as JSON.

    Args:
        texts: a hash of the calibration texts.
        count: of samples.
    """
    import transformers

    settings = job.settings
    stats = [(path.name, path.stat()) for path in job.files]
    tensors = repr([(t.name, t.qtype.name, t.shape, t.rule) for t in job.targets])
    return {
        "recipe": recipe,
        "source": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "types and lists": hashlib.sha256(tensors.encode()).hexdigest(),
        "calibration text": texts,
        "--calibration-samples": count,
        "--calibration-length": settings.length,
        "--damping": settings.damping,
        "--act-order": settings.act_order,
        "--token-weights": settings.token_weights,
        "--device": settings.device,
        "--calibration-precision": settings.precision,
        "sweeps": SWEEPS,
        "fit": _FIT,
        "--equalize": hashlib.sha256(repr(_factors(job)).encode()).hexdigest() if job.factors else None,
        "versions of torch and transformers": [torch.__version__, transformers.__version__],
    }


def _factors(job: Calibration) -> list[tuple[str, list[bytes | None]]]:
    """What tensors are multiplied by, as bytes."""
    return [
        (name, [None if x is None else x.tobytes() for x in (of_tensor.rows, of_tensor.columns)])
        for name, of_tensor in sorted(job.factors.items())
    ]


_FIT = 2
"""To be raised where the last digits of a fit change: layers of two versions are not mixed in a file."""


def _waiting_samples(width: int, widest: int, length: int) -> int:
    """Samples whose forward passes may wait in memory: hidden states and the inputs of a module, in two models.

    Args:
        width: of hidden states.
        widest: inputs of the widest module.
        length: tokens of a sample.
    """
    floats = max(6 * width, 2 * width + widest)  # within attention also queries, keys, values and their product
    return _WAITING_BYTES // (2 * 4 * length * floats)


def _drift_damping(inputs: int, tokens: int) -> float:
    """Hessian damping, as a fraction of the mean diagonal, of the fit to the unquantized model's outputs.

    It is large, because this fit overfits few samples far more than compensation does, and larger, the fewer tokens
    there are per input (bench/NOTES.md).
    """
    return max(1.0, 11.0 * inputs / tokens)


@dataclass(frozen=True)
class Unquantized:
    """The same layer of the unquantized model.

    Attributes:
        layer: with unquantized weights.
        hidden: its inputs, float32 [samples, tokens, width].
    """

    layer: Layer
    hidden: torch.Tensor


@dataclass(frozen=True)
class _Fits:
    """What the weights of linear modules that share an input are fitted and encoded by.

    Attributes:
        factors: by the moments (their number) and the type.
        drifts: by the moments.
    """

    factors: Mapping[tuple[int, TensorType], Factor]
    drifts: Sequence[Drift]


@dataclass(frozen=True)
class _Encoder:
    """Encodes the tensors of one layer.

    Attributes:
        token_weights: of each module, float32 [samples, tokens]; None: all tokens count the same.
    """

    source: Path
    settings: CalibrationSettings
    done: Callable[[str, Target | None], None]
    original: Unquantized
    token_weights: Mapping[str, torch.Tensor] | None

    def _compensated(self, target: Target, rows: Floats, wanted: Floats, factored: Factor) -> tuple[Encoded, Floats]:
        """Encode weights with compensation of errors.

        Args:
            rows: float32 [rows, n], the weights, which decide about outliers.
            wanted: float32 [rows, n], the weights fitted to the inputs of the quantized model.

        Returns:
            The tensor, and its decoded weights with outliers, float32 [rows, n].

        Raises:
            UserError: a weight is too large for the type.
        """
        outliers = None
        try:
            if isinstance(target.rule, Quantile):
                outliers = native.select_outliers(rows, target.rule.value, self.settings.threads)
            elif target.rule is not None:
                count, threads = target.rule.count(rows.size), self.settings.threads
                outliers = choose(rows, target.qtype, count, factored.importance, threads=threads)
            data, decoded, outliers, _ = native.gptq(
                wanted, target.qtype, factored.order, factored.feedback, factored.curvature, factored.hessian,
                SWEEPS, outliers, self.settings.threads,
            )  # fmt: skip
        except TooLargeWeightError as error:
            raise UserError(too_large_message(self.source, target.name, error.position, target.qtype)) from error
        return Encoded(data, outliers), decoded

    def _fits(
        self, workers: Workers, moments: Sequence[Moments], targets: Sequence[Target], hidden: torch.Tensor
    ) -> _Fits:
        """Factor the Hessians of linear modules that share an input, all at once: each takes one worker.

        On workers, which have one thread: sums depend on the number of threads, and this thread has any.

        Args:
            moments: of all targets, or of each.
        """
        damping = _drift_damping(len(moments[0].hessian), hidden.shape[0] * hidden.shape[1])
        drifts = [partial(drift, m.hessian, m.drift, damping) for m in moments]
        keys = dict.fromkeys(
            (i if len(moments) > 1 else 0, target.qtype)
            for i, target in enumerate(targets)
            if target.shape[-1] == len(moments[0].hessian) and target.shape[-1] % native.PANEL == 0
        )
        factors = [
            partial(factor, moments[own].hessian, qtype, self.settings.damping, self.settings.act_order)
            for own, qtype in keys
        ]
        made: list[Any] = workers.map(lambda call: call(), [*factors, *drifts])
        return _Fits(dict(zip(keys, made, strict=False)), made[len(factors) :])

    def _group(
        self, layer: Layer, names: Sequence[str], targets: Mapping[str, Target], hidden: torch.Tensor
    ) -> dict[str, Encoded]:
        """Encode the tensors of linear modules that share an input."""
        self.done(", ".join(targets[name].name.split(".")[2] for name in names), None)
        weights = [None] if self.token_weights is None else [self.token_weights.get(name) for name in names]
        matrix = _drifting_matrix(layer, names)
        moments = layer.moments(names[0], hidden, self.original.layer, self.original.hidden, weights, matrix)
        _check_finite(moments[0].hessian, targets[names[0]])
        fits = self._fits(layer.workers, moments, [targets[name] for name in names], hidden)
        found = {}
        for i, name in enumerate(names):
            target, module = targets[name], layer.module.get_submodule(name)
            own = i if len(moments) > 1 else 0
            hessian = moments[own].hessian
            rows = target.read()
            if rows.shape[1] % native.PANEL:
                diagonal = hessian.diagonal().cpu().numpy().copy()
                why_not = f"its rows of {rows.shape[1]} are no multiple of {native.PANEL}"
                found[target.name] = _block_encoded(target, diagonal, why_not)
                self.done("", target)
                continue
            places = find_linear_rows(module, rows)
            if places is None:
                importance = hessian.diagonal().cpu().numpy().copy() if rows.shape[1] == len(hessian) else None
                why_not = f"its rows are not those of {name} in transformers"
                found[target.name] = _block_encoded(target, importance, why_not)
            else:
                wanted = rows + fits.drifts[own].correction(rows, places, layer.workers)
                found[target.name], decoded = self._compensated(target, rows, wanted, fits.factors[own, target.qtype])
                assign_linear(layer.module, name, decoded, places, layer.workers.device)
            self.done("", target)
        return found

    def layer(
        self, layer: Layer, modules: Mapping[str, str], targets: Sequence[Target], hidden: torch.Tensor
    ) -> dict[str, Encoded]:
        """Encode all targets of a layer, in the order in which the layer uses them.

        Args:
            modules: the tensors that should be the weights of linear modules, by the modules' names.
            hidden: inputs of the layer in the quantized model, float32 [samples, tokens, width].

        Returns:
            The encoded tensors, by name.
        """
        reached = _reached(modules, targets)
        found: dict[str, Encoded] = {}
        for names in layer.groups(reached, hidden[:1]):
            found.update(self._group(layer, names, reached, hidden))
        rest = [t for t in targets if t.name not in found]
        importance = _expert_importance(layer, hidden, rest[0]) if rest else None
        for target in rest:
            fits = importance is not None and importance.size == target.shape[-1] and "down" not in target.name
            why_not = "no linear module of transformers is this tensor"
            found[target.name] = _block_encoded(target, importance if fits else None, why_not)
            self.done("", target)
        return found


def _drifting_matrix(layer: Layer, names: Sequence[str]) -> torch.Tensor | None:
    """The matrix whose outputs' drift is cheaper than that of its inputs, float32 [rows, n]; None where it is not."""
    matrix = linear_weight(layer.module.get_submodule(names[0]))
    return matrix if drifts_through_outputs(len(names), *matrix.shape) else None


def _reached(modules: Mapping[str, str], targets: Sequence[Target]) -> dict[str, Target]:
    """Those of the targets that should be the weights of linear modules, by the modules' names."""
    by_name = {t.name: t for t in targets}
    return {module: by_name[tensor] for module, tensor in modules.items() if tensor in by_name}


def _block_encoded(target: Target, importance: Floats | None, why_not: str) -> Encoded:
    kind = "unweighted" if importance is None else "weighted by the mean squares of its inputs"
    return Encoded(*target.encode_blocks(importance), f"{why_not}: encoder search, {kind}")


def _check_finite(hessian: torch.Tensor, target: Target) -> None:
    if not bool(torch.isfinite(hessian).all()):
        raise UserError(
            f"{target.name}: its inputs are NaN or infinite when the model reads the calibration text. {INSTEAD}"
        )


def _expert_importance(layer: Layer, hidden: torch.Tensor, target: Target) -> Floats | None:
    """Mean squares of the inputs of the module that has the weights of all experts, float32 [n]; None without one.

    Args:
        target: one of the tensors, for messages.

    Raises:
        UserError: inputs are NaN or infinite.
    """
    stacks = {name.rpartition(".")[0] for name, p in layer.module.named_parameters() if p.dim() == 3}
    if len(stacks) != 1:
        return None
    hessian = layer.hessian(stacks.pop(), hidden)
    _check_finite(hessian, target)
    return np.asarray(hessian.diagonal().cpu().numpy().copy())


def _in_layers(targets: Sequence[Target], depth: int) -> tuple[defaultdict[int, list[Target]], dict[str, Finished]]:
    """The targets of each of the `depth` decoder layers that transformers runs, and the others with the reason."""
    by_layer: defaultdict[int, list[Target]] = defaultdict(list)
    outside = {}
    for target in targets:
        if target.layer is not None and target.layer < depth:
            by_layer[target.layer].append(target)
        else:
            why_not = "it belongs to no decoder layer"
            if target.layer is not None:
                why_not = f"its layer is behind the {depth} that transformers runs (multi-token prediction)"
            outside[target.name] = Finished(None, f"{why_not}: encoder search")
    return by_layer, outside


def _read_samples(settings: CalibrationSettings, tokenizer: Any, widest: int) -> tuple[Samples, str]:
    """The samples, and a hash of the calibration texts, each of which is read once.

    Args:
        tokenizer: of transformers.
        widest: inputs of the widest layer.
    """
    wanted = settings.samples or enough_samples(widest, settings.length)
    files = {source: read_files(source) for source in settings.texts}
    texts = digest(file for source in settings.texts for file in files[source])
    sources = [(source, tokens_of(files.pop(source), tokenizer)) for source in dict.fromkeys(settings.texts)]
    return make_samples(tokenizer, sources, wanted, settings.length), texts


def with_precision(job: Calibration) -> Calibration:
    """The same with the precision that "auto" means on its device, for all that is done with the job.

    Raises:
        UserError: torch cannot use the device.
    """
    device = parse_device(job.settings.device)
    return replace(job, settings=replace(job.settings, precision=precision.chosen(job.settings.precision, device)))


def calibrate(job: Calibration, weights: Weights, recipe: int) -> dict[str, Finished]:
    """Encode all targets that belong to decoder layers; layers that are finished in `job.folder` are not repeated.

    Args:
        job: of `with_precision`.
        weights: of the model.
        recipe: of the encoder.

    Returns:
        All targets by name; those outside of the decoder layers have a reason only.

    Raises:
        UserError: the model cannot be run, the text is too short, or the folder holds layers of another job.
    """
    settings = job.settings
    device = parse_device(settings.device)
    job.progress("reading the calibration text", 0, 0)
    widest = max((t.shape[-1] for t in job.targets if t.layer is not None), default=1)
    config = weights.config()
    check_length(config, settings.length, job.source)
    samples, texts = _read_samples(settings, weights.tokenizer(), widest)
    skeleton = make_skeleton(config, job.source)
    checkpoint = Checkpoint(job.folder, _fingerprint(job, texts, samples.count, recipe), job.restart)
    depth = len(skeleton.layers)
    by_layer, outside = _in_layers(job.targets, depth)
    workers = Workers(settings.threads or os.cpu_count() or 1, device)
    total = sum(t.n_weights for group in by_layer.values() for t in group)
    done = 0

    def report(i: int, what: str, target: Target | None) -> None:
        nonlocal done
        done += target.n_weights if target else 0
        if what:
            job.progress(f"layer {i + 1} of {depth}: {what}", done, total)

    try:
        with torch.inference_mode():
            inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), samples.tokens)
            first = checkpoint.finished()
            unquantized = inputs.hidden.clone()
            weights_of = _token_weights(job, skeleton, weights, inputs, samples, workers, first)
            if 0 < first < depth:
                inputs.hidden, unquantized = checkpoint.activations(first - 1)
            waiting = _waiting_samples(inputs.hidden.shape[-1], widest, settings.length)
            done = sum(t.n_weights for i in range(first) for t in by_layer[i])
            for i in range(first, depth):
                report(i, "reading weights", None)
                layer = load_layer(skeleton, weights, i, inputs, workers, precision.DTYPES[settings.precision])
                modules = tensor_names(skeleton, i, job.architecture)
                original = Unquantized(replace(layer, module=copy.deepcopy(layer.module)), unquantized)
                encoder = _Encoder(job.source, settings, partial(report, i), original, weights_of(i))
                last = i + 1 == depth
                with (
                    precision.linear_in(layer.dtype, layer.module, original.layer.module),
                    layer.passing(inputs.hidden, waiting),
                    original.layer.passing(unquantized, waiting),
                ):
                    if i == first:
                        left = depth - first
                        _say_estimate(job, layer, _reached(modules, by_layer[i]), inputs.hidden, waiting, left)
                    found = encoder.layer(layer, modules, by_layer[i], inputs.hidden)
                    if not last:
                        report(i, "activations", None)
                        layer.advance(inputs.hidden)
                        original.layer.advance(unquantized)
                release(layer.module)
                checkpoint.save(i, found, None if last else (inputs.hidden, unquantized))
    finally:
        workers.close()
    return _inside(checkpoint, by_layer, depth) | outside


def _inside(checkpoint: Checkpoint, by_layer: Mapping[int, Sequence[Target]], depth: int) -> dict[str, Finished]:
    """The targets of finished layers."""
    reasons = {name: why for i in range(depth) for name, why in checkpoint.why_not(i).items()}
    return {
        t.name: Finished(partial(checkpoint.read, i, t.name), reasons.get(t.name))
        for i, group in by_layer.items()
        for t in group
    }


def _say_estimate(
    job: Calibration, layer: Layer, targets: Mapping[str, Target], hidden: torch.Tensor, waiting: int, left: int
) -> None:
    """Say how long `left` layers like this one take."""
    seconds = duration_text(left * layer_seconds(layer, targets, hidden, waiting))
    samples, length, _ = hidden.shape
    what = f"{left} layers, {samples} samples of {length} tokens, {job.settings.precision}"
    job.progress(f"about {seconds}: {what}", 0, NOTE)


def _token_weights(
    job: Calibration, skeleton: Skeleton, weights: Weights, inputs: LayerInputs, samples: Samples, workers: Workers,
    first: int,
) -> Callable[[int], Mapping[str, torch.Tensor] | None]:  # fmt: skip
    """Gives the weights of all tokens for the modules of a layer, by their names; None where all count the same.

    Args:
        first: the first layer that is not finished.
    """
    if not job.settings.token_weights or first == len(skeleton.layers):
        return lambda _: None
    path = token_weights.compute(
        job.folder, skeleton, lambda names: weights.fill(skeleton, names),
        lambda i: load_layer(skeleton, weights, i, inputs, workers),
        lambda i: _reached(tensor_names(skeleton, i, job.architecture), job.targets),
        inputs.hidden, samples.tokens, lambda step: job.progress(step, 0, 0),
    )  # fmt: skip
    return partial(token_weights.read, path)
