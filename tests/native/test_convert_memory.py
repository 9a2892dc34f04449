"""Peak memory: under 1 GB plus three times the largest tensor, however large the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_models import llama_folder, sentencepiece_tokenizer, sparse_gguf, sparse_safetensors

LARGEST = 2 * 16384 * 2048
"""Bytes of the largest tensor: 67 MB."""

LAYERS = 28
FASTER = r"blk\.[12]\d\.ffn=q8_0"
"""18 of the layers are encoded in a quarter of the time: what is kept of one tensor after the other is too much in any
type, and the type of most tensors does not change what one needs."""
BOUND = 1_000_000_000 + 3 * LARGEST


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A small process between: the kernel counts the memory of the process that starts another one as that one's, too, and
here it may have more than the bound."""


def peak_memory(source: Path, output: Path) -> int:
    """Bytes of the largest process that takes part in a conversion."""
    bof4 = Path(sys.executable).with_name("bof4")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, bof4, "convert", source, output, "--tensor-type", FASTER],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_bound(tmp_path: Path, kind: str) -> None:
    wide, tall = (2048, 16384), (16384, 2048)
    if kind == "gguf":
        shapes = {f"blk.{i}.ffn_up.weight": tall for i in range(LAYERS)}
        source = sparse_gguf(tmp_path / "model.gguf", shapes | {"token_embd.weight": tall})
        size = source.stat().st_size
    else:
        source = tmp_path / "model"
        source.mkdir()
        sentencepiece_tokenizer(source)
        llama_folder(source, 400, torch.bfloat16, num_hidden_layers=LAYERS, num_key_value_heads=4)
        shapes = {f"model.layers.{i}.mlp.down_proj.weight": wide for i in range(LAYERS)}
        # upstream permutes this one, so it cannot be read in runs of rows
        shapes |= {f"model.layers.{i}.self_attn.q_proj.weight": tall for i in range(4)}
        size = sparse_safetensors(source / "model.safetensors", shapes).stat().st_size
    # a converter that holds or maps the whole model is over the bound
    assert size > 1.5 * BOUND
    peak = peak_memory(source, tmp_path / "out.gguf")
    (tmp_path / "out.gguf").unlink()
    assert peak < BOUND
