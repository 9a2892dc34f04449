"""Small models of random weights, which llama.cpp and transformers load without a real model's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf_writing import finish
from listed import Encoded, Floats, quantized

WIDTH = 64
FEED_FORWARD = 128
CONTEXT = 128

_SPECIAL = ("<unk>", "<s>", "</s>")
VOCABULARY = len(_SPECIAL) + 256
"""Special tokens, and one token for each byte."""

PER_LAYER = 256
"""Of Gemma 3n: the width of its per-layer embeddings, which llama.cpp does not read from the file."""

GEMMA3N_LAYERS = 21
"""llama.cpp shares keys and values of the layers behind the first 20."""


def matrix(shape: tuple[int, ...], seed: int) -> Floats:
    """Student's t with 3 degrees of freedom: outliers as in trained models."""
    weights = np.random.default_rng(seed).standard_t(3, shape) / np.sqrt(shape[-1])
    return weights.astype(np.float32)


def _writer(path: Path, architecture: str, layers: int, heads: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // heads)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    kinds = gguf.TokenType
    writer.add_token_list([*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *([kinds.BYTE] * 256)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    return writer


def _add(writer: gguf.GGUFWriter, name: str, encoded: Encoded) -> None:
    data, qtype = encoded
    writer.add_tensor(name, data, raw_dtype=qtype if data.dtype == np.uint8 else None)


def _write(writer: gguf.GGUFWriter, shapes: Mapping[str, tuple[int, ...]], is_listed: Callable[[str], bool]) -> None:
    for seed, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 1:
            _add(writer, name, (np.ones(shape, dtype=np.float32), T.F32))
        elif is_listed(name):
            for part, encoded in quantized(name, matrix(shape, seed)):
                _add(writer, part, encoded)
        else:
            _add(writer, name, (matrix(shape, seed), T.F32))
    finish(writer)


def _block(i: int, norms: Iterator[str] | tuple[str, ...], heads_width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    """Attention, feed forward and their norms of a block."""
    shapes: dict[str, tuple[int, ...]] = {f"blk.{i}.{norm}.weight": (WIDTH,) for norm in norms}
    shapes |= {f"blk.{i}.attn_{part}.weight": (heads_width, WIDTH) for part in ("q", "k", "v")}
    shapes[f"blk.{i}.attn_output.weight"] = (WIDTH, heads_width)
    shapes |= {f"blk.{i}.ffn_{part}.weight": (FEED_FORWARD, WIDTH) for part in ("gate", "up")}
    shapes[f"blk.{i}.ffn_down.weight"] = (WIDTH, FEED_FORWARD)
    return shapes


def write_llama(path: Path, is_listed: Callable[[str], bool] = lambda name: False, layers: int = 2) -> Path:
    """A Llama model of heads of 32, with a tokenizer of bytes.

    Args:
        is_listed: which matrices are BOF4_S with a list; the others are F32.
    """
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes["output.weight"] = (VOCABULARY, WIDTH)
    for i in range(layers):
        shapes |= _block(i, ("attn_norm", "ffn_norm"))
    _write(_writer(path, "llama", layers, heads=2), shapes, is_listed)
    return path


def write_gemma3n(path: Path, is_listed: Callable[[str], bool] = lambda name: False) -> Path:
    """The text model of Gemma 3n with one head of 64.

    Args:
        is_listed: which matrices are BOF4_S with a list; the others are F32.
    """
    n_altup, laurel_rank, layers = 4, 64, GEMMA3N_LAYERS
    writer = _writer(path, "gemma3n", layers, heads=1)
    writer.add_sliding_window(32)
    writer.add_key_length(WIDTH)
    writer.add_value_length(WIDTH)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "altup_proj.weight": (n_altup - 1, WIDTH, WIDTH),
        "altup_unembd_proj.weight": (n_altup - 1, WIDTH, WIDTH),
        "per_layer_token_embd.weight": (VOCABULARY, PER_LAYER * layers),
        "per_layer_model_proj.weight": (PER_LAYER * layers, WIDTH),
        "per_layer_proj_norm.weight": (PER_LAYER,),
        "output_norm.weight": (WIDTH,),
    }
    norms = (
        "attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm",
        "altup_correct_scale", "altup_router_norm", "laurel_post_norm",
    )  # fmt: skip
    for i in range(layers):
        shapes |= _block(i, norms)
        shapes |= {
            f"blk.{i}.inp_gate.weight": (PER_LAYER, WIDTH),
            f"blk.{i}.proj.weight": (WIDTH, PER_LAYER),
            f"blk.{i}.altup_correct_coef.weight": (n_altup, n_altup),
            f"blk.{i}.altup_predict_coef.weight": (n_altup * n_altup, n_altup),
            f"blk.{i}.altup_router.weight": (n_altup, WIDTH),
            f"blk.{i}.laurel_l.weight": (laurel_rank, WIDTH),
            f"blk.{i}.laurel_r.weight": (WIDTH, laurel_rank),
        }
    _write(writer, shapes, is_listed)
    return path
