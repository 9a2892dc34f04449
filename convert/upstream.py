"""A Hugging Face folder opened by upstream's converter, in the child process that `from_huggingface` starts.

Upstream's `write()` takes the tensors of a model class one by one, casts each with gguf.quants.quantize and adds it to
a gguf.GGUFWriter; then it adds the metadata and lets the writer write. Both are replaced here: quantize only records
the type that upstream wants, the writer only collects. Only headers have been read by then. The result goes through
the same `pipeline` as a GGUF file.

The type that upstream wants counts where it is a float type that upstream forces: of norms, vectors, routers and
tensors that a model class needs in F32 or F16. The rules decide about ordinary matrices, also about those that upstream
would write as Q8_0, MXFP4 or NVFP4 because the folder has them in 8 or 4 bits.

The pinned tree has its own gguf package, with more architectures than the installed one, and a process can import only
one package of that name: hence a child process.
"""

from __future__ import annotations

import json
import linecache
import logging
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as TensorType

from gguf_bof4.convert import pipeline
from gguf_bof4.convert.hub_cache import use_repository_names
from gguf_bof4.convert.huggingface_folder import weight_files
from gguf_bof4.convert.lazy import evaluate, source_of
from gguf_bof4.convert.opened import OpenedModel
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import Writer
from gguf_bof4.convert.parent_process import end_with_parent
from gguf_bof4.convert.policy import FLOATS
from gguf_bof4.convert.quantized_folder import quantization
from gguf_bof4.convert.sources import Computed, Source
from gguf_bof4.errors import UserError, as_user_error

_PINNED: Any = gguf
"""The pinned tree's gguf package, which has names that the installed one lacks."""

_FREE_TYPES = {
    gguf.LlamaFileType.MOSTLY_F16: TensorType.F16,
    gguf.LlamaFileType.MOSTLY_BF16: TensorType.BF16,
}

_WEIGHT_FUNCTIONS = {"dequant_model", "prepare_tensors"}
"""Upstream's functions that decode weights and map the names of tensors."""


class Wanted:
    """A tensor and the type that upstream wants for it; an array to upstream."""

    dtype = np.dtype(np.float32)

    def __init__(self, data: Any, qtype: TensorType) -> None:
        self.data = data
        self.qtype = qtype
        self.shape = tuple(data.shape)


class Collector(Writer):
    """Replaces gguf.GGUFWriter: collects tensors and metadata and writes nothing.

    Attributes:
        written: the collectors that upstream wanted written, in order.
        folder: the Hugging Face folder, for messages.
        sources: the tensors, by name.
        wanted: the types that upstream wants, by name.
    """

    written: list[Collector] = []  # noqa: RUF012  (upstream makes the instances, so they are registered here)
    folder = Path()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sources: dict[str, Source] = {}
        self.wanted: dict[str, TensorType] = {}

    def add_tensor(
        self, name: str, tensor: Any, raw_shape: Any = None, raw_dtype: Any = None, tensor_endianess: Any = None
    ) -> None:
        """Collect a tensor; its size is recorded for the count of parameters."""
        if isinstance(tensor, Wanted):
            self.sources[name] = source_of(name, tensor.data, self.folder)
            self.wanted[name] = tensor.qtype
        elif isinstance(tensor, _PINNED.LazyChunkedTensor):
            self.sources[name] = source_of(name, tensor, self.folder)
            self.wanted[name] = raw_dtype
        elif raw_dtype is not None and tensor.dtype == np.uint8:
            self.sources[name] = _block_source(name, tensor, raw_dtype, self.folder)
        else:
            self.sources[name] = source_of(name, tensor, self.folder)
        shape = self.sources[name].shape
        self.add_tensor_info(name, shape, np.dtype(np.float32), 0, raw_dtype=TensorType.F32)

    def write_header_to_file(self, path: Path | None = None) -> None:
        """Record that upstream would write this file."""
        self.written.append(self)

    def write_kv_data_to_file(self) -> None:
        """Nothing: `pipeline` writes."""

    def write_tensors_to_file(self, *, progress: bool = False) -> None:
        """Nothing: `pipeline` writes."""

    def close(self) -> None:
        """Nothing was opened."""

    def fixed(self, free: TensorType) -> dict[str, TensorType]:
        """Float types that upstream forces; `free` is the type of tensors for which it forces none."""
        return {name: qtype for name, qtype in self.wanted.items() if qtype in FLOATS and qtype != free}


def _block_source(name: str, data: Any, qtype: TensorType, folder: Path) -> Source:
    """A tensor that upstream copies in a block type, as uint8 [..., bytes of a row]."""
    shape = tuple(int(n) for n in gguf.quant_shape_from_byte_shape(tuple(data.shape), qtype))
    return Computed(name, qtype, shape, folder, lambda: np.asarray(evaluate(data)))


def _model_class(folder: Path) -> Any:
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    try:
        architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    except ValueError as error:
        raise UserError(
            f"{folder / 'config.json'} does not say which architecture it is: it has no architectures"
        ) from error
    try:
        return get_model_class(architecture)
    except NotImplementedError as error:
        raise UserError(
            f"{folder}: the pinned llama.cpp cannot convert the architecture {architecture}; it knows the ones that "
            "convert_hf_to_gguf.py --print-supported-models lists"
        ) from error


def _collect(folder: Path, options: Options) -> tuple[Collector, TensorType]:
    """Run upstream's converter; returns what it would write, and the type of tensors for which it forces none."""
    Collector.folder = folder
    _PINNED.GGUFWriter = Collector
    _PINNED.quants.quantize = Wanted
    use_repository_names(_PINNED.Metadata)
    model_class = _model_class(folder)
    model = model_class(folder, gguf.LlamaFileType.GUESSED, folder / "unused.gguf", model_name=options.model_name)
    free = _FREE_TYPES[model.ftype]
    model.write()
    if not Collector.written:
        raise UserError(f"{folder}: upstream's converter made no model of it")
    return Collector.written[0], free


def _tokenizer_failure(folder: Path, error: Exception) -> str | None:
    """The message where upstream found that the tokenizer has tokens beyond the embeddings, which it asserts."""
    if not isinstance(error, AssertionError) or error.__traceback__ is None:
        return None
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    if "vocab_size" not in linecache.getline(frame.f_code.co_filename, line):
        return None
    tokenizer: Any = frame.f_locals.get("tokenizer")
    largest = max(tokenizer.get_vocab().values(), default=None) if hasattr(tokenizer, "get_vocab") else None
    return (
        f"{folder}: the tokenizer is larger than the model: "
        + (f"its largest token is {largest}, but " if largest is not None else "")
        + f"vocab_size in config.json is {frame.f_locals.get('vocab_size')}. Tokens were added without rows for them "
        "in the embeddings: remove them from the tokenizer (added_tokens.json, tokenizer_config.json, tokenizer.json), "
        "or call resize_token_embeddings(len(tokenizer)) of the model with transformers and save it again"
    )


def _quantized_failure(folder: Path, error: Exception) -> str | None:
    """The message where upstream failed at weights that are quantized already."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    if not names & _WEIGHT_FUNCTIONS or (kind := quantization(folder, str(error))) is None:
        return None
    return (
        f"{folder} has weights that are quantized already ({kind}), in a way that upstream's converter cannot decode: "
        f"{type(error).__name__}{': ' if str(error) else ''}{error}. Give the unquantized model that it was made from "
        "(F32, F16 or BF16), or decode it with the program that quantized it and save that"
    )


def _failure(folder: Path, error: Exception) -> str:
    if isinstance(error, NotImplementedError) and "pre-tokenizer" in str(error):
        return f"{folder}: the pinned llama.cpp does not know the tokenizer of this model, so it cannot convert it"
    if (known := _tokenizer_failure(folder, error) or _quantized_failure(folder, error)) is not None:
        return known
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{folder}: upstream's converter failed: {type(error).__name__}: {error} "
        f"({Path(place.filename).name}, line {place.lineno})\n"
        "Check that the folder is complete; --verbose shows the output of upstream's converter"
    )


def _check_metadata(folder: Path, writer: Writer) -> None:
    """Check that the values that upstream has taken from the folder can be written, which it does not.

    Raises:
        UserError: one is of another type than its key.
    """
    for key, value in writer.kv_data[0].items():
        try:
            writer._pack_val(value.value, value.type, add_vtype=True, sub_type=value.sub_type)
        except Exception as error:
            shown = repr(value.value)
            raise UserError(
                f"{folder}: the value of {key} that its configuration files give is {shown[:60]}, which is no "
                f"{value.type.name} ({error}): repair config.json, or get it again"
            ) from error


def open_folder(folder: Path, options: Options) -> OpenedModel:
    """Open a checked folder by upstream's converter; only headers are read.

    Raises:
        UserError: upstream's converter cannot convert it.
    """
    try:
        collected, free = _collect(folder, options)
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise UserError(_failure(folder, error)) from error
    writer = Writer(path=None, arch=collected.arch)
    writer.kv_data[0].update(collected.kv_data[0])
    _check_metadata(folder, writer)
    sources = list(collected.sources.values())
    return OpenedModel(folder, weight_files(folder), collected.arch, sources, writer, collected.fixed(free))


def convert_folder(folder: Path, output: Path, staging: Path | None, options: Options, channel: TextIO) -> None:
    """Convert; progress and the result are written to `channel` as lines of JSON.

    Args:
        output: the name of the file, or of the parts before they are numbered.
        staging: the folder to write into; None writes nothing.
    """

    def send(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    def progress(step: str, done: int, total: int) -> None:
        send(progress=[step, done, total])

    try:
        converted = pipeline.run(open_folder(folder, options), options, output, staging, progress)
        send(
            architecture=converted.architecture,
            outputs=[str(path) for path in converted.outputs],
            tensors=[asdict(report) for report in converted.tensors],
        )
    except Exception as error:
        if (known := as_user_error(error)) is not None:
            send(error=str(known))
        else:
            send(bug=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


def main(job: str) -> None:
    """Entry point of the child process.

    Args:
        job: JSON with source, output, staging and options.
    """
    # output of upstream and its libraries must not mix with the lines for the parent process
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    end_with_parent()
    content = json.loads(job)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["options"].items()}
    options = Options(**given)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.WARNING)
    staging = content["staging"]
    try:
        with torch.inference_mode():
            convert_folder(
                Path(content["source"]), Path(content["output"]), Path(staging) if staging else None, options, channel
            )
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
