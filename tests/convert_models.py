"""Small models to convert: GGUF files with rows of every kind, Hugging Face folders with real tokenizers."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import sentencepiece
import torch
import transformers
from gguf import GGMLQuantizationType as T
from once import one_at_a_time

from gguf_bof4 import native
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.packaged_models import fetch_smollm2

VOCABULARY = 64


def weights(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Ordinary weights, different for every seed."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(0.05)


def encoded(array: npt.NDArray[np.float32], qtype: T) -> npt.NDArray[Any]:
    """Floats in a type; the types that need an importance matrix get one of ones."""
    if qtype in {T.F32, T.F16, T.BF16}:  # NaN and infinity are wanted, too
        return np.asarray(gguf.quantize(array, qtype))
    if qtype in {T.IQ1_S, T.IQ2_S, T.IQ2_XS}:
        # ggml's tables for encoding these take many seconds to make; any bytes behind a scale are valid
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
        shape = (*array.shape[:-1], array.shape[-1] // block_size, block_bytes)
        blocks = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        blocks[..., :2] = np.array([0.01], dtype=np.float16).view(np.uint8)
        return blocks.reshape(*array.shape[:-1], -1)
    return native.quantize(array, qtype, imatrix=np.ones(array.shape[-1], dtype=np.float32))


# rows that fit every block, that fit only Q8_0, that fit nothing; two and three dimensions
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (VOCABULARY, 256),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.attn_k.weight": (64, 256),
    "blk.0.attn_v.weight": (64, 256),
    "blk.0.attn_output.weight": (256, 256),
    "blk.0.attn_q.bias": (256,),
    "blk.0.ffn_norm.weight": (256,),
    "blk.0.ffn_up.weight": (320, 256),
    "blk.0.ffn_down.weight": (256, 320),
    "blk.0.ffn_gate_inp.weight": (4, 256),
    "blk.0.ffn_up_exps.weight": (4, 96, 256),
    "blk.0.ffn_down_exps.weight": (4, 256, 96),
    "blk.0.ffn_gate_exps.weight": (4, 96, 256),
    "blk.1.ffn_down.weight": (256, 100),
    "blk.1.ffn_up.weight": (1, 256),
    "output_norm.weight": (256,),
    "output.weight": (VOCABULARY, 256),
}


def write_gguf(
    path: Path,
    qtype: T = T.F32,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    without: Iterable[str] = (),
    split_max_size: int = 0,
    replace: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Path:
    """A llama model of one file or parts; matrices in `qtype` where their rows fit it, the rest in F32.

    Returns:
        The file, or the first part.
    """
    writer = gguf.GGUFWriter(path, "llama", split_max_size=split_max_size)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(320)
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(0)
    for i, (name, shape) in enumerate(shapes.items()):
        if name in without:
            continue
        array = (replace or {}).get(name, weights(shape, i))
        keep = len(shape) == 1 or "norm" in name or shape[-1] % gguf.GGML_QUANT_SIZES[qtype][0]
        kind = T.F32 if keep else qtype
        writer.add_tensor(name, encoded(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    parts = writer.format_shard_names(path)
    writer.close()
    return parts[0]


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor."""
    return {t.name: (t.qtype.name, t.shape, t.read_rows().tobytes()) for t in open_model(path).tensors}


def types(path: Path) -> dict[str, str]:
    """Type of every tensor."""
    return {t.name: t.qtype.name for t in open_model(path).tensors}


def sentencepiece_tokenizer(folder: Path) -> None:
    """A small real tokenizer.model, trained on this folder's Python files."""
    text = "\n".join(p.read_text() for p in sorted(Path(__file__).parent.rglob("*.py")))
    corpus = folder / "corpus.txt"
    corpus.write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()


def smollm2_tokenizer(folder: Path) -> int:
    """SmolLM2's own tokenizer.json, rebuilt from the tokens and merges of its GGUF file; returns its size."""
    with one_at_a_time("models"):
        model = open_model(fetch_smollm2())
    tokens, kinds = model.value("tokenizer.ggml.tokens"), model.value("tokenizer.ggml.token_type")
    special = [i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i in special
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [m.split(" ") for m in model.value("tokenizer.ggml.merges")],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return len(tokens)


def save(model: transformers.PreTrainedModel, folder: Path, dtype: torch.dtype, shard_size: str = "1GB") -> Path:
    """Save a model's random weights as safetensors, in shards of at most `shard_size`."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def llama_folder(folder: Path, vocabulary: int, dtype: torch.dtype, shard_size: str = "1GB", **config: Any) -> Path:
    """A small Llama without its tokenizer."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
    } | config  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary, **settings))
    return save(model, folder, dtype, shard_size)


def sparse_gguf(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A GGUF file of F16 tensors whose data is a hole of the file system: large, all zeros, written at once."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, shape in shapes.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float16), 2 * int(np.prod(shape)))
    total = sum(gguf.GGUFWriter.ggml_pad(t.nbytes, 32) for t in writer.tensors[0].values())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = gguf.GGUFWriter.ggml_pad(path.stat().st_size, 32)
    os.truncate(path, header + total)
    return path


def sparse_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """The same as a safetensors file of bfloat16."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    return path
