"""AutoRound as a peer of the quality bench, with a program in its place: command line, take-over, errors."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf_writing import finish, write_tensors

from gguf_bof4.bench import auto_round, quality
from gguf_bof4.bench.auto_round import RECIPES, command, export, find_program, take_over, write_calibration
from gguf_bof4.bench.measure import bits_per_weight, check_rest, fallbacks
from gguf_bof4.bench.variants import ENCODERS, TYPES, Variant, variants
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model

Floats = npt.NDArray[np.float32]
MATRICES = {"blk.0.attn_q.weight": (8, 64), "blk.0.ffn_down.weight": (4, 96), "blk.0.ffn_up_exps.weight": (2, 4, 64)}


@pytest.fixture
def weights() -> dict[str, npt.NDArray[Any]]:
    """Of a model of one block with experts."""
    rng = np.random.default_rng(11)
    found: dict[str, npt.NDArray[Any]] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in MATRICES.items()
    }
    return found | {
        "token_embd.weight": rng.standard_normal((8, 64)).astype(np.float16),
        "blk.0.attn_norm.weight": rng.standard_normal(64).astype(np.float32),
    }


@pytest.fixture
def source(tmp_path: Path, weights: dict[str, npt.NDArray[Any]]) -> Path:
    return write_tensors(tmp_path / "source.gguf", weights, numbers={"llama.block_count": 1})


def exported(path: Path, weights: dict[str, npt.NDArray[Any]]) -> Path:
    """A file as AutoRound writes it: other metadata, embeddings quantized, too, another order."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 77)
    for name, array in reversed(weights.items()):
        if array.ndim == 1:
            writer.add_tensor(name, array + 1)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0 if "embd" in name else gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(name, gguf.quantize(array.astype(np.float32), kind), raw_dtype=kind)
    finish(writer)
    return path


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_auto_round_is_measured_where_it_is_named_for_the_types_that_it_has() -> None:
    assert not set(auto_round.ENCODERS) & set(ENCODERS)
    found = variants(TYPES, auto_round.ENCODERS, ("off", "0.95"))
    assert found == tuple(Variant(t, e) for t in ("Q4_0", "Q4_K") for e in ("auto-round", "auto-round:rtn"))
    tuned, nearest = (v.recipe for v in found[:2])
    assert "auto-round:0.16.1 iters=50 nsamples=64 seqlen=512 batch=4 lr=0.005" in tuned
    assert "auto-round:0.16.1 iters=0 nsamples=64 seqlen=512 batch=8" in nearest
    plan = quality.make_plan(["smol"], found, ["test"], 8, ())
    assert plan.seconds("smol") > quality.make_plan(["smol"], found[1:2], ["test"], 8, ()).seconds("smol") > 60


def test_a_missing_program_is_noticed_first_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = quality.make_plan(["smol"], variants(["Q4_0"], ["auto-round"], ["off"]), ["test"], 1, ())
    with pytest.raises(UserError, match=r"no auto-round in PATH: .*pip install auto-round==0\.16\.1") as raised:
        quality.run(plan, tmp_path / "rows.csv", 1, lambda _: None)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="nothing is no program"):
        quality.run(plan, tmp_path / "rows.csv", 1, lambda _: None, tmp_path / "nothing")
    assert find_program(program(tmp_path / "mine", "")) == tmp_path / "mine"
    program(tmp_path / "auto-round", "")
    assert find_program(None) == tmp_path / "auto-round"


def test_the_program_gets_model_text_and_recipe_and_no_network(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    (output / "inside").mkdir(parents=True)
    said, where = tmp_path / "said", shlex.quote(str(output / "inside" / "made.gguf"))
    stub = program(
        tmp_path / "auto-round",
        f'printf "%s\\n" "$@" $HF_HUB_OFFLINE $OMP_NUM_THREADS > {shlex.quote(str(said))}\n'
        f"cp {shlex.quote(str(source))} {where}",
    )
    arguments = command(stub, tmp_path / "model", tmp_path / "text.jsonl", output, "Q4_K", RECIPES["auto-round"])
    assert export(arguments, tmp_path, output, 2) == output / "inside" / "made.gguf"
    words = said.read_text().splitlines()
    assert words[:2] == ["quantize", str(tmp_path / "model")]
    options = dict(pairwise(words))
    expected = {
        "--format": "gguf:q4_k_s", "--dataset": str(tmp_path / "text.jsonl"), "--iters": "50", "--nsamples": "64",
        "--seqlen": "512", "--batch_size": "4", "--lr": "0.005", "--device_map": "cpu", "--output_dir": str(output),
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    assert words[-2:] == ["1", "2"]
    assert "--lr" not in command(stub, tmp_path, tmp_path, output, "Q4_0", RECIPES["auto-round:rtn"])


def test_a_program_that_fails_or_writes_nothing_is_quoted(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    broken = program(tmp_path / "broken", "echo no such scheme >&2; exit 3")
    with pytest.raises(UserError, match=r"failed with exit code 3:\nno such scheme\n.*auto-round 0\.16\.1"):
        export([str(broken)], tmp_path, output, 0)
    with pytest.raises(UserError, match=r"wrote 0 GGUF files instead of one:\ndone"):
        export([str(program(tmp_path / "idle", "echo done"))], tmp_path, output, 0)


def test_samples_are_pieces_of_the_text_in_order(tmp_path: Path) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "text.jsonl"
    text.write_text("".join(f"word {i:03}\n" for i in range(100)), encoding="utf-8")
    assert write_calibration(text, 30, target) == 5  # 900 characters in pieces of 180
    pieces = [json.loads(line)["text"] for line in target.read_text().splitlines()]
    assert "".join(pieces) == text.read_text()


def test_a_text_that_is_too_short_is_refused_before_auto_round_runs(tmp_path: Path, source: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("word " * 2000)
    with pytest.raises(UserError, match=r"short\.txt has 3 samples of 512 tokens, and AutoRound gets 64"):
        auto_round.make_auto_round(
            "Q4_0", "auto-round", open_model(source), text, tmp_path / "made.gguf", tmp_path / "none", 1
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["short.txt", "source.gguf"]


def test_only_the_matrices_of_the_blocks_are_taken_over(
    tmp_path: Path, source: Path, weights: dict[str, npt.NDArray[Any]]
) -> None:
    made, target = exported(tmp_path / "made.gguf", weights), tmp_path / "target.gguf"
    take_over(made, open_model(source), target, gguf.LlamaFileType.MOSTLY_Q4_0)
    found, before, there = (open_model(p) for p in (target, source, made))
    check_rest(found, before)
    assert fallbacks(found, "Q4_0") == {}
    assert bits_per_weight(found) == 4.5
    assert found.integer("llama.block_count") == 1
    assert found.integer("general.file_type") == gguf.LlamaFileType.MOSTLY_Q4_0
    old, exports = ({t.name: t for t in m.tensors} for m in (before, there))
    assert [t.name for t in found.tensors] == list(old)
    for t in found.tensors:
        origin = (exports if t.name in MATRICES else old)[t.name]
        assert (t.qtype, t.shape) == (origin.qtype, origin.shape)
        assert t.read_rows().tobytes() == origin.read_rows().tobytes()


def test_an_export_of_another_model_is_refused(
    tmp_path: Path, source: Path, weights: dict[str, npt.NDArray[Any]]
) -> None:
    model, target, name = open_model(source), tmp_path / "target.gguf", "blk.0.attn_q.weight"

    def refused(changed: dict[str, npt.NDArray[Any]], message: str) -> None:
        with pytest.raises(UserError, match=message):
            take_over(exported(tmp_path / "made.gguf", changed), model, target, gguf.LlamaFileType.MOSTLY_Q4_0)
        assert not target.exists()

    refused({n: w for n, w in weights.items() if n != name}, rf"made\.gguf: there is no {name}")
    refused(weights | {name: weights[name][:4]}, rf"{name} has the shape \(4, 64\) instead of \(8, 64\)")
    # the halves of a head interleaved: what llama's GGUF files and Hugging Face folders have differently
    permuted = weights[name].reshape(2, 4, 64).swapaxes(0, 1).reshape(8, 64)
    refused(weights | {name: permuted}, rf"{name} is not the matrix of .*: its squared error is 1\.\d+ of")
    refused(weights | {name: np.zeros_like(weights[name])}, rf"{name} is not the matrix of .*: its squared error is 1 ")


def test_the_recipe_of_a_row_changes_with_every_part_of_it() -> None:
    recipe = RECIPES["auto-round"]
    changes: list[dict[str, Any]] = [
        {"iterations": 7}, {"samples": 7}, {"length": 7}, {"batch": 7}, {"learning_rate": None},
    ]  # fmt: skip
    assert len({str(recipe), *(str(replace(recipe, **change)) for change in changes)}) == len(changes) + 1
