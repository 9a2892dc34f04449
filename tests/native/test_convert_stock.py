"""Back to stock llama.cpp: files of F16, BF16, F32 and Q8_0 without anything of this project, outliers applied."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from convert_models import SHAPES, llama_folder, sentencepiece_tokenizer, tensors, types, weights, write_gguf
from gguf import GGMLQuantizationType as T
from program import bof4
from safetensors.torch import load_file

from gguf_bof4 import native, read_tensor
from gguf_bof4.convert import convert
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.verify import verify

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""llama_ftype of llama.h."""

READ_BY_STOCK = """
import gguf, json, sys
found = {"keys": {}, "types": {}}
for path in sys.argv[1:]:
    reader = gguf.GGUFReader(path)
    found["keys"] |= {k: str(f.contents()) for k, f in reader.fields.items()}
    found["types"] |= {t.name: t.tensor_type.name for t in reader.tensors}
assert "gguf_bof4" not in sys.modules
print(json.dumps(found))
"""


def read_by_stock(*paths: Path) -> dict[str, dict[str, str]]:
    """Metadata and types of tensors, read with the gguf package as it comes, which knows no type of this project."""
    done = subprocess.run([sys.executable, "-c", READ_BY_STOCK, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def mixed_source(folder: Path, **options: Any) -> Path:
    """BOF4_S and BOF4_K with lists, three dimensions, Q6_K embeddings, Q4_0, F16 and F32; an outlier in most rows."""
    replace = {name: weights(shape, 100 + i) for i, (name, shape) in enumerate(SHAPES.items())}
    for array in replace.values():
        array[..., 3] *= 30
    plain = write_gguf(folder / "plain.gguf", replace=replace)
    choice = ("attn_q=bof4_k", "ffn_up_exps=bof4_k", "attn_v=q4_0", "attn_k=f16")
    return convert(plain, folder / "mixed.gguf", tensor_types=choice, encoder="absmax", **options).outputs[0]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_source(tmp_path_factory.mktemp("mixed"))


def test_the_source_has_what_the_tests_need(mixed: Path) -> None:
    model = open_model(mixed)
    assert {t.qtype.name for t in model.tensors} >= {"BOF4_S", "BOF4_K", "Q6_K", "Q4_0", "F16", "F32"}
    assert {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.0.attn_output.weight"} <= set(model.lists)


@pytest.mark.parametrize("name", FILE_TYPES)
def test_outliers_are_applied(tmp_path: Path, mixed: Path, name: str) -> None:
    """Every tensor is what the numpy reference decodes, outliers included, encoded once in the new type."""
    out = convert(mixed, tmp_path / "out.gguf", type=name.lower()).outputs[0]
    reader, model = gguf.GGUFReader(mixed), open_model(mixed)
    after = tensors(out)
    for t in model.tensors:
        kind, shape, data = after[t.name]
        exact = read_tensor(reader, t.name)
        assert shape == t.shape == exact.shape
        if t.qtype == T.F32 and kind == "F32":
            assert data == t.read_rows().tobytes()
            continue
        assert kind == name or (name == "Q8_0" and t.shape[-1] % 32 and kind == "F16"), t.name
        expected = exact if kind == "F32" else gguf.quantize(exact, T[kind])
        assert data == expected.tobytes(), t.name


def test_norms_and_vectors_stay_as_they_are(tmp_path: Path, mixed: Path) -> None:
    out = types(convert(mixed, tmp_path / "out.gguf", type="F16").outputs[0])
    # a matrix of one row is a vector to llama-quantize
    kept = {name for name, shape in SHAPES.items() if len(shape) == 1 or shape[0] == 1 or "gate_inp" in name}
    assert {name for name, kind in out.items() if kind == "F32"} == kept
    assert all(kind == "F16" for name, kind in out.items() if name not in kept)


@pytest.mark.parametrize("name", FILE_TYPES)
@pytest.mark.parametrize("without", [(), ("output.weight",)], ids=["untied", "tied"])
def test_same_as_llama_quantize(tmp_path: Path, name: str, without: tuple[str, ...]) -> None:
    """A file without lists, which the patched llama-quantize reads."""
    plain = write_gguf(tmp_path / "plain.gguf", without=without)
    source = convert(plain, tmp_path / "bof4.gguf", opq=("off",), encoder="absmax").outputs[0]
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    program = installed_bin() / "llama-quantize"
    done = subprocess.run(
        [program, "--allow-requantize", source, theirs, name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    convert(source, ours, type=name)
    expected = tensors(theirs)
    # llama-quantize drops dimensions of 1
    expected["blk.1.ffn_up.weight"] = (expected["blk.1.ffn_up.weight"][0], (1, 256), expected["blk.1.ffn_up.weight"][2])
    assert tensors(ours) == expected
    assert open_model(theirs).value("general.file_type") == open_model(ours).value("general.file_type")


@pytest.mark.parametrize("name", FILE_TYPES)
def test_nothing_of_this_project_is_left(tmp_path: Path, mixed: Path, name: str) -> None:
    found = read_by_stock(convert(mixed, tmp_path / "out.gguf", type=name).outputs[0])
    assert not [key for key in found["keys"] if "bof4" in key]
    assert not [tensor for tensor in found["types"] if tensor.endswith(".opq")]
    assert found["keys"]["general.file_type"] == str(FILE_TYPES[name])
    assert found["keys"]["general.quantization_version"] == "2"
    before = {k: str(f.contents()) for k, f in open_model(mixed).fields.items() if not k.startswith(("GGUF.", "bof4."))}
    replaced = {"general.file_type", "general.quantization_version"}
    after = {k: v for k, v in found["keys"].items() if not k.startswith("GGUF.")}
    assert {k: v for k, v in after.items() if k not in replaced} == {
        k: v for k, v in before.items() if k not in replaced
    }


def test_parts_in_and_out(tmp_path: Path, mixed: Path) -> None:
    parts = mixed_source(tmp_path, split_max_size="100K")
    assert parts.name.startswith("mixed-00001-of-")
    whole = convert(mixed, tmp_path / "whole.gguf", type="F16").outputs[0]
    joined = convert(parts, tmp_path / "joined.gguf", type="F16").outputs[0]
    assert whole.read_bytes() == joined.read_bytes()
    report = convert(parts, tmp_path / "{ftype}.gguf", type="F16", split_max_size="200K")
    assert len(report.outputs) > 2
    assert report.outputs[0].name.startswith("f16-00001-of-")
    assert tensors(report.outputs[0]) == tensors(whole)
    found = read_by_stock(*report.outputs)
    assert found["types"] == types(whole)
    assert not [key for key in found["keys"] if "bof4" in key]


def test_what_the_command_says(tmp_path: Path, mixed: Path) -> None:
    done = bof4("convert", str(mixed), str(tmp_path / "out.gguf"), "--type", "F16")
    assert done.returncode == 0, done.stderr
    assert "BOF4_S" in done.stdout.partition("decoded: ")[2].splitlines()[0]
    assert "second error" not in done.stdout  # nothing is quantized again
    done = bof4("convert", str(mixed), str(tmp_path / "q8.gguf"), "--type", "q8_0")
    assert "BOF4_S already; converting them again adds a second error" in done.stdout


def test_bof4_tensors_that_options_keep_are_warned_of(tmp_path: Path) -> None:
    source = convert(write_gguf(tmp_path / "in.gguf"), tmp_path / "bof4.gguf", pure=True, encoder="absmax").outputs[0]
    options = ("--type", "F16", "--leave-output-tensor")
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"), *options)
    assert done.returncode == 0, done.stderr
    assert "warning: 1 BOF4_S are left, by your options: only the patched llama.cpp runs this file" in done.stdout
    # and its list is kept
    assert list(open_model(tmp_path / "out.gguf").lists) == ["output.weight"]


@pytest.mark.parametrize(
    ("name", "value", "fits"), [("F16", 70000.0, "BF16"), ("Q8_0", 1e7, "BF16"), ("BF16", 3.4e38, "F32")]
)
def test_weights_that_the_type_cannot_hold(tmp_path: Path, name: str, value: float, fits: str) -> None:
    huge = weights(SHAPES["blk.0.ffn_up_exps.weight"], 0)
    huge[2, 7, 200] = -value
    source = write_gguf(tmp_path / "model.gguf", replace={"blk.0.ffn_up_exps.weight": huge})
    with pytest.raises(UserError) as refused:
        convert(source, tmp_path / "out.gguf", type=name)
    message = str(refused.value)
    assert "model.gguf: tensor blk.0.ffn_up_exps.weight has a weight at [2, 7, 200]" in message
    assert f"too large for {name}; give it {fits}" in message
    remedy = message.partition("--tensor-type '")[2].partition("'")[0]
    out = convert(source, tmp_path / "out.gguf", type=name, tensor_types=(remedy,)).outputs[0]
    assert types(out)["blk.0.ffn_up_exps.weight"] == fits
    if fits == "BF16":
        assert "(--type BF16 for all matrices)" in message
        convert(source, tmp_path / "all.gguf", type=fits)


def test_an_outlier_that_the_type_cannot_hold(tmp_path: Path) -> None:
    """A BF16 of a list can be larger than any F16."""
    huge = weights(SHAPES["blk.0.attn_q.weight"], 0)
    huge[5, 9] = 1e6
    plain = write_gguf(tmp_path / "plain.gguf", replace={"blk.0.attn_q.weight": huge})
    source = convert(plain, tmp_path / "bof4.gguf").outputs[0]
    with pytest.raises(UserError, match=r"blk.0.attn_q.weight has a weight at \[5, 9\] that is too large for F16"):
        convert(source, tmp_path / "out.gguf", type="F16")
    out = convert(source, tmp_path / "out.gguf", type="BF16").outputs[0]
    data = next(t for t in open_model(out).tensors if t.name == "blk.0.attn_q.weight").read_rows()
    assert native.dequantize(data, T.BF16)[5, 9] == np.float32(gguf.dequantize(gguf.quantize(
        np.full((1, 1), 1e6, np.float32), T.BF16), T.BF16)[0, 0])  # fmt: skip


PLAIN_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 21, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18,
    "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
"""llama_ftype of the file type that has no mixture, of llama.h."""


@pytest.mark.parametrize("name", PLAIN_TYPES)
def test_types_of_llama_cpp(tmp_path: Path, mixed: Path, name: str) -> None:
    """As llama-quantize encodes them, from floats and from a BOF4 file; nothing of this project is left."""
    plain = write_gguf(tmp_path / "plain.gguf")
    out = convert(plain, tmp_path / "{ftype}.gguf", type=name.lower()).outputs[0]
    assert out.name == f"{name.lower()}.gguf"
    read = read_by_stock(out)
    assert read["keys"]["general.file_type"] == str(PLAIN_TYPES[name])
    assert [key for key in read["keys"] if "bof4" in key] == []
    assert read["types"]["blk.0.ffn_up.weight"] == name and read["types"]["token_embd.weight"] == "Q6_K"
    source = next(t for t in open_model(plain).tensors if t.name == "blk.0.ffn_up.weight")
    floats = open_model(plain).read_weights(source, native.dequantize).reshape(source.shape)
    assert tensors(out)["blk.0.ffn_up.weight"][2] == native.quantize(floats, T[name]).tobytes()
    requantized = read_by_stock(convert(mixed, tmp_path / "again.gguf", type=name).outputs[0])
    assert [key for key in (*requantized["keys"], *requantized["types"]) if "bof4" in key or ".opq" in key] == []
    assert not {"BOF4_S", "BOF4_K"} & set(requantized["types"].values())


def test_encoders_that_run_the_model_are_refused(tmp_path: Path, mixed: Path) -> None:
    with pytest.raises(UserError, match="gptq is not implemented for F16"):
        convert(mixed, tmp_path / "out.gguf", type="F16", encoder="gptq", calibration=str(mixed))


def test_a_folder(tmp_path: Path) -> None:
    """Upstream's own names and layout, each weight cast once; named as a snapshot in the hub's cache is."""
    folder = tmp_path / "models--some-org--tiny-llama" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    folder.mkdir(parents=True)
    sentencepiece_tokenizer(folder)
    llama_folder(folder, 400, torch.bfloat16, num_hidden_layers=1)
    out = convert(folder, tmp_path / "out.gguf", type="F16").outputs[0]
    original, found = load_file(folder / "model.safetensors"), tensors(out)
    for theirs, ours in {"embed_tokens": "token_embd", "layers.0.mlp.down_proj": "blk.0.ffn_down"}.items():
        kind, _, data = found[f"{ours}.weight"]
        assert (kind, data) == ("F16", original[f"model.{theirs}.weight"].to(torch.float16).numpy().tobytes())
    assert set(types(out).values()) == {"F16", "F32"}
    model = open_model(out)
    assert model.value("general.file_type") == FILE_TYPES["F16"]
    assert (model.value("general.name"), model.value("general.organization")) == ("Tiny Llama", "Some Org")
    assert not [key for key, field in model.fields.items() if "0123456789abcdef" in str(field.contents())]


@pytest.mark.filterwarnings("error")
def test_outliers_whose_squares_overflow_are_verified(tmp_path: Path) -> None:
    huge = weights(SHAPES["blk.0.attn_q.weight"], 0)
    huge[-1, -1] = 1e25  # the last: running sums of outliers lose what follows such a one
    plain = write_gguf(tmp_path / "plain.gguf", replace={"blk.0.attn_q.weight": huge})
    checks = list(verify(open_model(convert(plain, tmp_path / "bof4.gguf").outputs[0])))
    assert any(check.tensor.name == "blk.0.attn_q.weight" for check in checks)
