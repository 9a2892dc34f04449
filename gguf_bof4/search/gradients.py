"""Measures sensitivities: runs a model forward and backward on a calibration text, by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gguf_bof4 import native
from gguf_bof4.encoders.gptq.model import (
    INSTEAD,
    Skeleton,
    find_linear_rows,
    is_linear,
    linear_weight,
)
from gguf_bof4.encoders.gptq.weights import GgufWeights, tensor_names
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model
from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.search.sensitivity import Term
from gguf_bof4.search.texts import samples_of

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

_SEED = 2505

NO_GRADIENTS = "--sensitivity none does without running the model, and is less exact"


@dataclass
class _Sums:
    """The squared derivatives of a matrix, summed over one of its dimensions, and over chunks: float64."""

    rows: torch.Tensor
    columns: torch.Tensor

    def add(self, squares: torch.Tensor) -> None:
        """Squared derivatives of one chunk, float32 [rows, columns]."""
        self.rows += squares.sum(dim=1, dtype=torch.float64)
        self.columns += squares.sum(dim=0, dtype=torch.float64)

    def term(self, places: np.ndarray[Any, np.dtype[np.int64]] | None, judged: int) -> Term:
        """Per judged token, in nats.

        Args:
            places: of each row of the tensor, its row here; None: not known.
        """
        total = float(self.columns.sum())
        rows = self.rows.numpy()
        rows = np.full(1, rows.mean()) if places is None else rows[places]
        scale = 0.0 if total == 0 else 0.5 / (judged * total)
        return Term((rows * scale).astype(np.float32), self.columns.numpy().astype(np.float32))


@dataclass
class _Recorder:
    """What hooks have seen since the chunk began."""

    sums: dict[str, _Sums]
    embedded: torch.Tensor
    last_input: torch.Tensor | None = field(default=None)

    def linear(self, name: str, module: torch.nn.Module) -> Any:
        """A hook that adds the squared derivatives of a linear module's matrix when gradients reach it."""
        weight = linear_weight(module)
        sums = self.sums[name] = _Sums(*(torch.zeros(n, dtype=torch.float64) for n in weight.shape))

        def forward(_: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            x = inputs[0].detach().reshape(-1, weight.shape[1])

            def backward(gradient: torch.Tensor) -> None:
                sums.add(torch.square(gradient.detach().reshape(-1, weight.shape[0]).T @ x))

            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        return module.register_forward_hook(forward)

    def embedding(self, module: torch.nn.Module) -> Any:
        """A hook that makes the embedded tokens the beginning of the graph."""
        scale = float(getattr(module, "embed_scale", 1.0))

        def backward(gradient: torch.Tensor) -> None:
            self.embedded += torch.square(scale * gradient[0]).sum(dim=0, dtype=torch.float64)

        def forward(_: torch.nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            output = output.detach().requires_grad_()
            output.register_hook(backward)  # type: ignore[no-untyped-call]
            return output

        return module.register_forward_hook(forward)

    def head(self, module: torch.nn.Module) -> Any:
        """A hook that keeps the inputs of the output matrix."""

        def forward(_: torch.nn.Module, inputs: tuple[Any, ...], __: torch.Tensor) -> None:
            self.last_input = inputs[0].detach()[0]

        return module.register_forward_hook(forward)


def load_whole(model: Model) -> tuple[Skeleton, Any]:
    """A GGUF model with all of its weights, in float32, and its tokenizer.

    Raises:
        UserError: transformers cannot run it.
    """
    weights = GgufWeights(model)
    try:
        return weights.whole(), weights.tokenizer()
    except UserError as error:
        raise UserError(f"{str(error).replace(INSTEAD, '').strip()} {NO_GRADIENTS}") from error


def _backward(skeleton: Skeleton, row: torch.Tensor, judged: int, generator: torch.Generator) -> torch.Tensor:
    """Gradients of the log probability of tokens that the model itself draws; returns its probabilities [judged, V]."""
    with torch.enable_grad():
        logits = skeleton.model(input_ids=row[None], use_cache=False, logits_to_keep=judged).logits[0, -judged:].float()
        log_p = torch.log_softmax(logits, dim=-1)
        probabilities = log_p.detach().exp()
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        torch.autograd.backward(log_p.gather(1, drawn).sum())
    return probabilities


def _places(model: Model, name: str, module: torch.nn.Module) -> Any:
    """Of each row of a tensor, its row in the module, which may have them in another order."""
    tensor = next(t for t in model.tensors if t.name == name)
    rows = model.read_weights(tensor, native.dequantize)
    return find_linear_rows(module, rows)


def measure(
    model: Model, texts: Sequence[Path], chunks: int, length: int, threads: int, progress: Progress = no_progress
) -> Mapping[str, Sequence[Term]]:
    """The terms of every matrix that gradients reach, by the name of its tensor.

    The second half of each chunk is judged, as by llama-perplexity.

    Args:
        texts: files and folders, as bof4 convert calibrates with.
        chunks: of the texts, at most.
        length: tokens in each.
        threads: 0: all cores.
        progress: called with chunks.

    Raises:
        UserError: transformers cannot run the model, or a text is too short.
    """
    if threads:
        torch.set_num_threads(threads)
    progress("reading the model", 0, 0)
    skeleton, tokenizer = load_whole(model)
    tokens = samples_of(tokenizer, texts, chunks, length)
    judged = length // 2
    architecture = str(model.value("general.architecture"))
    names = {
        f"{skeleton.layers_name}.{i}.{module}": tensor
        for i in range(len(skeleton.layers))
        for module, tensor in tensor_names(skeleton, i, architecture).items()
    }
    modules = {n: m for n, m in skeleton.model.named_modules() if n in names and is_linear(m)}
    embedding, head = skeleton.model.get_input_embeddings(), skeleton.model.get_output_embeddings()
    width = embedding.weight.shape[1]
    recorder = _Recorder({}, torch.zeros(width, dtype=torch.float64))
    handles = [recorder.linear(n, m) for n, m in modules.items()]
    handles += [recorder.embedding(embedding), *([] if head is None else [recorder.head(head)])]
    of_vocabulary = torch.zeros(embedding.weight.shape[0], dtype=torch.float64)
    of_inputs = torch.zeros(width, dtype=torch.float64)
    generator = torch.Generator().manual_seed(_SEED)
    try:
        for i, row in enumerate(tokens):
            progress("gradients", i, len(tokens))
            p = _backward(skeleton, row, judged, generator)
            of_vocabulary += (p * (1 - p)).sum(dim=0, dtype=torch.float64)
            if recorder.last_input is not None:
                of_inputs += torch.square(recorder.last_input[-judged:]).sum(dim=0, dtype=torch.float64)
    finally:
        for handle in handles:
            handle.remove()
    count = judged * len(tokens)
    found: dict[str, list[Term]] = {
        names[n]: [recorder.sums[n].term(_places(model, names[n], m), count)] for n, m in modules.items()
    }
    found[EMBEDDING] = [
        Term(
            np.full(1, 0.5 / (count * len(of_vocabulary)), dtype=np.float32),
            recorder.embedded.numpy().astype(np.float32),
        )
    ]
    output = OUTPUT if any(t.name == OUTPUT for t in model.tensors) else EMBEDDING
    found.setdefault(output, []).append(
        Term(
            (0.5 / count / count * of_vocabulary.numpy()).astype(np.float32), of_inputs.numpy().astype(np.float32)
        )
    )  # fmt: skip
    return found
