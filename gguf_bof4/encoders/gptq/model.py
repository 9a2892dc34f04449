"""A language model of transformers without its weights, and the inputs of its first decoder layer."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gguf_bof4.encoders.gptq.matching import find_rows
from gguf_bof4.errors import UserError

Floats = npt.NDArray[np.float32]

INSTEAD = "Use --encoder search, which does not run the model"


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made here have parameters without storage; their buffers, rotary frequencies for example, are real."""
    register = nn.Module.register_parameter

    def register_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    patched: Any = nn.Module  # torch.device("meta") would also apply to buffers
    patched.register_parameter = register_meta
    try:
        yield
    finally:
        patched.register_parameter = register


def release(module: nn.Module) -> None:
    """Free the storage of all parameters of a module."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not parameter.is_meta:
                part._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)


def assign(model: nn.Module, name: str, values: torch.Tensor) -> None:
    """Set a parameter, in float32.

    Raises:
        UserError: they are of another shape.
    """
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    wanted = module.get_parameter(leaf).shape
    if wanted != values.shape:
        raise UserError(
            f"{name} has the shape {tuple(values.shape)}, where transformers wants {tuple(wanted)}: its configuration "
            f"does not fit the weights. {INSTEAD}"
        )
    module._parameters[leaf] = nn.Parameter(values.to(torch.float32).contiguous(), requires_grad=False)


def is_linear(module: nn.Module) -> bool:
    """Does a module multiply by a matrix: nn.Linear, or the Conv1D of GPT-2, which stores it transposed?"""
    return isinstance(module, (nn.Linear, Conv1D))


def linear_weight(module: nn.Module) -> torch.Tensor:
    """The matrix of a linear module, float32 [outputs, inputs]."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def find_linear_rows(module: nn.Module, tensor: Floats) -> npt.NDArray[np.int64] | None:
    """For each row of a tensor, float32 [rows, n], that of a linear module that is the same; None as `find_rows`."""
    return find_rows(tensor, np.ascontiguousarray(linear_weight(module).cpu().numpy()))


def assign_linear(
    model: nn.Module, name: str, tensor: Floats, places: npt.NDArray[np.int64], device: torch.device
) -> None:
    """Set the matrix of the linear module of this name, in float32.

    Args:
        tensor: float32 [rows, n].
        places: for each of its rows that of the module, int64 [rows].
    """
    ordered = np.empty_like(tensor)
    ordered[places] = tensor
    rows = torch.from_numpy(ordered).to(device)
    transposed = isinstance(model.get_submodule(name), Conv1D)
    assign(model, f"{name}.weight", rows.T if transposed else rows)


@dataclass
class Skeleton:
    """A model whose parameters have no storage.

    Attributes:
        model: the whole of it.
        decoder: the part from tokens to hidden states.
        decoder_name: its path in the model.
        layers_name: the path of the list of decoder layers in the model.
        path: the source, for messages.
    """

    model: Any
    decoder: Any
    decoder_name: str
    layers_name: str
    path: Path

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.model.get_submodule(self.layers_name)
        assert isinstance(layers, nn.ModuleList)
        return layers


def check_length(config: Any, length: int, path: Path) -> None:
    """Check that the model has positions for samples of this length.

    Args:
        config: of transformers.
        length: tokens in a sample.
        path: of the source, for messages.

    Raises:
        UserError: it has fewer; the limit is named.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < length:
        raise UserError(
            f"{path}: the model reads at most {longest} tokens (max_position_embeddings), but samples have {length}: "
            f"give --calibration-length {longest} or less"
        )


def _from_config(config: Any, attentions: Sequence[str]) -> Any:
    """The model with the first of some implementations of attention that transformers has for it.

    Raises:
        ValueError, KeyError, ImportError: transformers has the model with none of them, or not at all.
    """
    from transformers import AutoModelForCausalLM

    *preferred, last = attentions
    for attention in preferred:
        with contextlib.suppress(ValueError), _parameters_on_meta():
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    with _parameters_on_meta():
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=last)


def make_skeleton(config: Any, path: Path) -> Skeleton:
    """Build a model from its configuration; nothing is read.

    Raises:
        UserError: transformers has no language model of this kind, or it is not a stack of decoder layers.
    """
    text = config.get_text_config()
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"{path}: the weights are quantized already, so the model cannot be run layer by layer. {INSTEAD}"
        )
    # the fused kernel of torch has no soft cap for attention scores
    capped = getattr(text, "attn_logit_softcapping", None)
    try:
        model = _from_config(config, ("eager",) if capped else ("sdpa", "eager"))
    except (ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{path}: transformers cannot run this model as a language model ({error}). {INSTEAD}"
        ) from error
    model.eval()
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    names = {module: name for name, module in model.named_modules()}
    depth = text.num_hidden_layers
    stacks = [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if decoder not in names or len(stacks) != 1:
        raise UserError(f"{path}: {type(model).__name__} is no stack of {depth} decoder layers. {INSTEAD}")
    return Skeleton(model, decoder, names[decoder], names[stacks[0]], path)


def fill_with_tied_output(skeleton: Skeleton, fill: Callable[[list[str]], None], names: Sequence[str]) -> None:
    """Give parameters their values; an output matrix that is the embeddings is stored once.

    Args:
        fill: sets the parameters of these names.
        names: of parameters, the embeddings among them.
    """
    model = skeleton.model
    output = model.get_output_embeddings()
    if output is None or not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        fill(list(names))
        return
    tied = {id(parameter) for parameter in output.parameters()}
    fill([name for name in names if id(model.get_parameter(name)) not in tied])
    output._parameters["weight"] = model.get_input_embeddings().weight


class _Replacement(nn.Module):
    """Replaces a decoder layer, whose attributes it has."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["replaced"] = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["replaced"], name)


class _Given(_Replacement):
    """Replaces a decoder layer: gives hidden states that are known."""

    def __init__(self, layer: nn.Module, hidden: torch.Tensor) -> None:
        super().__init__(layer)
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.hidden


@contextmanager
def _layers_replaced(skeleton: Skeleton, replacements: Sequence[nn.Module]) -> Iterator[None]:
    layers = skeleton.layers
    originals = list(layers)
    try:
        for i, replacement in enumerate(replacements):
            layers[i] = replacement
        yield
    finally:
        for i, layer in enumerate(originals):
            layers[i] = layer


@contextmanager
def only_behind_layers(skeleton: Skeleton, hidden: torch.Tensor) -> Iterator[None]:
    """The model computes nothing but what follows its decoder layers, from these outputs of the last one.

    Args:
        hidden: float32 [1, tokens, width].
    """
    with _layers_replaced(skeleton, [_Given(layer, hidden) for layer in skeleton.layers]):
        yield


class _Recorder(_Replacement):
    """Replaces a decoder layer: records its arguments and returns the hidden states unchanged."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.signature = inspect.signature(layer.forward)
        self.arguments: dict[str, Any] = {}
        self.hidden: torch.Tensor | None = None

    def forward(self, *values: Any, **arguments: Any) -> torch.Tensor:
        # some models pass masks by position: the layer is called with all arguments but the first by name
        hidden: torch.Tensor
        (_, hidden), *others = self.signature.bind(*values, **arguments).arguments.items()
        self.hidden, self.arguments = hidden, {}
        for name, value in others:
            is_rest = self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            self.arguments.update(value if is_rest else {name: value})
        return hidden


@dataclass
class LayerInputs:
    """Arguments of the decoder layers.

    Attributes:
        hidden: inputs of the first layer, float32 [samples, tokens, width].
        arguments: of each layer, its keyword arguments, which are the same for all samples: masks and positions.
    """

    hidden: torch.Tensor
    arguments: list[dict[str, Any]]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    known: set[tuple[int, int]] = set()  # layers share masks and positions: compare them once
    for a, b in zip(_tensors(one), _tensors(other), strict=True):
        if (id(a), id(b)) not in known and not torch.equal(a, b):
            return False
        known.add((id(a), id(b)))
    return True


def first_inputs(skeleton: Skeleton, fill: Callable[[list[str]], None], tokens: torch.Tensor) -> LayerInputs:
    """Run the part of the model before its decoder layers.

    Args:
        fill: sets the parameters of these names; they are freed afterwards.
        tokens: int64 [samples, length].

    Raises:
        UserError: layers get more than hidden states, masks and positions.
    """
    prefix = f"{skeleton.layers_name}."
    within = f"{skeleton.decoder_name}." if skeleton.decoder_name else ""
    fill([name for name, _ in skeleton.model.named_parameters() if name.startswith(within) and prefix not in name])
    recorders = [_Recorder(layer) for layer in skeleton.layers]
    hidden: list[torch.Tensor] = []
    first: list[dict[str, Any]] = []
    try:
        with _layers_replaced(skeleton, recorders):
            for row in tokens:
                skeleton.decoder(input_ids=row[None], use_cache=False)
                assert recorders[0].hidden is not None
                hidden.append(recorders[0].hidden)
                arguments = [recorder.arguments for recorder in recorders]
                first = first or arguments
                if not _same(first, arguments):
                    raise UserError(
                        f"{skeleton.path}: the layers of {type(skeleton.model).__name__} need more than hidden states, "
                        f"masks and positions, so they cannot be run one by one. {INSTEAD}"
                    )
    finally:
        release(skeleton.model)
    return LayerInputs(torch.cat(hidden), first)
