"""How much each token counts in the moments of a matrix: by how much the model's loss depends on its output there.

The loss changes with the error e of a matrix's output by about (g . e)^2 / 2 for each token, where g is the gradient of
the loss with respect to the output. The mean of the squares of g over the outputs weighs the token (GuidedQuant, arXiv
2505.07004, with one group of outputs); rows stay independent, and a matrix has one weight for each token.

Memory holds one decoder layer and a batch of samples; the inputs of all layers are on the disk meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gguf_bof4.encoders.gptq.layer import Layer
from gguf_bof4.encoders.gptq.model import Skeleton, fill_with_tied_output, only_behind_layers, release
from gguf_bof4.paths import atomic_path

LoadLayer = Callable[[int], Layer]
"""Gives a decoder layer with its weights."""

_NAME = "token-weights.safetensors"


@contextmanager
def _differentiable() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _ordinary(value: Any) -> Any:
    """Tensors that autograd takes, of nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(_ordinary(item) for item in value)
    if isinstance(value, dict):
        return {key: _ordinary(item) for key, item in value.items()}
    return value


def _loss_gradients(
    skeleton: Skeleton, fill: Callable[[list[str]], None], tokens: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Gradients of the loss of each sample with respect to the last layer's output, float32 [samples, tokens, width].

    Args:
        fill: sets the parameters of these names.
        tokens: int64 [samples, length].
        hidden: outputs of the last layer, float32 [samples, tokens, width].
    """
    prefix = f"{skeleton.layers_name}."
    outside = [name for name, _ in skeleton.model.named_parameters() if prefix not in name]
    fill_with_tied_output(skeleton, fill, outside)
    gradients = torch.empty_like(hidden)
    try:
        for i, row in enumerate(tokens):
            given = hidden[i : i + 1].clone().requires_grad_()
            with only_behind_layers(skeleton, given):
                logits = skeleton.model(input_ids=row[None], use_cache=False).logits[0]
            loss = nn.functional.cross_entropy(logits[:-1].float(), row[1:], reduction="sum")
            (gradients[i : i + 1],) = torch.autograd.grad(loss, given)
    finally:
        release(skeleton.model)
    return gradients


def _back_through(
    layer: Layer, names: Iterable[str], hidden: torch.Tensor, gradients: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Weights of all tokens for the modules of a layer, float32 [samples, tokens].

    Args:
        hidden: inputs of the layer, float32 [samples, tokens, width].
        gradients: with respect to its outputs; become those with respect to its inputs.
    """
    names = list(names)
    found = {name: torch.zeros(hidden.shape[:2]) for name in names}
    place = _Outputs()

    def note(name: str, _: nn.Module, __: Any, output: torch.Tensor) -> None:
        place.outputs[name] = output

    def step(i: int) -> None:
        with _differentiable():
            place.outputs = {}
            given = hidden[i : i + 1].clone().requires_grad_()
            made = layer.output(given)
            outputs = place.outputs
            own, *of_modules = torch.autograd.grad(made, [given, *outputs.values()], gradients[i : i + 1].clone())
            for name, gradient in zip(outputs, of_modules, strict=True):
                found[name][i] = gradient.reshape(hidden.shape[1], -1).square().mean(dim=1)
            gradients[i : i + 1] = own

    hooks = [layer.module.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    try:
        layer.workers.map(step, range(len(hidden)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: weights / weights.mean().clamp_min(1e-30) for name, weights in found.items()}


class _Outputs(threading.local):
    """Outputs of modules for the sample that this thread runs."""

    outputs: dict[str, torch.Tensor]


def compute(
    folder: Path,
    skeleton: Skeleton,
    fill: Callable[[list[str]], None],
    load_layer: LoadLayer,
    modules: Callable[[int], Iterable[str]],
    first: torch.Tensor,
    tokens: torch.Tensor,
    report: Callable[[str], None],
) -> Path:
    """A file with the weights of all tokens, in a work folder; it is not made again.

    Args:
        folder: for it, and for the inputs of all layers meanwhile.
        fill: sets the parameters of these names; outside of inference mode.
        load_layer: gives a layer with its weights.
        modules: names of the linear modules of a layer.
        first: inputs of the first layer, float32 [samples, tokens, width].
        tokens: int64 [samples, length].
    """
    target = folder / _NAME
    if target.is_file():
        return target
    depth = len(skeleton.layers)
    stored = [folder / f"inputs-{i:05d}.safetensors" for i in range(depth)]
    with _differentiable():
        hidden, tokens = first.clone(), tokens.clone()
        for i in range(depth):
            report(f"token weights, forward: layer {i + 1} of {depth}")
            save_file({"hidden": hidden}, stored[i])
            layer = load_layer(i)
            layer.arguments = _ordinary(layer.arguments)
            with torch.no_grad():
                layer.advance(hidden)
            release(layer.module)
        report("token weights: loss")
        gradients = _loss_gradients(skeleton, fill, tokens, hidden)
        weights: dict[str, torch.Tensor] = {}
        for i in reversed(range(depth)):
            report(f"token weights, backward: layer {i + 1} of {depth}")
            hidden = load_file(stored[i])["hidden"]
            layer = load_layer(i)
            layer.arguments = _ordinary(layer.arguments)
            found = _back_through(layer, modules(i), hidden, gradients)
            weights |= {f"{i}.{name}": values.contiguous() for name, values in found.items()}
            release(layer.module)
            stored[i].unlink()
    with atomic_path(target) as partial_file:
        save_file(weights, partial_file)
    return target


def read(path: Path, layer: int) -> Mapping[str, torch.Tensor]:
    """The weights of the tokens for the modules of a layer, by their names, float32 [samples, tokens]."""
    prefix = f"{layer}."
    return {name.removeprefix(prefix): w for name, w in load_file(path).items() if name.startswith(prefix)}
