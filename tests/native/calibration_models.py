"""Small random models of the families that the gptq encoder runs, as Hugging Face folders with real tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers
from convert_models import save, sentencepiece_tokenizer, smollm2_tokenizer
from safetensors.torch import load_file, save_file

SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "vocab_size": 400,
}  # fmt: skip

NARROW: dict[str, Any] = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 96}

BPE = ("smollm", "qwen3", "phi", "qwen3moe", "gpt2", "starcoder", "bloom", "gptoss", "glm4moe")
"""Families whose tokenizer is byte-level BPE; upstream's converter wants a tokenizer.model of the others. That one has
400 tokens instead of 49152: gptq of a file takes a tenth of the time, most of which is the tokenizer and the output."""

DENSE = ("llama", "smollm", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "phi3")

POSITIONAL = ("gpt2", "starcoder", "bloom")
"""Dense, too: layers that get masks by position, learned positions, attention without PyTorch's fused kernel."""


def config(family: str) -> Any:
    """The configuration of a small model."""
    ends, heads = {"bos_token_id": 1, "eos_token_id": 2}, {"head_dim": 32}
    gemma = {**heads, "query_pre_attn_scalar": 32, "sliding_window": 32}
    experts = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
    made = {
        "llama": lambda: transformers.LlamaConfig(**SIZES, **ends),
        "smollm": lambda: transformers.LlamaConfig(**SIZES),
        "wide": lambda: transformers.LlamaConfig(**SIZES | {"hidden_size": 256, "num_key_value_heads": 4}, **ends),
        "uneven": lambda: transformers.LlamaConfig(**SIZES | {"intermediate_size": 224}, **ends),
        "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
        "qwen2": lambda: transformers.Qwen2Config(**SIZES),
        "qwen3": lambda: transformers.Qwen3Config(**SIZES, **heads),
        "qwen3moe": lambda: transformers.Qwen3MoeConfig(**SIZES, **heads, **experts),
        "gemma2": lambda: transformers.Gemma2Config(**SIZES, **gemma),
        "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, **gemma),
        "phi": lambda: transformers.PhiConfig(**SIZES),
        "gpt2": lambda: transformers.GPT2Config(**NARROW, n_ctx=96),
        "starcoder": lambda: transformers.GPTBigCodeConfig(**NARROW),
        "bloom": lambda: transformers.BloomConfig(hidden_size=128, n_layer=2, n_head=4),
        "gptoss": lambda: transformers.GptOssConfig(
            **SIZES, **heads, num_local_experts=4, num_experts_per_tok=2, sliding_window=32,
        ),
        "glm4moe": lambda: transformers.Glm4MoeConfig(
            **SIZES, **heads, moe_intermediate_size=64, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
            topk_group=1, first_k_dense_replace=1, num_nextn_predict_layers=1,
        ),
        "phi3": lambda: transformers.Phi3Config(**SIZES, pad_token_id=0, **ends),
    }
    return made[family]()


def _fast_tokenizer(folder: Path) -> None:
    """tokenizer.json with the tokens of tokenizer.model: transformers reads the latter with another package only."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def _glm_tokens(folder: Path) -> None:
    """Give tokens of SmolLM2 the names of those that GLM's converter looks for."""
    path = folder / "tokenizer.json"
    text = path.read_text()
    for old, new in (("<repo_name>", "[gMASK]"), ("<|im_start|>", "<|user|>"), ("<|im_end|>", "<|observation|>")):
        assert old in text
        text = text.replace(json.dumps(old), json.dumps(new))
    path.write_text(text)


def _add_nextn(folder: Path, depth: int) -> None:
    """A layer of multi-token prediction behind the last one, whose tensors transformers does not have."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    last, new = f"model.layers.{depth - 1}.", f"model.layers.{depth}."
    added = {new + name.removeprefix(last): t.clone() for name, t in tensors.items() if name.startswith(last)}
    table = tensors["model.embed_tokens.weight"]
    norm = tensors["model.norm.weight"]
    added |= {f"{new}{name}.weight": norm.clone() for name in ("enorm", "hnorm", "shared_head.norm")}
    added |= {f"{new}{name}.weight": table.clone() for name in ("embed_tokens", "shared_head.head")}
    added[f"{new}eh_proj.weight"] = 0.05 * torch.randn(norm.numel(), 2 * norm.numel())
    save_file(tensors | added, path, {"format": "pt"})


def family_folder(folder: Path, family: str) -> Path:
    """A model whose norms are not all one, so that a norm which is read wrongly shows."""
    settings = config(family)
    if family in BPE:
        settings.vocab_size = smollm2_tokenizer(folder)
    else:
        sentencepiece_tokenizer(folder)
        _fast_tokenizer(folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    save(model, folder, torch.float32)
    if family == "glm4moe":
        _glm_tokens(folder)
        _add_nextn(folder, settings.num_hidden_layers)
    return folder
