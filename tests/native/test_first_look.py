"""What `bof4 convert` says of its result, and `bof4 inspect` of a file: errors, tables, the picture."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import command_line
import gguf
import numpy as np
import pytest
import torch
from convert_models import llama_folder, smollm2_tokenizer, weights, write_gguf
from gguf import GGMLQuantizationType as T

from gguf_bof4 import weight_errors
from gguf_bof4.bench.model_plot import bits_by_layer, errors_by_layer
from gguf_bof4.convert import ConversionReport, convert, encoding
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.weight_errors import GROUPS, ErrorSums, group_of, layer_of, tensor_errors

PNG = b"\x89PNG\r\n\x1a\n"


def exact_errors(output: Path, source: Path) -> dict[str, float]:
    """Relative squared errors of the tensors whose types differ, in float64 by numpy."""
    model, reference = open_model(output), open_model(source)
    wanted = {t.name: t for t in reference.tensors}
    found = {}
    for t in model.tensors:
        if t.qtype != wanted[t.name].qtype and len(t.shape) > 1:
            exact = reference.read_weights(wanted[t.name]).astype(np.float64)
            found[t.name] = float(np.square(model.read_weights(t) - exact).sum() / np.square(exact).sum())
    return found


def reported(report: ConversionReport) -> dict[str, float]:
    return {t.name: t.errors.relative for t in report.tensors if t.errors is not None}


@pytest.mark.parametrize("origin", [T.F32, T.F16, T.BF16, T.Q8_0])
@pytest.mark.parametrize(("qtype", "opq"), [("BOF4_S", "0.95"), ("BOF4_K", "off")])
def test_errors_of_a_conversion_are_those_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: T, qtype: str, opq: str
) -> None:
    monkeypatch.setattr(encoding, "AT_ONCE", 1000)  # several runs a tensor
    source = write_gguf(tmp_path / "source.gguf", origin)
    report = convert(source, tmp_path / "out.gguf", type=qtype, opq=(opq,))
    expected = exact_errors(tmp_path / "out.gguf", source)
    blocks = {t.name for t in report.tensors if gguf.GGML_QUANT_SIZES[T[t.qtype]][0] > 1 and t.source_type != t.qtype}
    assert set(reported(report)) == blocks
    assert {"blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight", "token_embd.weight"} <= blocks
    assert reported(report) == pytest.approx({name: expected[name] for name in blocks}, rel=1e-5)
    assert 0.003 < reported(report)["blk.0.ffn_up.weight"] < 0.009
    assert report.worst[0].name == max(reported(report), key=reported(report).__getitem__)


def test_errors_of_gptq_come_from_the_child_process(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    llama_folder(folder, smollm2_tokenizer(folder), torch.bfloat16)
    convert(folder, tmp_path / "f32.gguf", type="F32")
    text: Any = {"encoder": "gptq", "calibration": __file__, "samples": 2, "sample_length": 32}
    report = convert(folder, tmp_path / "out.gguf", **text)
    expected = exact_errors(tmp_path / "out.gguf", tmp_path / "f32.gguf")
    assert reported(report) == pytest.approx(expected, rel=1e-5)


def test_copies_and_dry_runs_have_no_errors(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "source.gguf")
    assert reported(convert(source, tmp_path / "out.gguf", dry_run=True)) == {}
    convert(source, tmp_path / "out.gguf")
    assert reported(convert(tmp_path / "out.gguf", tmp_path / "copy.gguf")) == {}
    assert reported(convert(source, tmp_path / "f16.gguf", type="F16")) == {}


def test_huge_outliers_have_finite_errors(tmp_path: Path) -> None:
    huge = weights((320, 256), 5)
    huge[7, 3] = 1e30
    source = write_gguf(tmp_path / "source.gguf", replace={"blk.0.ffn_up.weight": huge})
    found = reported(convert(source, tmp_path / "out.gguf"))["blk.0.ffn_up.weight"]
    assert 0 <= found < 1e-4  # that of the BF16 value


def rows_of(output: str, heading: str) -> list[list[str]]:
    """The rows of a plain table under the line that begins with a heading; columns are two spaces apart."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(heading))
    rows = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        rows.append(re.split(r" {2,}", line.strip()))
    return rows


def test_convert_ends_with_tables_and_commands(tmp_path: Path) -> None:
    source, output = write_gguf(tmp_path / "source.gguf"), tmp_path / "out file.gguf"
    done = command_line.bof4("convert", str(source), str(output))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "│" not in done.stdout
    errors, model = exact_errors(output, source), open_model(output)
    groups = {row[0]: row[1:] for row in rows_of(done.stdout, "matrices ")}
    assert list(groups) == [name for name in GROUPS if name in groups]
    assert {"token embeddings", "attention q", "ffn down", "experts up", "router", "output"} <= set(groups)
    up = [t for t in model.tensors if t.name in {"blk.0.ffn_up.weight", "blk.1.ffn_up.weight"}]
    assert groups["ffn up"][0] == "1 BOF4_S + 1 F32"  # one row
    assert groups["ffn up"][2] == f"{model.bits_per_weight(up):.2f}"
    assert groups["experts down"][-1] == f"{errors['blk.0.ffn_down_exps.weight']:.5f}"
    assert len(groups["router"]) == 3  # F32: no error
    worst = rows_of(done.stdout, "worst tensors ")
    ordered = sorted(errors, key=errors.__getitem__, reverse=True)[:5]
    assert [(row[0], row[-1]) for row in worst] == [(name, f"{errors[name]:.5f}") for name in ordered]
    assert done.stdout.endswith(
        f"written:\n    {output}\nnext:\n    bof4 run '{output}'\n    bof4 compare {source} '{output}' -f TEXT\n"
    )


@pytest.mark.parametrize(
    ("name", "group", "layer"),
    [
        ("token_embd.weight", "token embeddings", None),
        ("output.weight", "output", None),
        ("output_norm.weight", "other matrices", None),
        ("blk.0.attn_q.weight", "attention q", 0),
        ("blk.12.attn_q_b.weight", "attention q", 12),
        ("blk.1.attn_qkv.weight", "attention q, k, v", 1),
        ("blk.1.attn_kv_a_mqa.weight", "attention k, v", 1),
        ("blk.1.attn_k.weight", "attention k", 1),
        ("blk.1.attn_v.weight", "attention v", 1),
        ("blk.1.attn_output.weight", "attention output", 1),
        ("blk.3.ffn_gate.weight", "ffn gate", 3),
        ("blk.3.ffn_gate_exps.weight", "experts gate", 3),
        ("blk.3.ffn_gate_up_exps.weight", "experts gate, up", 3),
        ("blk.3.ffn_down_shexp.weight", "shared experts", 3),
        ("blk.3.ffn_gate_inp.weight", "router", 3),
        ("blk.3.ssm_in.weight", "recurrent", 3),
        ("blk.3.nextn.eh_proj.weight", "other matrices", 3),
        ("v.blk.3.attn_q.weight", "attention q", 3),
        ("cls.weight", "other matrices", None),
    ],
)
def test_groups_and_layers(name: str, group: str, layer: int | None) -> None:
    assert (group_of(name), layer_of(name)) == (group, layer)
    assert group in GROUPS


def test_sums() -> None:
    sums = ErrorSums()
    exact = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    sums.add(exact + np.float32(0.5), exact)
    sums.add(exact.copy(), exact)
    assert (sums.squared_error, sums.squared_weights) == (1.0, 50.0)
    assert sums.relative == 0.02
    assert ErrorSums().relative == 0
    assert ErrorSums(1.0, 0.0).relative == float("inf")


def test_inspect_against_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = write_gguf(tmp_path / "source.gguf"), tmp_path / "out.gguf"
    convert(source, output)
    expected = exact_errors(output, source)
    monkeypatch.setattr(weight_errors, "AT_ONCE", 1000)
    shown = command_line.bof4("inspect", str(output), "--reference", str(source), "--json")
    assert shown.returncode == 0, shown.stderr
    tensors = json.loads(shown.stdout)["tensors"]
    found = {t["name"]: t["relative_squared_error"] for t in tensors if "relative_squared_error" in t}
    assert found == pytest.approx(expected, rel=1e-5)
    by_numpy = tensor_errors(open_model(output), open_model(source))
    assert {name: sums.relative for name, sums in by_numpy.items()} == found
    table = command_line.bof4("inspect", str(output), "--reference", str(source)).stdout
    assert f"{expected['blk.0.ffn_up.weight']:.5f}" in table
    assert "error" not in command_line.bof4("inspect", str(output)).stdout


def test_a_reference_of_another_model_is_refused(tmp_path: Path) -> None:
    source, output = write_gguf(tmp_path / "source.gguf"), tmp_path / "out.gguf"
    convert(source, output)
    without = write_gguf(tmp_path / "without.gguf", without=["blk.0.ffn_up.weight"])
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight of shape \[320, 256\] is in .* has no tensor"):
        tensor_errors(open_model(output), open_model(without))
    other = write_gguf(tmp_path / "other.gguf", shapes={"token_embd.weight": (8, 256)})
    with pytest.raises(UserError, match=r"token_embd\.weight of shape .* has it with the shape \[8, 256\]"):
        tensor_errors(open_model(output), open_model(other))


def test_points_of_the_picture(tmp_path: Path) -> None:
    source, output = write_gguf(tmp_path / "source.gguf"), tmp_path / "out.gguf"
    convert(source, output)
    model = open_model(output)
    bits = bits_by_layer(model)
    by_name = {t.name: model.bits_per_weight([t]) for t in model.tensors}
    assert bits["ffn up"] == {0: by_name["blk.0.ffn_up.weight"], 1: by_name["blk.1.ffn_up.weight"]}
    assert bits["token embeddings"] == {-1: by_name["token_embd.weight"]}
    assert bits["output"] == {2: by_name["output.weight"]}
    errors = tensor_errors(model, open_model(source))
    points = errors_by_layer(model, errors)
    assert points["attention q"] == {0: errors["blk.0.attn_q.weight"].relative}
    assert "router" not in points  # in F32 in both


def test_the_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    source, output = write_gguf(tmp_path / "source.gguf"), tmp_path / "out.gguf"
    convert(source, output)
    sizes = []
    for reference in ([], ["--reference", str(source)]):
        picture = tmp_path / "picture.png"
        done = command_line.bof4("inspect", str(output), "--plot", str(picture), *reference)
        assert done.returncode == 0, done.stderr
        assert picture.read_bytes().startswith(PNG)
        pixels = imread(picture)
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50  # lines of several colours
        sizes.append(pixels.shape)
    (one, width, _), (two, other, _) = sizes
    assert (two, other) == (2 * one, width)  # a panel of bits, and with a reference one of errors


def test_pictures_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_gguf(tmp_path / "source.gguf")
    for name, message in (("x.txt", "Give a name that ends in .png"), ("none/x.png", "cannot be written: No such")):
        refused = command_line.bof4("inspect", str(source), "--plot", str(tmp_path / name))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert message in refused.stderr
        assert not (tmp_path / name).exists()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    refused = command_line.bof4("inspect", str(source), "--plot", str(tmp_path / "x.png"))
    assert refused.stderr == "bof4: --plot needs matplotlib: pip install 'gguf-bof4[bench]'\n"
