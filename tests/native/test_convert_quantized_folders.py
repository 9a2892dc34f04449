"""Hugging Face folders that are quantized already in ways upstream cannot decode; tokenizers larger than the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_models import llama_folder, sentencepiece_tokenizer, smollm2_tokenizer
from program import bof4
from safetensors.torch import load_file, save_file


def set_config(folder: Path, **values: Any) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


def replace_matrices(folder: Path, make: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Replace the matrices of the blocks by what `make` returns for a name and a matrix."""
    (file,) = folder.glob("*.safetensors")
    made: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(file).items():
        made |= make(name, tensor) if "_proj." in name else {name: tensor}
    save_file(made, file, metadata={"format": "pt"})


def bitsandbytes(folder: Path) -> tuple[str, ...]:
    """NF4, as transformers saves it."""

    def packed(name: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: torch.zeros((x.numel() // 2, 1), dtype=torch.uint8),
            f"{name}.absmax": torch.ones(x.numel() // 64),
            f"{name}.quant_map": torch.linspace(-1, 1, 16),
            f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
        }

    replace_matrices(folder, packed)
    set_config(
        folder,
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    )
    return ("quantized already (bitsandbytes, 4 bits, nf4)", "Give the unquantized model")


def awq(folder: Path) -> tuple[str, ...]:
    """AutoAWQ, 4 bits in groups of 64."""

    def packed(name: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
        stem, (rows, columns) = name.removesuffix(".weight"), x.shape
        return {
            f"{stem}.qweight": torch.zeros((columns, rows // 8), dtype=torch.int32),
            f"{stem}.qzeros": torch.zeros((columns // 32, rows // 8), dtype=torch.int32),
            f"{stem}.scales": torch.ones((columns // 32, rows), dtype=torch.float16),
        }

    replace_matrices(folder, packed)
    set_config(folder, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})
    return ("quantized already (awq, 4 bits)", "Give the unquantized model")


def fp8_per_tensor(folder: Path) -> tuple[str, ...]:
    """compressed-tensors, one scale for a matrix."""
    replace_matrices(
        folder,
        lambda name, x: {name: x.to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1, dtype=torch.bfloat16)},
    )
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "group_size": None}
    set_config(
        folder,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        },
    )
    return ("quantized already (compressed-tensors, 8 bits, float-quantized, scales per tensor)", "unquantized model")


def gptq_without_a_configuration(folder: Path) -> tuple[str, ...]:
    """What AutoGPTQ saved at first: its settings are in a file of their own."""

    def packed(name: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
        stem, (rows, columns) = name.removesuffix(".weight"), x.shape
        return {
            f"{stem}.qweight": torch.zeros((columns // 8, rows), dtype=torch.int32),
            f"{stem}.qzeros": torch.zeros((columns // 32, rows // 8), dtype=torch.int32),
            f"{stem}.scales": torch.ones((columns // 32, rows), dtype=torch.float16),
            f"{stem}.g_idx": torch.arange(columns, dtype=torch.int32) // 32,
        }

    replace_matrices(folder, packed)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32}))
    return ("quantized already (an unnamed method, 4 bits (quantize_config.json))", "Give the unquantized model")


def large_tokenizer(folder: Path) -> tuple[str, ...]:
    """A tokenizer with a token for which the model has no row."""
    (folder / "tokenizer.model").unlink()
    size = smollm2_tokenizer(folder)
    return ("the tokenizer is larger than the model", f"token is {size - 1}, but vocab_size in config.json is 400")


CHANGES = [bitsandbytes, awq, fp8_per_tensor, gptq_without_a_configuration, large_tokenizer]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_folders_that_upstream_cannot_read_say_what_they_are(
    tmp_path: Path, change: Callable[[Path], tuple[str, ...]]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    sentencepiece_tokenizer(folder)
    llama_folder(folder, 400, torch.float16, num_hidden_layers=1)
    expected = change(folder)
    done = bof4("convert", str(folder), str(tmp_path / "out.gguf"))
    assert done.returncode == 1 and done.stderr.startswith(f"bof4: {folder}"), done.stderr
    assert "Traceback" not in done.stderr and all(text in done.stderr for text in expected), done.stderr
    assert list(tmp_path.iterdir()) == [folder]
