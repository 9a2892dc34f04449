"""Parameters of a model, read some at a time from a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import torch

from gguf_bof4 import native
from gguf_bof4.channel_factors import Factors
from gguf_bof4.encoders.gptq.model import INSTEAD, Skeleton, assign, fill_with_tied_output, is_linear, make_skeleton
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model, Tensor


class Weights(Protocol):
    """Reads parameters of a model."""

    def config(self) -> Any:
        """The configuration of the model, of transformers."""

    def tokenizer(self) -> Any:
        """Its tokenizer, of transformers."""

    def fill(self, skeleton: Skeleton, names: Sequence[str]) -> None:
        """Give parameters their values, in float32.

        Raises:
            UserError: the source does not have one of them.
        """


def _check_filled(skeleton: Skeleton, names: Iterable[str]) -> None:
    missing = [name for name in names if skeleton.model.get_parameter(name).is_meta]
    if missing:
        raise UserError(
            f"{skeleton.path} has no weights for {', '.join(missing[:3])}{' and more' if missing[3:] else ''} of "
            f"{type(skeleton.model).__name__}. {INSTEAD}"
        )


def _tokenizer(folder: Path, **where: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **where)
    except (ValueError, KeyError, OSError, ImportError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder / where.get('gguf_file', '')}: transformers cannot load the tokenizer ({reason}). Add a "
            f"tokenizer.json to a Hugging Face folder, or install the package that it needs. {INSTEAD}"
        ) from error


class FolderWeights:
    """The weights of a Hugging Face folder.

    Args:
        folder: checked.
        files: those that hold the weights, safetensors or PyTorch's own.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder = folder
        self._state: dict[str, Any] = {}
        for path in files:
            self._state.update(_lazy_state(path))

    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self._folder, local_files_only=True)

    def tokenizer(self) -> Any:
        return _tokenizer(self._folder, local_files_only=True)

    def _stored_name(self, name: str, prefix: str) -> str | None:
        """The name of a parameter in the files: a model without its head is stored without the prefix."""
        candidates = (name, name.removeprefix(prefix), prefix + name)
        return next((n for n in candidates if n in self._state), None)

    def fill(self, skeleton: Skeleton, names: Sequence[str]) -> None:
        prefix = f"{skeleton.model.base_model_prefix}."
        stored = {name: self._stored_name(name, prefix) for name in names}
        if None in stored.values():
            self._convert(skeleton, names)
        else:
            for name, place in stored.items():
                assign(skeleton.model, name, self._state[str(place)][:])
        _check_filled(skeleton, names)

    def _convert(self, skeleton: Skeleton, names: Sequence[str]) -> None:
        """Have transformers rename and merge parameters that it stores in another form than it runs (experts)."""
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import convert_and_load_state_dict_in_model
            from transformers.modeling_utils import LoadStateDictConfig
        except ImportError:
            return
        # of a layer's parameters all that have its number; of the rest all that have none
        leaf = re.escape(skeleton.layers_name.rpartition(".")[2])
        numbers = {m[1] if (m := re.search(rf"\b{leaf}\.(\d+)\.", name)) else None for name in names}
        state = {
            name: values
            for name, values in self._state.items()
            if (m[1] if (m := re.search(rf"\b{leaf}\.(\d+)\.", name)) else None) in numbers
        }
        settings = LoadStateDictConfig(
            weight_mapping=get_model_conversion_mapping(skeleton.model), device_map={"": "cpu"}, dtype=torch.float32
        )
        convert_and_load_state_dict_in_model(skeleton.model, state, settings)


def _lazy_state(path: Path) -> dict[str, Any]:
    """Tensors of a file, or objects that give the tensor when they are indexed with [:]."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        file: Any = safe_open(path, framework="pt")
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    return dict(torch.load(path, map_location="cpu", mmap=True, weights_only=True))


class GgufWeights:
    """The weights of a GGUF file of an architecture that transformers knows in this form.

    Args:
        model: open.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._architecture = str(model.value("general.architecture"))
        self._tensors = {t.name: t for t in model.tensors}
        self._names: dict[str, list[Tensor]] | None = None

    def config(self) -> Any:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self._model.path.parent, gguf_file=self._model.path.name)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                f"{self._model.path}: transformers cannot run a GGUF file of the architecture "
                f"{self._architecture!r} ({error}). Convert the Hugging Face folder, or use --encoder search"
            ) from error
        head = self._model.integer(f"{self._architecture}.attention.key_length")
        if head is not None and getattr(config, "head_dim", None) is not None:
            config.head_dim = head  # transformers takes it from the file for some architectures only
        return config

    def tokenizer(self) -> Any:
        return _tokenizer(self._model.path.parent, gguf_file=self._model.path.name)

    def whole(self) -> Skeleton:
        """The model with all of its parameters, in float32.

        Raises:
            UserError: transformers cannot run it.
        """
        skeleton = make_skeleton(self.config(), self._model.path)
        names = [name for name, _ in skeleton.model.named_parameters()]
        fill_with_tied_output(skeleton, lambda some: self.fill(skeleton, some), names)
        return skeleton

    def fill(self, skeleton: Skeleton, names: Sequence[str]) -> None:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        config = skeleton.model.config
        processor = TENSOR_PROCESSORS.get(self._architecture, TensorProcessor)(config=config.to_dict())
        if self._names is None:
            found = get_gguf_hf_weights_map(skeleton.model, processor, self._architecture, config.num_hidden_layers)
            self._names = {}
            for stored, name in found.items():
                if stored in self._tensors:
                    self._names.setdefault(name, []).append(self._tensors[stored])
        keys = {t.name: name for name, tensors in self._names.items() for t in tensors}
        keys |= {stored.removesuffix(".weight"): name for stored, name in keys.items()}
        for name in names:
            stacked: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
            for tensor in self._names.get(name, []):
                weights = self._model.read_weights(tensor, native.dequantize).reshape(tensor.shape)
                made = processor.process(
                    weights=weights, name=tensor.name, tensor_key_mapping=keys, parsed_parameters=stacked
                )
                if made.name is not None:
                    assign(skeleton.model, name, torch.from_numpy(np.ascontiguousarray(made.weights)))
            if name in stacked["tensors"]:
                assign(skeleton.model, name, stacked["tensors"][name])
        _check_filled(skeleton, names)


_ONE_LESS = frozenset({"gemma", "gemma2", "gemma3"})
"""Architectures that store the weights of norms less one, where GGUF files have them whole."""


class EqualizedWeights:
    """The weights of a model times factors of the rows and columns of its tensors.

    Args:
        weights: without the factors.
        factors: by the names of the tensors in a GGUF file.
        architecture: general.architecture.
    """

    def __init__(self, weights: Weights, factors: Mapping[str, Factors], architecture: str) -> None:
        self._weights, self._factors, self._architecture = weights, factors, architecture

    def config(self) -> Any:
        return self._weights.config()

    def tokenizer(self) -> Any:
        return self._weights.tokenizer()

    def fill(self, skeleton: Skeleton, names: Sequence[str]) -> None:
        self._weights.fill(skeleton, names)
        for name in names:
            if (factors := self._of(skeleton, name)) is not None:
                values = skeleton.model.get_parameter(name).detach().numpy()
                is_norm = values.ndim == 1 and name.endswith(".weight")
                offset = np.float32(1 if is_norm and self._architecture in _ONE_LESS else 0)
                made = factors.applied(np.atleast_2d(values + offset if offset else values)) - offset
                assign(skeleton.model, name, torch.from_numpy(made.reshape(values.shape)))

    def _of(self, skeleton: Skeleton, name: str) -> Factors | None:
        """The factors of a parameter."""
        match = re.fullmatch(rf"{re.escape(skeleton.layers_name)}\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            return None
        tensor = tensor_name(skeleton, int(match[1]), match[2], self._architecture)
        return None if tensor is None else self._factors.get(f"{tensor.removesuffix('.weight')}.{match[3]}")


@functools.cache
def _name_map(architecture: str, depth: int) -> Any:
    """gguf's map from names of modules to names of tensors; None where it does not know the architecture."""
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(known[architecture], depth) if architecture in known else None


def tensor_name(skeleton: Skeleton, layer: int, module: str, architecture: str) -> str | None:
    """The name of the GGUF tensor that should be the weight of a module of a decoder layer; None where there is none.

    Args:
        module: its name within the layer.
        architecture: general.architecture.
    """
    if (name_map := _name_map(architecture, len(skeleton.layers))) is None:
        return None
    # in models with other modalities the decoder has a longer prefix, which the map lacks
    base = name_map.get_name(f"model.layers.{layer}.{module}") or name_map.get_name(
        f"{skeleton.layers_name}.{layer}.{module}"
    )
    return None if base is None else f"{base}.weight"


def tensor_names(skeleton: Skeleton, layer: int, architecture: str) -> dict[str, str]:
    """Names of the GGUF tensors of a decoder layer's linear modules, by the modules' names within the layer.

    Args:
        architecture: general.architecture.
    """
    linear = [name for name, module in skeleton.layers[layer].named_modules() if is_linear(module)]
    found = {name: tensor_name(skeleton, layer, name, architecture) for name in linear}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
