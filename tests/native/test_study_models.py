"""The study's experiments on small models of random weights, and its formats that call the native library."""

from __future__ import annotations

import csv
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from calibration_models import family_folder
from command_line import bof4
from safetensors.torch import load_file, save_file

from gguf_bof4 import lists, native
from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMATS
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.native import BlockEncoder
from gguf_bof4.study import capture, standard
from gguf_bof4.study.ggml_types import OWN_TYPES, TYPES
from gguf_bof4.study.models import ActivationQuantizer, Loaded, load, same_for_all
from gguf_bof4.study.quality import Bench, Calibrated, Case, by_variance, check_case
from gguf_bof4.study.registry import parse_format
from gguf_bof4.study.tables import ModelRow, TaskRow


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python sources: the tokenizer of the small models is trained on them."""
    target = tmp_path_factory.mktemp("text") / "text.txt"
    target.write_text("\n".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py"))))
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, rows of 128 and 256."""
    return family_folder(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def bench(folder: Path, text: Path) -> Bench:
    return Bench(Calibrated(load(str(folder)), text), text, 2)


def measure(bench: Bench, weights: str, activations: str | None = None, **options: bool) -> ModelRow:
    inputs = None if activations is None else parse_format(activations)
    return bench.measure(Case(parse_format(weights), inputs, **options), "text")


def test_identity_is_the_unquantized_model(bench: Bench) -> None:
    row = measure(bench, "F32", "F32")
    assert row.mean_kld == 0
    assert row.same_top == 100
    assert row.ppl_ratio == 1
    assert row.density == 1
    assert measure(bench, "F32").ppl == row.ppl


def test_a_model_is_unquantized_again_afterwards(bench: Bench) -> None:
    measure(bench, "BFP:w=3", "BFP:w=3")
    loaded = bench.calibrated.loaded
    for name, weight in loaded.originals.items():
        assert torch.equal(loaded.linears[name].weight, weight)
    assert measure(bench, "F32").mean_kld == 0


def test_more_bits_are_nearer_and_activations_cost(bench: Bench) -> None:
    divergences = [measure(bench, name, name).mean_kld for name in ("BFP:w=8", "BFP:w=6", "BFP:w=4")]
    assert 0 < divergences[0] < divergences[1] < divergences[2]
    assert measure(bench, "BFP:w=4").mean_kld < divergences[2]


def test_bits_and_density(bench: Bench) -> None:
    row = measure(bench, "BFP:w=4", "BFP:w=8:I=32")
    assert (row.weight_bits, row.activation_bits) == (4.5, 8.25)
    n_weights = bench.calibrated.loaded.n_weights
    # inputs of a chunk: q, k and v share one; so do gate and up
    inputs = 2 * bench.judge.chunks.shape[1] * (128 + 128 + 128 + 256)
    assert row.density == pytest.approx(32 * (n_weights + inputs) / (4.5 * n_weights + 8.25 * inputs))


def test_activations_are_quantized_where_a_layer_reads_them(bench: Bench) -> None:
    """The output of a model with quantized activations is that of layers that get quantized inputs."""
    fmt = parse_format("INT:w=8:I=128")
    layer = torch.nn.Linear(128, 3)
    x = torch.randn(1, 5, 128)
    quantizer = ActivationQuantizer(same_for_all(fmt))
    got = quantizer("q", x)
    assert torch.equal(got, fmt.quantize(x).values)
    assert quantizer("k", x) is got  # once for both
    assert quantizer.numbers == x.numel()
    assert not torch.equal(layer(got), layer(x))


def test_flat_blocks(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"rows of 128 are no multiple of 512.*--flat"):
        measure(bench, "NF4:I=512")
    row = measure(bench, "NF4:I=512", flat=True)
    assert row.blocks == "flat"
    assert row.weight_bits == pytest.approx(4 + 16 / 512)


def test_lists_of_flat_matrices(bench: Bench) -> None:
    """Their columns have 16 bits: refused before anything is measured, and left out of a standard list."""
    case = Case(parse_format("BOF4_S:opq=0.95"), flat=True)
    loaded = bench.calibrated.loaded
    n = next(iter(loaded.originals.values())).numel()
    assert n <= 65536
    check_case(case, loaded)
    with pytest.raises(UserError, match=r"x: rows of 65600 are too long for the outlier lists of BOF4_S:opq=0\.95"):
        case.weights.check_row(65600, "x")


def test_importance_of_inputs(bench: Bench, text: Path) -> None:
    """Mean squares are those of inputs that hooks of this test see."""
    loaded = bench.calibrated.loaded
    seen: list[torch.Tensor] = []
    name = next(iter(loaded.linears))
    handle = loaded.linears[name].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].clone()))
    again = Calibrated(loaded, text)
    squares = again.squares
    handle.remove()
    assert torch.allclose(squares[name], torch.cat(seen).square().mean(dim=0), rtol=1e-4)
    row = measure(bench, "ANY4:I=64", weighted=True)
    assert row.importance == "calibration"
    assert row.mean_kld != measure(bench, "ANY4:I=64").mean_kld


def test_block_sizes_by_variance() -> None:
    spread = {f"layer{i}": float(v) for i, v in enumerate((5, 1, 3, 2, 4, 6))}
    chosen = by_variance(parse_format("BFP"), spread, (16, 64))
    assert [chosen(name).multiple for name in spread] == [16, 64, 64, 64, 16, 16]


def test_codebooks_of_the_model(bench: Bench) -> None:
    fmt = parse_format("LO-BCQ:books=model")
    with pytest.raises(UserError, match="there is none here"):
        fmt.quantize(torch.ones(1, 64))
    assert measure(bench, fmt.name, fmt.name).mean_kld < measure(bench, "MX4", "MX4").mean_kld


def test_weights_with_nan_are_refused_by_name(folder: Path, text: Path) -> None:
    loaded = load(str(folder))
    name = "model.layers.1.mlp.down_proj"
    loaded.originals[name][3, 4] = float("nan")
    with pytest.raises(UserError, match=rf"{name}\.weight has NaN"):
        Bench(Calibrated(loaded, text), text, 1).measure(Case(parse_format("BFP")), "text")


@pytest.mark.parametrize("family", ["phi3", "gemma2", "gpt2", "qwen3moe", "bloom", "gptoss"])
def test_other_decoders(tmp_path: Path, text: Path, family: str) -> None:
    bench = Bench(Calibrated(load(str(family_folder(tmp_path, family))), text), text, 1)
    assert measure(bench, "F32", "F32").mean_kld == 0
    assert measure(bench, "BFP:w=8:I=32", "BFP:w=8:I=32").mean_kld > 0


@pytest.mark.parametrize("name", [name for name in TYPES if not name.startswith("IQ")])
def test_types_of_llama_cpp(name: str) -> None:
    fmt = parse_format(name)
    weights = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    data = native.quantize(weights, fmt.qtype)  # type: ignore[attr-defined]
    found = fmt.quantize(weights)
    assert np.array_equal(found.values, native.dequantize(data, fmt.qtype))  # type: ignore[attr-defined]
    assert found.bits == 8 * data.nbytes


@pytest.mark.parametrize("name", OWN_TYPES)
@pytest.mark.parametrize("encoder", ["absmax", "search"])
def test_own_types(name: str, encoder: str) -> None:
    """The values of the file that the converter would write, lists included."""
    weights = np.random.default_rng(0).standard_t(4, (8, 512)).astype(np.float32)
    qtype = next(fmt for fmt in FORMATS if fmt.name == name).type_id
    kept = native.select_outliers(weights, 0.95)
    kind = native.TensorType(qtype)
    data = native.quantize(weights, kind, encoder=BlockEncoder[encoder.upper()], outliers=kept)
    found = parse_format(f"{name}:encoder={encoder}:opq=0.95").quantize(torch.from_numpy(weights))
    assert np.array_equal(found.values, lists.decode(data, kind, kept, native.dequantize))
    assert found.bits == 8 * data.nbytes + 32 * kept.packed().size


def hellaswag(path: Path) -> Path:
    path.write_text("Cooking: She\n1\nflies\nstirs the soup\nsleeps\nruns\n" * 3)
    return path


def winogrande(path: Path) -> Path:
    quoted = '0,"Sarah, it seems, beat Maria so _ lost.",Sarah,Maria,2'
    path.write_text(f"{quoted}\n1,The cup held the ball as _ was big.,cup,ball,1\n")
    return path


def multiple_choice(path: Path) -> Path:
    def string(text: str) -> bytes:
        return struct.pack("<I", len(text)) + text.encode()

    def answers(texts: list[str], labels: list[int]) -> bytes:
        return struct.pack("<I", len(texts)) + b"".join(map(string, texts)) + struct.pack(f"<{len(labels)}i", *labels)

    tasks = [string("Two and two are") + answers(["five", "four", "six"], [0, 1, 0]) + answers([], [])] * 2
    places = [4 * (1 + len(tasks)) + sum(map(len, tasks[:i])) for i in range(len(tasks))]
    path.write_bytes(struct.pack(f"<{1 + len(tasks)}I", len(tasks), *places) + b"".join(tasks))
    return path


def test_files_of_tasks(tmp_path: Path) -> None:
    tasks = capture.read_tasks("hellaswag", hellaswag(tmp_path / "h"), 0)
    assert (len(tasks.tasks), tasks.chance, tasks.tasks[0].answer) == (3, 0.25, 1)
    assert tasks.tasks[0].choices[1] == "Cooking: She stirs the soup"
    first, second = capture.read_tasks("winogrande", winogrande(tmp_path / "w"), 0).tasks
    assert first.choices[first.answer] == "Sarah, it seems, beat Maria so Maria lost."
    assert second.choices[second.answer] == "The cup held the ball as cup was big."
    (task,) = capture.read_tasks("multiple-choice", multiple_choice(tmp_path / "m"), 1).tasks
    assert task == capture.Task(("Two and two are five", "Two and two are four", "Two and two are six"), 1)


def test_tasks_from_a_text() -> None:
    text = " ".join(f"This is sentence number {i} of a text that has quite a few of them." for i in range(50))
    tasks = capture.continuations(text, 20)
    for task in tasks:
        numbers = [[int(word) for word in choice.split() if word.isdecimal()] for choice in task.choices]
        following = [n[-1] == n[-2] + 1 for n in numbers]
        assert following[task.answer]
    assert len({task.answer for task in tasks}) > 1


BAD_TASKS = {
    "hellaswag": (b"one\ntwo\n", "2 lines are no multiple of 6"),
    "winogrande": (b"0,no gap,a,b,1\n", "line 1 is not"),
    "multiple-choice": (struct.pack("<III", 1, 0, 50) + b"short", "it ends early"),
    "text": (b"One. Two.", "the text has 0 places"),
}


@pytest.mark.parametrize("kind", BAD_TASKS)
def test_bad_files_of_tasks(tmp_path: Path, kind: str) -> None:
    data, wanted = BAD_TASKS[kind]
    path = tmp_path / "tasks"
    path.write_bytes(data)
    with pytest.raises(UserError, match=wanted) as refused:
        capture.read_tasks(kind, path, 0)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_solves_what_it_finds_probable(bench: Bench) -> None:
    """The answer that the model itself prefers, by log probabilities computed here."""
    loaded: Loaded = bench.calibrated.loaded
    choices = tuple(f"import {word}" for word in ("torch", "numpy", "pathlib"))
    rows = [loaded.tokenizer(choice).input_ids for choice in choices]
    shared = next(i for i in range(9) if len({row[i] for row in rows}) > 1)
    means = []
    for row in rows:
        with torch.inference_mode():
            log = torch.log_softmax(loaded.model(input_ids=torch.tensor([row])).logits[0], dim=1)
        means.append(np.mean([float(log[i - 1, row[i]]) for i in range(shared, len(row))]))
    best = int(np.argmax(means))
    assert capture.solves(loaded, capture.Task(choices, best))
    assert not capture.solves(loaded, capture.Task(choices, (best + 1) % 3))


def test_nav_accuracy() -> None:
    sets = (("x", 0.25, 0.7), ("y", 0.5, 0.6))
    rows = [TaskRow("m", "w", "a", name, 10, chance, accuracy, 0) for name, chance, accuracy in sets]
    assert capture.nav_accuracy(rows) == pytest.approx((0.6 + 0.2) / 2)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_commands_resume(folder: Path, text: Path, tmp_path: Path) -> None:
    common = ("--text", str(text), "--calibration", str(text), "--chunks", "1")
    output = tmp_path / "quality.csv"
    first = bof4("study", "quality", str(folder), "--formats", "BFP:w=4", "-o", str(output), *common)
    assert first.returncode == 0, first.stderr
    (before,) = rows_of(output)
    second = bof4("study", "quality", str(folder), "--formats", "BFP:w=4,NF4", "-o", str(output), *common)
    assert second.returncode == 0, second.stderr
    assert "1 of 1  NF4" in second.stderr
    assert rows_of(output)[0] == before
    assert [row["weights"] for row in rows_of(output)] == ["BFP:w=4", "NF4"]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    both = tmp_path / "activations.csv"
    pairs = ("--pair", "BFP", "--pair", "NF4,INT:w=8:I=64")
    result = bof4("study", "activations", str(folder), *pairs, "-o", str(both), *common)
    assert result.returncode == 0, result.stderr
    assert [(row["weights"], row["activations"]) for row in rows_of(both)] == [("BFP", "BFP"), ("NF4", "INT:w=8:I=64")]
    variances = rows_of(tmp_path / "variances.csv")
    assert {row["layer"] for row in variances} == {"0", "1"}
    assert len(variances) == 14


def test_rows_of_another_model_stay(folder: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "quality.csv"
    common = ("--formats", "BFP", "--text", str(text), "--calibration", str(text), "--chunks", "1", "-o", str(output))
    assert bof4("study", "quality", str(folder), *common).returncode == 0
    (first,) = rows_of(output)
    (tmp_path / "other").mkdir()
    other = family_folder(tmp_path / "other", "smollm")
    assert bof4("study", "quality", str(other), *common).returncode == 0
    before, after = rows_of(output)
    assert before == first
    assert after["model"] != first["model"]
    assert after["ppl"] != first["ppl"]


def test_block_sizes_are_drawn(folder: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "quality.csv"
    common = ("--text", str(text), "--calibration", str(text), "--chunks", "1", "-o", str(output))
    result = bof4("study", "quality", str(folder), "--formats", "NF4,MX4", "--blocks", "32,256", "--flat", *common)
    assert result.returncode == 0, result.stderr
    assert [(row["weights"], row["blocks"]) for row in rows_of(output)] == [
        ("NF4:I=32", "flat"), ("NF4:I=256", "flat"), ("MX4", "flat"),
    ]  # fmt: skip
    assert output.with_name("quality-blocks.png").read_bytes().startswith(b"\x89PNG")


def test_the_whole_study(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few drawn weights and block sizes: every list is measured, what does not divide flat or not at all."""
    monkeypatch.setattr(standard, "COUNT", 4096)
    monkeypatch.setattr(standard, "BLOCKS", (64, 256))
    monkeypatch.setattr(standard, "SWEPT_BLOCKS", (64, 256))
    monkeypatch.setattr(standard, "QUALITY_FORMATS", ("NF4", "Q4_K"))
    monkeypatch.setattr(standard, "PAIRS", ("F32", "BFP", "BFP:I=256", "NF4,BFP:I=256"))
    command = ("study", "all", str(folder), "--chunks", "1", "--text", str(text), "--calibration", str(text))
    result = bof4(*command, "-o", str(tmp_path))
    assert result.returncode == 0, result.stderr
    errors = rows_of(tmp_path / "error.csv")
    assert {row["source"] for row in errors if row["drawn"] == "4096"} == set(standard.LAWS)
    weighted = {row["format"] for row in errors if row["importance"] == "calibration"}
    assert weighted == {parse_format(name).name for name in standard.CODEBOOK_FORMATS}
    quality = [(row["weights"], row["blocks"]) for row in rows_of(tmp_path / "quality.csv")]
    assert quality[:2] == [("NF4", "rows"), ("Q4_K", "flat")]
    assert len(quality) == 2 + 2 * len(standard.SWEPT_FORMATS)
    pairs = [(row["weights"], row["activations"]) for row in rows_of(tmp_path / "activations.csv")]
    assert pairs == [("F32", "F32"), ("BFP", "BFP"), *[(f"{n}:I=by-variance/8/16/32",) * 2 for n in ("BFP:w=4", "BFP")]]
    names = ("error", "quality", "quality-blocks", "activations", "variances")
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)
    again = bof4(*command, "-o", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert " of " not in again.stderr  # nothing is measured again


def test_errors_weighted_by_inputs(folder: Path, text: Path, tmp_path: Path) -> None:
    """Against a sum by hand, flattened where the block does not divide the rows."""
    output = tmp_path / "error.csv"
    options = ("--importance", "--calibration", str(text), "--formats", "NF4", "--blocks", "64,256")
    result = bof4("study", "error", str(folder), *options, "-o", str(output))
    assert result.returncode == 0, result.stderr
    found = {(row["kind"], row["block"]): float(row["squared"]) for row in rows_of(output)}
    loaded = load(str(folder))
    squares = Calibrated(loaded, text).squares
    for block in (64, 256):
        sums = np.zeros(2)
        for name in (name for name in loaded.originals if name.endswith("q_proj")):
            x = loaded.originals[name]
            got = parse_format(f"NF4:I={block}").quantize(x.reshape(1, -1)).values.reshape(x.shape)
            sums += [float((squares[name] * part.square()).sum()) for part in (got - x, x)]
        assert found["q_proj", str(block)] == pytest.approx(sums[0] / sums[1], rel=1e-4)


def test_error_command(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "error.csv"
    result = bof4(
        "study", "error", str(folder), "--laws", "norm,t:5", "--formats", "NF4,AF4,MXFP4", "--blocks", "64,256",
        "--count", "65536", "-o", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = {(row["source"], row["kind"], row["format"]): float(row["squared"]) for row in rows_of(output)}
    assert found["norm", "all", "AF4"] / found["norm", "all", "NF4"] == pytest.approx(1.08, abs=0.02)
    assert found["norm", "all", "NF4:I=256"] > found["norm", "all", "NF4"]
    less = ("--laws", "norm", "--formats", "NF4", "--blocks", "64", "--count", "8192", "-o", str(output))
    more = bof4("study", "error", *less)
    assert "1 of 1  NF4" in more.stderr  # of fewer weights: measured again
    assert [row["drawn"] for row in rows_of(output) if (row["source"], row["format"]) == ("norm", "NF4")] == ["8192"]
    kinds = {kind for source, kind, _ in found if source not in {"norm", "t:5"}}
    assert kinds == {"all", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_capture_command(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "capture.csv"
    result = bof4(
        "study", "capture", str(folder), "--hellaswag", str(hellaswag(tmp_path / "h")), "--multiple-choice",
        str(multiple_choice(tmp_path / "m")), "--pair", "F32", "--pair", "BFP:w=3", "-o", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(rows_of(output)) == 4
    assert "NAV ACC" in result.stdout
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


BAD_COMMANDS = {
    ("quality", "FOLDER", "--formats", "XF4"): "there is no format 'XF4'",
    ("quality", "FOLDER", "--formats", "BFP:q=1"): "no parameter 'q=1'",
    ("quality", "FOLDER", "--formats", "NF4:I=96"): "rows of 128 are no multiple of 96",
    ("quality", "nowhere"): "nowhere: no such file or folder",
    ("quality", "TEXT"): "transformers cannot load this",
    ("quality", "FOLDER", "--formats", "BFP", "-o", "/proc/none/x.csv"): "cannot be",
    ("activations", "FOLDER", "--pair", "BFP,AAAC"): "AAAC is a format for weights",
    ("activations", "FOLDER", "--pair", "VSQ", "--by-variance", "16,32"): "VSQ has no block size",
    ("activations", "FOLDER", "--pair", "BFP,BFP,BFP"): "give a format of weights and one of activations",
    ("quality", "NANS", "--formats", "BFP"): "down_proj.weight has NaN or infinite numbers",
    ("error", "NANS", "--laws", "norm", "--formats", "NF4", "--count", "4096"): "down_proj has NaN",
    ("error", "--laws", "norm", "-o", "OLD"): "line 2: not a row of `bof4 study error`",
    ("error", "--laws", "norm,cauchy"): "there is no law 'cauchy'",
    ("error", "--laws", "t:-1"): "there is no law 't:-1'",
    ("error", "--importance"): "--importance needs a model",
    ("error", "--blocks", "12x"): "--blocks 12x: give whole numbers",
    ("capture", "FOLDER"): "give a set of tasks",
}


@pytest.fixture(scope="module")
def nans(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a weight that is NaN."""
    target = tmp_path_factory.mktemp("damaged") / "nans"
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("arguments", BAD_COMMANDS)
def test_bad_input_is_one_line(
    folder: Path, nans: Path, text: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    old = tmp_path / "old.csv"
    old.write_text("source,kind,format,block,bits,squared,absolute,seconds,recipe\nnorm,all,NF4,64,4.25,0.1,0.1,1,1\n")
    places = {"FOLDER": str(folder), "NANS": str(nans), "TEXT": str(text), "OLD": str(old)}
    line = [places.get(a, a) for a in arguments]
    if "-o" not in line:
        line += ["-o", str(tmp_path / "rows.csv")]
    if arguments[0] in {"quality", "activations"}:
        line += ["--text", str(text), "--calibration", str(text), "--chunks", "1"]
    result = bof4("study", *line)
    assert result.returncode == 1
    messages = [message for message in result.stderr.splitlines() if message.startswith("bof4: ")]
    assert len(messages) == 1
    assert BAD_COMMANDS[arguments] in messages[0]
    assert "Traceback" not in result.stderr


def test_nothing_is_lost_where_the_disk_is_full(folder: Path, text: Path, tmp_path: Path) -> None:
    """The file that is there stays whole when a row cannot be written."""
    output = tmp_path / "quality.csv"
    common = ("--text", str(text), "--calibration", str(text), "--chunks", "1", "-o", str(output))
    assert bof4("study", "quality", str(folder), "--formats", "BFP", *common).returncode == 0
    before = output.read_bytes()
    limited = ["bash", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "bash"]
    program = str(Path(sys.executable).with_name("bof4"))
    result = subprocess.run(
        [*limited, program, "study", "quality", str(folder), "--formats", "BFP,NF4", *common],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    messages = [line for line in result.stderr.splitlines() if line.startswith("bof4: ")]
    assert len(messages) == 1
    assert f"{output} cannot be written: " in messages[0]
    assert "Traceback" not in result.stderr
    assert output.read_bytes() == before


def test_a_gguf_file(tmp_path: Path, text: Path) -> None:
    """Its layers are those of the file, quantized like those of a folder."""
    path = tiny_models.write_llama(tmp_path / "tiny.gguf")
    bench = Bench(Calibrated(load(str(path)), text), text, 1)
    weights = bench.calibrated.loaded.originals["model.layers.1.mlp.down_proj"]
    stored = next(t for t in open_model(path).tensors if t.name == "blk.1.ffn_down.weight")
    assert np.array_equal(weights.numpy(), stored.read_rows().view(np.float32))
    assert measure(bench, "F32", "F32").mean_kld == 0
    assert measure(bench, "BFP:I=32", "BFP:I=32").mean_kld > 0
