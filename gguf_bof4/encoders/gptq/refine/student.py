"""The quantized model as transformers runs it, with scales that can be trained, and what the unquantized model says.

Memory holds the whole quantized model as codes, embeddings and output matrix in float32, and one unquantized layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from gguf_bof4.encoders.encoder import Encoded, Target
from gguf_bof4.encoders.gptq.layer import Workers, load_layer
from gguf_bof4.encoders.gptq.model import (
    Skeleton,
    fill_with_tied_output,
    first_inputs,
    only_behind_layers,
)
from gguf_bof4.encoders.gptq.refine.modules import encoded_modules
from gguf_bof4.encoders.gptq.refine.scaled import ScaledLinear
from gguf_bof4.encoders.gptq.weights import Weights, tensor_name, tensor_names

Floats = npt.NDArray[np.float32]

_TOKENS_AT_ONCE = 64
"""Tokens whose probabilities are in memory at a time: a vocabulary may have 262144 of them."""


class _Divergence(torch.autograd.Function):
    """Sum over tokens of the KL divergence of the student's next token from the teacher's, a few tokens at a time."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(student)
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(student), _TOKENS_AT_ONCE):
            tokens = slice(first, first + _TOKENS_AT_ONCE)
            wanted = functional.log_softmax(teacher[tokens], dim=-1)
            found = functional.log_softmax(student[tokens], dim=-1)
            likely = wanted.exp()
            total += (likely * (wanted - found)).sum(dtype=torch.float64).cpu()
            torch.sub(found.exp(), likely, out=gradient[tokens])
        ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None


@dataclass(frozen=True)
class Vector:
    """A vector of the model that can be trained: the weight of a norm.

    Attributes:
        parameter: of the module, float32 [n].
        offset: what the converter adds to it: some models store the weight of a norm less one.
    """

    parameter: nn.Parameter
    offset: float

    def values(self) -> Floats:
        """The vector as the file stores it, float32 [n]."""
        return np.asarray((self.parameter.detach() + self.offset).cpu().numpy(), dtype=np.float32)


@dataclass
class Student:
    """The quantized model, and the last hidden states of the unquantized one.

    Attributes:
        matrices: the modules whose scales can be trained, by the names of their tensors.
        vectors: the same for norms of decoder layers.
        tokens: int64 [samples, length].
        taught: outputs of the last decoder layer of the unquantized model, float32 [samples, length, width].
    """

    skeleton: Skeleton
    matrices: dict[str, ScaledLinear]
    vectors: dict[str, Vector]
    tokens: torch.Tensor
    taught: torch.Tensor
    device: torch.device

    def _logits(self, sample: int) -> torch.Tensor:
        made = self.skeleton.model(input_ids=self.tokens[sample : sample + 1].to(self.device), use_cache=False).logits
        assert isinstance(made, torch.Tensor)
        return made[0].float()

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Scales are rounded to fp16, as a file stores them."""
        for matrix in self.matrices.values():
            matrix.is_rounded = True
        try:
            yield
        finally:
            for matrix in self.matrices.values():
                matrix.is_rounded = False

    def divergence(self, sample: int) -> torch.Tensor:
        """Sum over the tokens of a sample of the KL divergence from the unquantized model, in nats."""
        with torch.no_grad(), only_behind_layers(self.skeleton, self.taught[sample : sample + 1].to(self.device)):
            teacher = self._logits(sample)
        made: torch.Tensor = _Divergence.apply(self._logits(sample), teacher)  # type: ignore[no-untyped-call]
        return made


def _scaled_modules(
    skeleton: Skeleton, i: int, names: Mapping[str, str], targets: Mapping[str, Target], encoded: Mapping[str, Encoded]
) -> dict[str, ScaledLinear]:
    """Put encoded tensors in the place of the linear modules of a layer whose weights they are."""
    made: dict[str, ScaledLinear] = {}
    for module in encoded_modules(skeleton.layers[i], names, targets, encoded):
        name = module.target.name
        assert module.format is not None  # encoded has no others
        made[name] = ScaledLinear(encoded[name], module.format, module.places, module.bias)
        module.replace(made[name])
    return made


def _trained_vectors(
    skeleton: Skeleton, i: int, architecture: str, stored: Mapping[str, Callable[[], Floats]]
) -> dict[str, Vector]:
    """The weights of norms of a layer that are, but for an offset, tensors of the file."""
    layer = skeleton.layers[i]
    made: dict[str, Vector] = {}
    for name, parameter in list(layer.named_parameters()):
        tensor = tensor_name(skeleton, i, name.removesuffix(".weight"), architecture)
        if tensor is None or parameter.dim() != 1 or not name.endswith(".weight") or tensor not in stored:
            continue
        values = torch.from_numpy(stored[tensor]())
        offset = next((x for x in (0.0, 1.0) if torch.allclose(parameter.cpu() + x, values, atol=1e-5)), None)
        if offset is None:
            continue
        parent, _, leaf = name.rpartition(".")
        trained = nn.Parameter(parameter.detach().clone())
        setattr(layer.get_submodule(parent), leaf, trained)
        made[tensor] = Vector(trained, offset)
    return made


def make_student(
    skeleton: Skeleton,
    weights: Weights,
    architecture: str,
    targets: Sequence[Target],
    encoded: Mapping[str, Encoded],
    stored: Mapping[str, Callable[[], Floats]],
    tokens: torch.Tensor,
    workers: Workers,
    progress: Callable[[int], None],
) -> Student:
    """Run the unquantized model layer by layer, and put the encoded tensors in the place of its matrices.

    Args:
        architecture: general.architecture.
        encoded: tensors by name; what is not of a type of this project stays unquantized here.
        stored: gives the vectors of the file, float32 [n], by name.
        tokens: int64 [samples, length].
        progress: called with the layer that begins.
    """
    by_name = {t.name: t for t in targets}
    matrices: dict[str, ScaledLinear] = {}
    vectors: dict[str, Vector] = {}
    with torch.inference_mode(False), torch.no_grad():
        inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), tokens)
        for i in range(len(skeleton.layers)):
            progress(i)
            names = tensor_names(skeleton, i, architecture)
            load_layer(skeleton, weights, i, inputs, workers).advance(inputs.hidden)
            matrices |= _scaled_modules(skeleton, i, names, by_name, encoded)
            vectors |= _trained_vectors(skeleton, i, architecture, stored)
        outside = [name for name, p in skeleton.model.named_parameters() if p.is_meta]
        fill_with_tied_output(skeleton, lambda names: weights.fill(skeleton, names), outside)
        skeleton.model.to(workers.device)
    return Student(skeleton, matrices, vectors, tokens, inputs.hidden, workers.device)
