"""transformers' own loader of GGUF files on files with outlier lists, after `import gguf_bof4` and without it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from gguf_writing import finish
from listed import Encoded, tensors_of, write_changed, write_decoded, write_without_lists
from tiny_models import write_llama
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from gguf_bof4.errors import UserError
from gguf_bof4.lists import read_tensor
from gguf_bof4.transformers_loader import OutlierReader

pytest.importorskip("accelerate", reason="transformers loads no GGUF file without it")

LAYERS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of random weights, every matrix in BOF4_S with a list, embeddings and output included."""
    return write_llama(tmp_path_factory.mktemp("transformers") / "listed.gguf", lambda name: True, LAYERS)


def load(path: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(32)[None]).logits


def test_weights_and_logits_are_those_of_the_decoded_file(model: Path, tmp_path: Path) -> None:
    """Whether by this project's decoder, or by transformers from a file of F32 weights that it decoded before."""
    loaded = load(model)
    decoded = load(write_decoded(model, tmp_path / "decoded.gguf"))
    bare = load(write_without_lists(model, tmp_path / "bare.gguf"))
    weights, expected, without = (m.state_dict() for m in (loaded, decoded, bare))
    matrices = [name for name, weight in expected.items() if weight.ndim == 2]
    assert len(matrices) == 2 + 7 * LAYERS
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name
        assert name not in matrices or not torch.equal(without[name], weight), name
    assert torch.equal(logits(loaded), logits(decoded))
    assert not torch.allclose(logits(bare), logits(decoded), atol=0.1)

    # the same by numpy, where transformers does not reorder rows
    reader = gguf.GGUFReader(model)
    for stored, name in (("token_embd", "model.embed_tokens"), ("blk.1.ffn_down", "model.layers.1.mlp.down_proj")):
        assert np.array_equal(weights[f"{name}.weight"].numpy(), read_tensor(reader, f"{stored}.weight"))


def test_invalid_lists_and_single_parts_are_refused(model: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    data, qtype = tensors_of(model)[f"{name}.opq"]
    wrong = data.copy()
    wrong[1] = -1
    damaged = write_changed(model, tmp_path / "damaged.gguf", {f"{name}.opq": (wrong, qtype)})
    with pytest.raises(UserError, match=f"damaged.gguf: outlier list {name}.opq is not valid: its row pointers"):
        load(damaged)
    lonely = write_changed(model, tmp_path / "lonely.gguf", {name: None})
    with pytest.raises(UserError, match=f"lonely.gguf: .*the file has no tensor {name}"):
        load(lonely)
    part = tmp_path / "part-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor(name, tensors_of(model)[name][0], raw_dtype=T.BOF4_S)
    finish(writer)
    with pytest.raises(UserError, match=r"one of 2 parts .*llama-gguf-split --merge"):
        OutlierReader(part)


def test_other_files_and_other_readers_are_left_alone(model: Path, tmp_path: Path) -> None:
    """Programs that copy files with GGUFReader must see the lists."""
    assert any(t.name.endswith(".opq") for t in gguf.GGUFReader(model).tensors)
    load(model)
    assert gguf.GGUFReader is not OutlierReader
    plain: dict[str, Encoded | None] = {}
    for name, (data, qtype) in tensors_of(write_decoded(model, tmp_path / "decoded.gguf")).items():
        wanted = T.Q8_0 if data.ndim == 2 else qtype
        plain[name] = (gguf.quantize(data, wanted), wanted)
    path = write_changed(tmp_path / "decoded.gguf", tmp_path / "q8_0.gguf", plain)
    before, after = gguf.GGUFReader(path).tensors, OutlierReader(path).tensors
    assert [(t.name, t.tensor_type) for t in before] == [(t.name, t.tensor_type) for t in after]
    assert all(np.array_equal(b.data, a.data) for b, a in zip(before, after, strict=True))


CHILD = """
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
import transformers.modeling_gguf_pytorch_utils

def load():
    path = Path(sys.argv[1])
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

try:
    load()
except ValueError as error:
    print(error)
import gguf_bof4
print(float(load().state_dict()["model.layers.0.mlp.up_proj.weight"].double().square().sum()))
"""


def test_import_after_transformers_and_no_import(model: Path) -> None:
    """Without `import gguf_bof4` loading fails; the message has the number of the type, which the documents name."""
    output = subprocess.run(
        [sys.executable, "-c", CHILD, str(model)], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    message, squares = output.splitlines()
    assert re.fullmatch(rf"(np\.uint32\()?{int(T.BOF4_S)}\)? is not a valid GGMLQuantizationType", message)
    expected = read_tensor(gguf.GGUFReader(model), "blk.0.ffn_up.weight")
    assert float(squares) == pytest.approx(np.square(expected, dtype=np.float64).sum(), rel=1e-12)
