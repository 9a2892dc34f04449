"""Language models in PyTorch whose linear layers can be quantized in place, from a folder or a GGUF file."""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gguf_bof4.encoders.gptq.model import is_linear, linear_weight
from gguf_bof4.errors import UserError, require
from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.reference_models import REFERENCE_MODELS, reference_folder, reference_model
from gguf_bof4.study.record import Format, Tensor
from gguf_bof4.study.workers import in_parallel

CONTEXT = 512
"""Tokens of a chunk; the second half of them is judged, as llama-perplexity does."""

SAMPLED_NUMBERS = 2**20
"""Numbers of a model that codebooks are fitted to, at most."""

_HASHED = 1 << 20

FormatOf = Callable[[str], Format]
"""The format of a linear layer, by its name."""


def same_for_all(fmt: Format) -> FormatOf:
    """One format for every layer."""
    return lambda name: fmt


@dataclass
class Loaded:
    """A model in float32.

    Attributes:
        name: a reference model's name, or a name with a hash of the files, so that rows of another model are not taken
            for this one's.
        path: for messages.
        linears: the linear modules of the decoder layers, by name.
        originals: their unquantized matrices, [outputs, inputs].
    """

    name: str
    path: Path
    model: Any
    tokenizer: Any
    linears: dict[str, nn.Module]
    originals: dict[str, Tensor]

    @property
    def n_weights(self) -> int:
        return sum(weight.numel() for weight in self.originals.values())


def kind_of(name: str) -> str:
    """The kind of a layer's matrix: the last part of its module's name."""
    return name.rpartition(".")[2]


def layer_of(name: str) -> int:
    """The number of the decoder layer that a module belongs to: the first number in its name."""
    return next(int(part) for part in name.split(".") if part.isdecimal())


def _fingerprint(path: Path) -> str:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + opened.read(_HASHED))
    return digest.hexdigest()[:8]


def model_name(source: str) -> str:
    """The name of a model in tables of results.

    Raises:
        UserError: there is no such file or folder.
    """
    if source in REFERENCE_MODELS:
        return source
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"{source}: no such file or folder; give a Hugging Face folder, a GGUF file, or one of "
            f"{', '.join(REFERENCE_MODELS)}"
        )
    return f"{path.resolve().stem if path.is_file() else path.resolve().name}@{_fingerprint(path)}"


def _path_of(source: str) -> Path:
    if source == "smol":
        return reference_folder()
    return reference_model(source) if source in REFERENCE_MODELS else Path(source)


def load(source: str) -> Loaded:
    """Load a model and its tokenizer.

    Args:
        source: a Hugging Face folder, a GGUF file, or a name of the reference models.

    Raises:
        UserError: transformers cannot load it, or it has no linear layers to quantize.
    """
    require("hf", "bof4 study", "torch", "transformers", "safetensors")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    name, path = model_name(source), _path_of(source)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.is_file():
        require("hf", f"loading the GGUF file {path}", "accelerate")
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
    except (ValueError, KeyError, ImportError, OSError, AttributeError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: transformers cannot load this as a language model: {first}") from error
    model.eval().requires_grad_(False)
    linears = dict(_linears(model, path))
    return Loaded(name, path, model, tokenizer, linears, {n: linear_weight(m).clone() for n, m in linears.items()})


def _linears(model: Any, path: Path) -> Iterator[tuple[str, nn.Module]]:
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    found = [
        (name, module)
        for name, module in model.named_modules()
        if is_linear(module) and any(name.startswith(f"{stack}.") for stack in stacks)
    ]
    if not found:
        raise UserError(f"{path}: {type(model).__name__} has no linear layers in its {depth} decoder layers")
    yield from found


def chunks_of(loaded: Loaded, text: Path, count: int) -> Tensor:
    """The first chunks of a text, int64 [count, length]; where the tokenizer puts a BOS first, each begins with it.

    They have 512 tokens, or as many as the model has positions.

    Raises:
        UserError: the text cannot be read or is too short.
    """
    longest = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    length = min(CONTEXT, longest) if isinstance(longest, int) and longest > 1 else CONTEXT
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the text {text} cannot be read: {error}") from error
    tokens = loaded.tokenizer(words, add_special_tokens=False, verbose=False).input_ids
    if len(tokens) < count * length:
        raise UserError(f"{text} has {len(tokens)} tokens, less than {count} chunks of {length}: give fewer --chunks")
    found = torch.tensor(tokens[: count * length], dtype=torch.int64).reshape(count, length)
    with_special = loaded.tokenizer("a").input_ids
    bos = getattr(loaded.tokenizer, "bos_token_id", None)
    if bos is not None and with_special and with_special[0] == bos:
        found[:, 0] = bos
    return found


def logits_of(loaded: Loaded, tokens: Tensor, last: int) -> Tensor:
    """Logits at the last positions of one sequence: int64 [length] to float32 [last, vocabulary]."""
    arguments: dict[str, Any] = {"input_ids": tokens[None], "use_cache": False}
    if "logits_to_keep" in inspect.signature(loaded.model.forward).parameters:
        arguments["logits_to_keep"] = last
    with torch.inference_mode():
        logits: Tensor = loaded.model(**arguments).logits[0, -last:].float()
    return logits


def _assign(module: nn.Module, weight: Tensor) -> None:
    target = linear_weight(module)
    target.copy_(weight)  # for a transposed matrix this is a view of the module's own


def quantize_weights(
    loaded: Loaded,
    format_of: FormatOf,
    flat: bool = False,
    importance: dict[str, Tensor] | None = None,
    progress: Progress = no_progress,
) -> int:
    """Put quantized matrices into a model; returns their bits.

    Args:
        flat: blocks run over the whole matrix, row after row, as bitsandbytes and the BOF4 paper have it.
        importance: mean square of each input, by layer.

    Raises:
        UserError: rows do not divide, or a weight is NaN or infinite.
    """

    def quantize(name: str) -> int:
        weight = loaded.originals[name]
        x = weight.reshape(1, -1) if flat else weight
        of_inputs = None if importance is None else importance[name]
        found = format_of(name).quantize(x, of_inputs, f"{loaded.path}: {name}.weight")
        _assign(loaded.linears[name], found.values.reshape(weight.shape))
        return found.bits

    return sum(in_parallel(quantize, loaded.originals, lambda n: progress("weights", n, len(loaded.originals))))


def restore(loaded: Loaded) -> None:
    """Put the unquantized matrices back."""
    for name, weight in loaded.originals.items():
        _assign(loaded.linears[name], weight)


def check_rows(loaded: Loaded, format_of: FormatOf, flat: bool) -> None:
    """Raise UserError where rows of a matrix do not divide, before anything is measured."""
    for name, weight in loaded.originals.items():
        format_of(name).check_row(weight.numel() if flat else weight.shape[1], f"{loaded.path}: {name}.weight")


@contextmanager
def hooked(loaded: Loaded, see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """While it lasts, `see` gets the input of every linear layer, and what it returns takes its place."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def before(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            replaced = see(name, arguments[0])
            return None if replaced is None else (replaced, *arguments[1:])

        return before

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in loaded.linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class ActivationQuantizer:
    """Quantizes the inputs of linear layers, and counts their bits.

    Layers that read the same tensor, such as those of queries, keys and values, get it quantized once. Several threads
    may call it, each with a chunk of its own.

    Attributes:
        bits, numbers: of all activations that were seen.
    """

    def __init__(self, format_of: FormatOf) -> None:
        self._format_of = format_of
        self._of_thread = threading.local()
        self._counting = threading.Lock()
        self.bits = self.numbers = 0

    def __call__(self, name: str, x: Tensor) -> Tensor:
        fmt = self._format_of(name)
        seen, by, result = getattr(self._of_thread, "last", (None, None, x))
        if seen is x and by == fmt:
            return result
        found = fmt.quantize(x.reshape(-1, x.shape[-1]), None, f"the input of {name}")
        with self._counting:
            self.bits += found.bits
            self.numbers += x.numel()
        result = found.values.reshape(x.shape)
        self._of_thread.last = (x, fmt, result)
        return result


def mean_squares(loaded: Loaded, tokens: Tensor) -> dict[str, Tensor]:
    """The mean square of each input of each linear layer over chunks of tokens: importance, float32 [inputs]."""
    of_thread = threading.local()

    def see(name: str, x: Tensor) -> None:
        of_thread.squares[name] = torch.square(x.reshape(-1, x.shape[-1]))

    def of_chunk(row: Tensor) -> dict[str, tuple[Tensor, int]]:
        of_thread.squares = {}
        logits_of(loaded, row, 1)
        return {name: (squares.sum(dim=0), len(squares)) for name, squares in of_thread.squares.items()}

    with hooked(loaded, see):
        by_chunk = in_parallel(of_chunk, tokens)
    names = dict.fromkeys(name for found in by_chunk for name in found)  # an expert may be idle in a chunk
    seen = {name: [found[name] for found in by_chunk if name in found] for name in names}
    return {
        name: torch.stack([total for total, _ in parts]).sum(dim=0) / sum(count for _, count in parts)
        for name, parts in seen.items()
    }


def weight_samples(loaded: Loaded, multiple: int) -> Tensor:
    """Runs of weights of all matrices, evenly taken, float32 [n, multiple]."""
    runs = [w.reshape(-1, multiple) for w in loaded.originals.values() if w.shape[1] % multiple == 0]
    step = max(1, sum(r.numel() for r in runs) // SAMPLED_NUMBERS)
    return torch.cat([r[::step] for r in runs]) if runs else torch.empty(0, multiple)


def activation_samples(loaded: Loaded, tokens: Tensor, multiple: int) -> Tensor:
    """Runs of inputs of all linear layers, evenly taken, float32 [n, multiple]."""
    found: list[Tensor] = []
    share = max(1, SAMPLED_NUMBERS // (len(loaded.linears) * multiple))

    def see(_: str, x: Tensor) -> None:
        if x.shape[-1] % multiple == 0:
            runs = x.reshape(-1, multiple)
            found.append(runs[:: max(1, len(runs) // share)].clone())

    with hooked(loaded, see):
        logits_of(loaded, tokens[0], 1)
    return torch.cat(found) if found else torch.empty(0, multiple)
