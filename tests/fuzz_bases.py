"""The valid inputs that the fuzz test mutates: small files, so that a case takes milliseconds."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from convert_models import sentencepiece_tokenizer, weights
from gguf import GGMLQuantizationType as T
from gguf_writing import finish

from gguf_bof4 import native
from gguf_bof4.convert import convert

SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (8, 256),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (4, 256),
    "blk.0.attn_k.weight": (3, 64),
    "blk.0.ffn_up_exps.weight": (2, 2, 64),
    "blk.0.ffn_down.weight": (2, 96),
    "output.weight": (8, 256),
}
VOCABULARY = 400
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
}  # fmt: skip


def _tensor(name: str, seed: int) -> npt.NDArray[np.float32]:
    array = weights(SHAPES[name], seed)
    if array.ndim > 1:
        array[..., 3] *= 40  # so that there are outliers
    return array


def _write(path: Path, qtype: T) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("fuzz")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(256)
    writer.add_head_count(4)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ü", "漢", "d", "e", "f", "g", "h"])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 8)
    writer.add_file_type(0)
    for i, name in enumerate(SHAPES):
        array = _tensor(name, i)
        fits = array.ndim > 1 and array.shape[-1] % gguf.GGML_QUANT_SIZES[qtype][0] == 0
        kind = qtype if fits else T.F32
        data = array if kind == T.F32 else native.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=None if kind == T.F32 else kind)
    finish(writer)
    return path


def _write_imatrix(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for i, (name, shape) in enumerate(SHAPES.items()):
        if len(shape) > 1:
            matrices = int(np.prod(shape[:-2]))
            writer.add_tensor(f"{name}.in_sum2", np.abs(weights((matrices, shape[-1]), i)))
            writer.add_tensor(f"{name}.counts", np.full((matrices, 1), 7, np.float32))
    finish(writer)


def _safetensors(tensors: dict[str, tuple[int, ...]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for i, (name, shape) in enumerate(tensors.items()):
        bits = (weights(shape, i).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(bits)]}
        data += bits
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _write_folder(folder: Path) -> None:
    """A Llama of one layer in two shards."""
    folder.mkdir()
    sentencepiece_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: org/name-1B\ntags: [a, b]\n---\n# Model\n")
    layer = "model.layers.0."
    table = (VOCABULARY, 64)
    first = {"model.embed_tokens.weight": table, "model.norm.weight": (64,), "lm_head.weight": table}
    second: dict[str, tuple[int, ...]] = {
        **{f"{layer}{name}.weight": (64,) for name in ("input_layernorm", "post_attention_layernorm")},
        **{f"{layer}self_attn.{name}_proj.weight": (64, 64) for name in ("q", "o")},
        **{f"{layer}self_attn.{name}_proj.weight": (32, 64) for name in ("k", "v")},
        **{f"{layer}mlp.{name}_proj.weight": (96, 64) for name in ("gate", "up")},
        f"{layer}mlp.down_proj.weight": (64, 96),
    }
    where = {}
    for i, tensors in enumerate((first, second)):
        name = f"model-{i + 1:05d}-of-00002.safetensors"
        (folder / name).write_bytes(_safetensors(tensors))
        where |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_bases(folder: Path) -> Path:
    """Fill a folder with GGUF files and, as hf, a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = _write(folder / "plain.gguf", T.F32)
    _write(folder / "halves.gguf", T.F16)
    _write(folder / "blocks.gguf", T.Q4_0)
    convert(plain, folder / "listed.gguf", opq=("0.9",))
    convert(plain, folder / "superblocks.gguf", type="BOF4_K", pure=True, opq=("0.9",), encoder="absmax")
    _write_imatrix(folder / "imatrix.gguf")
    _write_folder(folder / "hf")
    return folder


if __name__ == "__main__":
    import sys

    print(write_bases(Path(sys.argv[1])))
