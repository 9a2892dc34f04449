"""Hugging Face folders: the same tensors as by way of upstream's own GGUF file, and models that run."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from convert_models import llama_folder, save, sentencepiece_tokenizer, smollm2_tokenizer, tensors, types
from llama import THREADS, succeed
from program import bof4

from gguf_bof4.convert import convert
from gguf_bof4.ggml_patch.build import source_tree
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.packaged_models import fetch_minilm
from gguf_bof4.verify import verify


def by_way_of_upstream(folder: Path, directory: Path, outtype: str) -> Path:
    """What upstream's own program makes of the folder."""
    path = directory / f"upstream-{outtype}.gguf"
    done = subprocess.run(
        [sys.executable, source_tree() / "convert_hf_to_gguf.py", folder, "--outtype", outtype, "--outfile", path],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path


def sharded_llama(folder: Path) -> Path:
    """bfloat16, in shards, tokenizer.json; rows of 352 do not fit, q and k are permuted by upstream."""
    return llama_folder(folder, smollm2_tokenizer(folder), torch.bfloat16, shard_size="3MB")


def sentencepiece_llama(folder: Path) -> Path:
    """float16, tokenizer.model, tied embeddings."""
    sentencepiece_tokenizer(folder)
    return llama_folder(folder, 400, torch.float16, tie_word_embeddings=True)


def mixtral(folder: Path) -> Path:
    """bfloat16, the experts of a layer are stacked by upstream; routers stay F32."""
    sentencepiece_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=400, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    return save(transformers.MixtralForCausalLM(config), folder, torch.bfloat16)


def phi3(folder: Path) -> Path:
    """bfloat16, fused projections, factors of rotary embeddings that upstream makes itself."""
    sentencepiece_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=400, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return save(transformers.Phi3ForCausalLM(config), folder, torch.bfloat16)


@pytest.mark.parametrize(
    ("make", "outtype"),
    [
        (sharded_llama, "bf16"), (sentencepiece_llama, "f16"), (mixtral, "auto"), (phi3, "f32"),
    ],
)  # fmt: skip
def test_same_as_by_way_of_a_gguf_file(tmp_path: Path, make: Callable[[Path], Path], outtype: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    report = convert(folder, tmp_path / "direct.gguf")
    via = convert(by_way_of_upstream(folder, tmp_path, outtype), tmp_path / "via.gguf")
    direct = tensors(report.outputs[0])
    assert direct == tensors(via.outputs[0])
    assert sum(kind == "BOF4_S" for kind, _, _ in direct.values()) >= 6
    assert {t.name for t in report.fallbacks} == {t.name for t in via.fallbacks}
    before, after = (open_model(r.outputs[0]).fields for r in (report, via))
    assert {k: f.contents() for k, f in before.items()} == {k: f.contents() for k, f in after.items()}
    assert report.bytes_before == sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def embedding(model: Path, text: str) -> np.ndarray:
    """llama-embedding's vector of a text."""
    for _ in range(10):
        said = succeed("embedding", "-m", model, "-p", text, "--embd-output-format", "array", *THREADS)
        # upstream's program prints through a thread that it does not always wait for: the end may be missing
        if found := re.fullmatch(r"\[\[([^\]]*)\]\]\s*", said):
            vector = np.array(found[1].split(","), dtype=np.float64)
            return vector / np.linalg.norm(vector)
    raise AssertionError(f"llama-embedding never printed a whole vector: {said}")


def test_minilm(tmp_path: Path) -> None:
    folder, output = fetch_minilm(), tmp_path / "minilm.gguf"
    done = bof4("convert", str(folder), str(output), "--type", "BOF4_S", "--model-name", "my model")
    assert done.returncode == 0, done.stderr
    assert "token_embd.weight: rows of 384 are no multiple of Q6_K's 256: Q8_0" in done.stdout
    upstream = by_way_of_upstream(folder, tmp_path, "f32")
    assert tensors(output) == tensors(convert(upstream, tmp_path / "via.gguf").outputs[0])
    assert open_model(output).value("general.name") == "my model"
    assert len(list(verify(output))) == 36

    near, far = "The cat sleeps on the warm sofa.", "Interest rates rose by a quarter of a percent."
    ours, exact = ([embedding(path, text) for text in (near, far)] for path in (output, upstream))
    assert ours[0] @ exact[0] > 0.96
    assert ours[1] @ exact[1] > 0.96
    assert abs(ours[0] @ ours[1] - exact[0] @ exact[1]) < 0.1


def test_options_reach_the_folder_route(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    sentencepiece_tokenizer(folder)
    llama_folder(folder, 400, torch.bfloat16)
    report = convert(
        folder, tmp_path / "out.gguf", split_max_size="40K", token_embedding_type="q4_0",
        tensor_types=("ffn_up=q5_0", "attn_.*=f16"), leave_output_tensor=True, threads=1,
    )  # fmt: skip
    assert len(report.outputs) > 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["model", *(p.name for p in report.outputs)])
    found = types(report.outputs[0])
    assert found["token_embd.weight"] == "Q4_0"
    assert found["blk.1.ffn_up.weight"] == "Q5_0"
    assert found["blk.0.attn_q.weight"] == found["blk.0.attn_v.weight"] == "F16"
    assert found["output.weight"] == "BF16"
    assert found["blk.0.ffn_gate.weight"] == "BOF4_S"

    dry = convert(folder, tmp_path / "dry.gguf", dry_run=True)
    assert dry.outputs == (tmp_path / "dry.gguf",)
    assert not dry.outputs[0].exists()
    assert {t.name for t in dry.tensors} == found.keys()


def test_the_current_folder_does_not_get_in_the_way(tmp_path: Path) -> None:
    """A user may well stand in a folder with a gguf or conversion of their own."""
    for name in ("gguf", "conversion", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not the module that was meant')\n")
    folder = tmp_path / "model"
    folder.mkdir()
    sentencepiece_llama(folder)
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        report = convert(Path("model"), Path("out.gguf"))
    finally:
        os.chdir(here)
    assert report.architecture == "llama"
    assert (tmp_path / "out.gguf").is_file()
