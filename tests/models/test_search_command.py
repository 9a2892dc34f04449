"""bof4 search on a real model: the first layers of SmolLM2, unquantized."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import gguf
import pytest
from command_line import bof4
from llama import succeed
from once import one_at_a_time

from gguf_bof4.bench import quality
from gguf_bof4.bench.results import read_rows
from gguf_bof4.bench.variants import variants
from gguf_bof4.convert import convert
from gguf_bof4.divergence import distance, write_logits
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.reference_texts import calibration_text
from gguf_bof4.search import candidates

LAYERS = 2
FAST = ("--types", "BOF4_S,BOF4_K,Q4_K,Q6_K,Q3_K", "--threads", "1")


@pytest.fixture(scope="module")
def short(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layers of the reference model: a worse language model, with trained weights."""
    source, target = open_model(smol), tmp_path_factory.mktemp("short") / "short.gguf"
    writer = gguf.GGUFWriter(target, "llama")
    for field in source.fields.values():
        if field.name not in ("general.architecture", "llama.block_count"):
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(
                field.name, field.contents(), field.types[0], sub_type=field.types[-1] if is_array else None
            )
    writer.add_block_count(LAYERS)
    for t in source.tensors:
        match = re.match(r"blk\.(\d+)\.", t.name)
        if match is None or int(match[1]) < LAYERS:
            writer.add_tensor(t.name, gguf.dequantize(t.read_rows(), t.qtype).reshape(t.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="session")
def calibration() -> Path:
    """English technical prose, another text than `evaluation`."""
    with one_at_a_time("models"):
        return calibration_text()


def matrix_bits(model: Model) -> float:
    return model.bits_per_weight([t for t in model.tensors if t.name.startswith("blk.") and len(t.shape) > 1])


@pytest.fixture(scope="module")
def searched(
    short: Path, built: Path, calibration: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of a search with everything, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    result = bof4(
        "search", str(short), str(folder / "recipe.txt"), "--target-bpw", "4.6", "--calibration", str(calibration),
        "--chunks", "2", "--measure", "5", "--measured-chunks", "1", "--file", str(evaluation),
        "--csv", str(folder / "tensors.csv"), "--plot", str(folder / "sizes.png"),
        "--work", str(folder / "work"), *FAST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_predicted_and_measured_sizes_have_one_order(searched: tuple[Path, str]) -> None:
    _, printed = searched
    assert "predicted and measured agree" in printed
    rows = re.findall(r"^ *([\d.]+) +[\d.]+ MB +([\d.]+) +([\d.]+) ±", printed, re.MULTILINE)
    assert len(rows) == 6
    by_size = sorted((float(bits), float(predicted), float(measured)) for bits, predicted, measured in rows)
    assert [row[2] for row in by_size] == sorted((row[2] for row in by_size), reverse=True)
    for _, predicted, measured in by_size:
        assert 1 / 3 < predicted / measured < 3


def test_the_file_of_the_recipe_has_the_target(searched: tuple[Path, str], short: Path, tmp_path: Path) -> None:
    folder, _ = searched
    made = tmp_path / "made.gguf"
    report = convert(
        short, made, recipe=str(folder / "recipe.txt"), imatrix=str(folder / "work" / "imatrix.gguf"), opq=("off",)
    )  # fmt: skip
    assert 4.5 < matrix_bits(open_model(made)) <= 4.6
    assert len({t.qtype for t in report.tensors if t.name.startswith("blk.") and len(t.shape) > 1}) > 1
    with (folder / "tensors.csv").open(newline="") as file:
        rows = {row["tensor"]: row for row in csv.DictReader(file)}
    model = open_model(made)
    for t in model.tensors:
        if len(t.shape) > 1:
            chosen, _, listed = rows[t.name]["type"].partition("+")
            assert t.qtype.name == chosen
            assert (model.n_outliers(t) > 0) == bool(listed)
            assert model.bits_per_weight([t]) == pytest.approx(float(rows[t.name]["bits_per_weight"]), abs=2e-3)


def test_llama_quantize_reads_the_recipe(searched: tuple[Path, str], short: Path, tmp_path: Path) -> None:
    folder, _ = searched
    made, ours = tmp_path / "upstream.gguf", tmp_path / "ours.gguf"
    succeed("quantize", "--tensor-type-file", folder / "recipe.txt", short, made, "Q4_K_S")
    convert(short, ours, recipe=str(folder / "recipe.txt"), opq=("off",), dry_run=False)
    assert {t.name: t.qtype for t in open_model(made).tensors} == {t.name: t.qtype for t in open_model(ours).tensors}


def test_a_size_of_the_file_is_met(searched: tuple[Path, str], short: Path, calibration: Path, tmp_path: Path) -> None:
    """Measurements are there already, so that this takes a second."""
    folder, _ = searched
    work = ("--work", str(folder / "work"), "--calibration", str(calibration), "--chunks", "2", *FAST)
    target = 24_000_000
    result = bof4("search", str(short), str(tmp_path / "r.txt"), "--target-size", "24M", *work)
    assert result.returncode == 0, result.stderr
    made = tmp_path / "made.gguf"
    convert(short, made, recipe=str(tmp_path / "r.txt"), imatrix=str(folder / "work" / "imatrix.gguf"))
    assert 0.97 * target < made.stat().st_size <= target
    least = bof4("search", str(short), str(tmp_path / "s.txt"), "--target-size", "5M", *work)
    assert least.returncode == 1 and not (tmp_path / "s.txt").exists()
    (said,) = least.stderr.strip().splitlines()
    match = re.search(r"the least is (\d+) ", said)
    assert match is not None, said
    again = bof4("search", str(short), str(tmp_path / "s.txt"), "--target-size", match[1], *work)
    assert again.returncode == 0, again.stderr


def test_bits_below_what_is_possible_and_other_models_are_one_line(
    searched: tuple[Path, str], short: Path, smol: Path, calibration: Path, tmp_path: Path
) -> None:
    folder, _ = searched
    work = ("--work", str(folder / "work"), "--calibration", str(calibration), "--chunks", "2", *FAST)
    low = bof4("search", str(short), str(tmp_path / "r.txt"), "--target-bpw", "2", *work)
    (said,) = low.stderr.strip().splitlines()
    match = re.search(r"the least is ([\d.]+)$", said)
    assert low.returncode == 1 and match is not None, said
    assert bof4("search", str(short), str(tmp_path / "r.txt"), "--target-bpw", match[1], *work).returncode == 0
    other = bof4("search", str(smol), str(tmp_path / "q.txt"), "--target-bpw", "4.5", *work)
    (said,) = other.stderr.strip().splitlines()
    assert other.returncode == 1 and "has losses of another model" in said


def test_without_a_text_squared_errors_are_weighted(searched: tuple[Path, str], short: Path, tmp_path: Path) -> None:
    folder, _ = searched
    result = bof4(
        "search", str(short), str(tmp_path / "r.txt"), "--target-bpw", "4.5", "--sensitivity", "none",
        "--imatrix", str(folder / "work" / "imatrix.gguf"), "--work", str(tmp_path / "w"), *FAST,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "weighted squared error" in result.stdout
    assert "|#opq-bits:0.05=bof4_s" in (tmp_path / "r.txt").read_text()


def test_several_calibration_texts_and_the_models_own(
    short: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat and text that the model writes, in equal shares; a folder; and none, which is the model's own text."""
    monkeypatch.setenv("BOF4_BIN", str(built))
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    chats = tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "user", "content": "one two three " * 400}]}
    chats.write_text(json.dumps(chat) + "\n", encoding="utf-8")
    options = ("--target-bpw", "4.5", "--chunks", "2", "--types", "BOF4_S,Q8_0", "--threads", "1", "--work")
    mixed = bof4(
        "search", str(short), str(tmp_path / "mixed.txt"), *options, str(tmp_path / "mixed"),
        "--calibration", "self", "--calibration", str(chats),
    )  # fmt: skip
    assert mixed.returncode == 0, mixed.stderr
    written = (tmp_path / "mixed" / "calibration.txt").read_text(encoding="utf-8")
    assert "<|im_start|>user\none two three" in written and written.count("one two three") < 400 * 2
    assert len(list((tmp_path / "cache" / "own-texts").iterdir())) == 1
    other = bof4("search", str(short), str(tmp_path / "own.txt"), *options, str(tmp_path / "mixed"))
    assert "with another calibration text" in other.stderr
    (tmp_path / "mixed" / "search.json").unlink()
    chats.write_text("{}\n", encoding="utf-8")
    wrong = bof4(
        "search", str(short), str(tmp_path / "wrong.txt"), *options, str(tmp_path / "new"), "--calibration",
        str(chats), "--calibration", "self",
    )  # fmt: skip
    (said,) = wrong.stderr.strip().splitlines()[-1:]
    assert wrong.returncode == 1 and "chats.jsonl, line 1 is neither a chat nor a text" in said


def test_a_conversion_to_a_target_searches_the_types(
    short: Path, built: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is that of the two commands; a target that is not possible names the least."""
    monkeypatch.setenv("BOF4_BIN", str(built))
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    text = ("--calibration", str(calibration), "--threads", "1")
    made, again = tmp_path / "made.gguf", tmp_path / "again.gguf"
    result = bof4("convert", str(short), str(made), "--target-bpw", "4.6", *text)
    assert result.returncode == 0, result.stderr
    model = open_model(made)
    assert 4.5 < matrix_bits(model) <= 4.6
    assert len({t.qtype for t in model.tensors if t.name.startswith("blk.") and len(t.shape) > 1}) > 1
    assert f"bof4 compare {short} {made}" in result.stdout
    (recipe,) = re.findall(r"^recipe: (.+)$", result.stderr, re.MULTILINE)
    found = bof4("search", str(short), str(tmp_path / "r.txt"), "--target-bpw", "4.6", *text)
    assert found.returncode == 0, found.stderr
    assert "about" not in found.stderr  # measured already
    assert (tmp_path / "r.txt").read_text() == Path(recipe).read_text()
    convert(short, again, recipe=str(tmp_path / "r.txt"), imatrix=str(Path(recipe).with_name("imatrix.gguf")))
    assert [t.read_rows().tobytes() for t in model.tensors] == [
        t.read_rows().tobytes() for t in open_model(again).tensors
    ]
    least = bof4("convert", str(short), str(tmp_path / "least.gguf"), "--target-size", "5M", *text)
    (said,) = least.stderr.strip().splitlines()[-1:]
    assert least.returncode == 1 and "--target-size 5000000 is below what is possible" in said
    assert not (tmp_path / "least.gguf").exists()
    quantized = bof4("convert", str(made), str(tmp_path / "twice.gguf"), "--target-bpw", "4.6", *text)
    assert quantized.returncode == 1 and "quantized already" in quantized.stderr


def test_a_conversion_to_a_target_of_the_equalized_model(
    short: Path, built: Path, calibration: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By gptq; the equalized model is gone afterwards."""
    monkeypatch.setenv("BOF4_BIN", str(built))
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "made.gguf"
    result = bof4(
        "convert", str(short), str(made), "--target-size", "24M", "--equalize", "--encoder", "gptq",
        "--calibration", str(calibration), "--calibration-samples", "4", "--opq-bits", "0.1", "--threads", "1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert 0.97 * 24_000_000 < made.stat().st_size <= 24_000_000
    model = open_model(made)
    assert model.value("bof4.equalized") is True
    assert not list((tmp_path / "cache" / "search").glob("*/*equalized*"))
    assert f"bof4 compare {short} {made}" in result.stdout
    write_logits(short, evaluation, 1, tmp_path / "logits", 1)
    assert distance(made, tmp_path / "logits", 1, 1).mean_kld < 0.1


def test_trials_resume_and_belong_to_one_model(
    searched: tuple[Path, str], short: Path, calibration: Path, evaluation: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="the extra search is not installed")
    folder, _ = searched
    common = (
        "--target-bpw", "4.6", "--calibration", str(calibration), "--chunks", "2", "--work", str(folder / "work"),
        "--measured-chunks", "1", "--file", str(evaluation), "--study", str(tmp_path / "study.db"), *FAST,
    )  # fmt: skip
    first = bof4("search", str(short), str(tmp_path / "a.txt"), "--trials", "2", *common)
    assert first.returncode == 0, first.stderr
    assert [line for line in first.stderr.splitlines() if "trial " in line][-1].count("trial 2 of 2")
    second = bof4("search", str(short), str(tmp_path / "b.txt"), "--trials", "3", *common)
    assert second.returncode == 0, second.stderr
    assert "trial 3 of 3" in second.stderr and "trial 2 of" not in second.stderr
    before, after = map(float, re.findall(r"divergence ([\d.]+) before, ([\d.]+) after", second.stdout)[0])
    assert after <= before
    other = bof4("search", str(short), str(tmp_path / "c.txt"), "--trials", "3", *common[:1], "5.5", *common[2:])
    assert other.returncode == 1 and "is a study of another target" in other.stderr


def test_the_quality_bench_measures_mixtures(
    short: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sizes, of which the losses are measured once; beside one type for all."""
    source = tmp_path / "source.gguf"
    convert(short, source, type="F32", token_embedding_type="F16", output_tensor_type="F16")
    monkeypatch.setattr(quality, "reference_model", lambda _: source)
    monkeypatch.setattr(quality, "IMATRIX_CHUNKS", 2)
    monkeypatch.setattr(quality, "SEARCH_CHUNKS", 1)
    monkeypatch.setattr(candidates, "DEFAULT_TYPES", ("BOF4_S", "Q5_0", "Q8_0"))
    names = ["search 5", "search 6", "BOF4_S"]
    plan = quality.make_plan(["smol"], variants(names, ["imatrix"], ["0.05 bits"]), ["test"], 1, ())
    output, said = tmp_path / "rows.csv", list[str]()
    quality.run(plan, output, 1, said.append)
    rows = {row.type: row for row in read_rows(output).values()}
    assert 4.8 < rows["search 5"].bits_per_weight <= 5 < rows["search 6"].bits_per_weight <= 6
    assert rows["search 6"].mean_kld < rows["search 5"].mean_kld < rows["BOF4_S"].mean_kld
    assert 4.29 < rows["BOF4_S"].bits_per_weight < 4.36  # 0.05 for outliers, up to 0.06 for pointers of rows
    kinds = dict(part.split()[::-1] for part in rows["search 5"].fallback.split(" + "))
    assert set(kinds) <= {"BOF4_S", "Q5_0", "Q8_0"}
    assert sum(map(int, kinds.values())) == rows["search 5"].matrices == 7 * LAYERS
