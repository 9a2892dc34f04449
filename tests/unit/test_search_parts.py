"""bof4 search without a build: targets, candidates, what is kept on disk, reports, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import bof4
from gguf import GGMLQuantizationType as T

from gguf_bof4.convert.options import Options
from gguf_bof4.convert.report import TensorReport
from gguf_bof4.errors import UserError
from gguf_bof4.outlier_choice import Budget
from gguf_bof4.progress import no_progress
from gguf_bof4.search import fitting, sensitivity
from gguf_bof4.search.candidates import Candidate, candidates_of, parse_types
from gguf_bof4.search.losses import RECIPE, Loss, Store
from gguf_bof4.search.report import Point, same_order
from gguf_bof4.search.sensitivity import Term
from gguf_bof4.search.targets import Target, padded, parse_size, parse_target
from gguf_bof4.search.work import content_key, default_folder, open_folder


@pytest.mark.parametrize(
    "text, nbytes",
    [
        ("900M", 900_000_000), ("3.9G", 3_900_000_000), ("3.9g", 3_900_000_000), ("1.5GB", 1_500_000_000),
        ("1.5GiB", 1_610_612_736), ("512K", 512_000), ("123456", 123_456),
    ],
)  # fmt: skip
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes
    assert parse_target(None, text) == Target(nbytes=nbytes)


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.G", "4 apples", "0M", "1iB", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--target-size"):
        parse_size(text)


@pytest.mark.parametrize("bits, size", [(None, None), (4.4, "900M"), (0.0, None), (-1.0, None), (33.0, None)])
def test_one_possible_target_is_needed(bits: float | None, size: str | None) -> None:
    with pytest.raises(UserError, match="target"):
        parse_target(bits, size)


@pytest.mark.parametrize("nbytes, aligned", [(0, 0), (1, 32), (32, 32), (33, 64)])
def test_padding(nbytes: int, aligned: int) -> None:
    assert padded(nbytes, 32) == aligned


TYPES = (T.Q3_K, T.IQ3_S, T.BOF4_S, T.BOF4_K, T.Q4_K, T.Q5_K, T.Q6_K, T.Q8_0)


def test_candidates_of_rows_of_whole_superblocks() -> None:
    names = [c.name for c in candidates_of(TYPES, 0.05, 1536, True)]
    assert names == [
        "Q3_K", "IQ3_S", "BOF4_S", "BOF4_S+list0.05", "BOF4_K", "BOF4_K+list0.05", "Q4_K", "Q5_K", "Q6_K", "Q8_0",
    ]  # fmt: skip
    assert [c.name for c in candidates_of(TYPES, None, 1536, True)] == [t.name for t in TYPES]
    assert not any(c.rule for c in candidates_of(TYPES, 0.05, 1536, False))


def test_fallbacks_take_the_place_of_types_that_do_not_fit() -> None:
    names = [c.name for c in candidates_of(TYPES, 0.05, 576, True)]
    assert names == ["Q4_0", "IQ4_NL", "BOF4_S", "BOF4_S+list0.05", "Q5_0", "Q5_1", "Q8_0"]
    assert [c.name for c in candidates_of(TYPES, 0.05, 100, False)] == ["F16"]


def test_bytes_of_candidates_are_those_of_the_formats() -> None:
    assert Candidate(T.BOF4_S).data_bytes((10, 128)) == 10 * 2 * 34
    listed = Candidate(T.BOF4_K, Budget(0.05))
    assert listed.data_bytes((10, 512)) == 10 * 2 * 142
    assert listed.list_bytes((10, 512)) == 4 * (10 + 1) + 4 * (5120 * 5 // 100 // 32)
    assert Candidate(T.Q8_0).list_bytes((10, 512)) == 0


def test_types_that_do_not_exist_are_refused() -> None:
    assert parse_types(["q4_k", "Q4_K", "bof4_s"], True) == (T.Q4_K, T.BOF4_S)
    for names, message in ((["Q9_Z"], "there is no tensor type"), ([], "name some types")):
        with pytest.raises(UserError, match=message):
            parse_types(names, True)


def test_a_term_weights_squared_errors_by_rows_and_columns() -> None:
    rng = np.random.default_rng(1)
    squared = rng.random((6, 8), dtype=np.float32)
    rows, columns = rng.random(6, dtype=np.float32), rng.random(8, dtype=np.float32)
    expected = sum(rows[i] * columns[j] * squared[i, j] for i in range(6) for j in range(8))
    assert Term(rows, columns).loss(squared, np.arange(6)) == pytest.approx(expected)
    some = np.array([4, 1])
    expected = sum(rows[i] * columns[j] * squared[i, j] for i in some for j in range(8))
    assert Term(rows, columns).loss(squared[some], some) == pytest.approx(expected)
    assert Term(np.full(1, 2, np.float32), columns).loss(squared, np.arange(6)) == pytest.approx(
        2 * float((squared * columns).sum())
    )


def test_sensitivities_survive_the_disk(tmp_path: Path) -> None:
    ones = Term(np.ones(4, np.float32), np.ones(3, np.float32))
    two = (Term(np.ones(1, np.float32), np.arange(3, dtype=np.float32)), ones)
    found = {"token_embd.weight": two, "blk.0.attn_q.weight": two[:1]}
    sensitivity.save(tmp_path / "s.npz", found)
    read = sensitivity.load(tmp_path / "s.npz")
    assert read.keys() == found.keys()
    for name, terms in found.items():
        for one, other in zip(terms, read[name], strict=True):
            assert np.array_equal(one.rows, other.rows) and np.array_equal(one.columns, other.columns)
    (tmp_path / "s.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="damaged"):
        sensitivity.load(tmp_path / "s.npz")


def test_losses_survive_a_kill_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    store = Store(path)
    for i in range(3):
        store.add(f"blk.{i}.attn_q.weight", {"BOF4_S": Loss(1.0 + i, 0.5), "Q4_K": Loss(1.0 + i, 0.25)})
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        resumed = Store(path)
        complete = sum(length >= sum(map(len, lines[: i + 1])) for i in range(3))
        assert list(resumed.found) == [f"blk.{i}.attn_q.weight" for i in range(complete)]
        assert path.stat().st_size == sum(map(len, lines[:complete]))
    resumed.add("blk.0.attn_q.weight", {"Q8_0": Loss(1.0, 0.01)})
    assert Store(path).found["blk.0.attn_q.weight"].keys() == {"BOF4_S", "Q4_K", "Q8_0"}


def test_losses_of_another_recipe_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text(json.dumps({"tensor": "a", "recipe": RECIPE + 1, "losses": {"Q4_K": [1, 2]}}) + "\n")
    assert Store(path).found == {}


def test_a_folder_belongs_to_one_model_and_one_way_of_measuring(tmp_path: Path) -> None:
    folder, model = tmp_path / "work", Path("model.gguf")
    mine = {"model": "a", "calibration text": "t"}
    open_folder(folder, model, mine)
    open_folder(folder, model, mine)
    with pytest.raises(UserError, match=r"losses of another model than model\.gguf: give --work another folder"):
        open_folder(folder, model, {**mine, "model": "b"})
    with pytest.raises(UserError, match="with another calibration text"):
        open_folder(folder, model, {**mine, "calibration text": "u"})
    (folder / "search.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_folder(folder, model, mine)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        open_folder(tmp_path / "other", model, mine)


def test_the_folder_is_named_by_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path))
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    one.write_bytes(b"x" * 100)
    other.write_bytes(b"x" * 100)
    assert content_key([one]) == content_key([other])
    other.write_bytes(b"x" * 99 + b"y")
    assert content_key([one]) != content_key([other])
    keys = {default_folder(one, {"model": content_key([p])}) for p in (one, other)}
    assert len(keys) == 2 and all(k.parent == tmp_path / "search" for k in keys)


def test_orders_agree_or_not() -> None:
    points = [Point(4.0, 1, p, m, 0.01) for p, m in ((0.3, 0.4), (0.2, 0.3), (0.1, 0.1))]
    assert same_order(points)
    assert not same_order([*points, Point(4.0, 1, 0.05, 0.2, 0.01)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give one target"),
        (("--target-bpw", "4.4", "--target-size", "1G"), "give one target"),
        (("--target-bpw", "4.4", "--calibration", "no.txt"), "calibration text no.txt cannot be read: No such file"),
        (("--target-bpw", "4.4", "--calibration", "self", "--measure", "5"), "give one with --file"),
        (("--target-bpw", "4.4", "--sensitivity", "some"), "give gradient or none"),
        (("--target-bpw", "4.4", "--sensitivity", "none", "--types", "q9"), "there is no tensor type 'q9'"),
        (("--target-bpw", "4.4", "--sensitivity", "none", "--opq-bits", "3"), "--opq-bits 3"),
        (("--target-bpw", "4.4", "--sensitivity", "none", "--measure", "5"), "give one with --file"),
    ],
)
def test_options_are_checked_first(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = bof4("search", str(tmp_path / "no.gguf"), str(tmp_path / "recipe.txt"), *arguments)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--target-size", "1G"), "give one target"),
        (("--type", "BOF4_K"), "--type says types"),
        (("--recipe", "r.txt"), "--recipe says types"),
        (("--tensor-type", "attn=q8_0"), "--tensor-type says types"),
        (("--pure",), "--pure says types"),
        (("--leave-output-tensor",), "--leave-output-tensor says types"),
        (("--encoder", "absmax"), "--encoder absmax uses no importance matrix"),
        (("--imatrix", "random"), "--imatrix random"),
        (("--opq", "0.9"), "--opq 0.9: with a target"),
        (("--calibration", "no.txt"), "calibration text no.txt cannot be read"),
        (("--opq-bits", "3"), "--opq-bits 3"),
    ],
)
def test_options_of_a_conversion_to_a_target(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "r.txt").write_text("attn=q8_0\n")
    arguments = tuple(str(tmp_path / a) if a == "r.txt" else a for a in arguments)
    result = bof4("convert", str(tmp_path / "no.gguf"), str(tmp_path / "out.gguf"), "--target-bpw", "4.4", *arguments)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "options, samples, length",
    [
        (Options(), 32, 512),  # those of the importance matrix
        (Options(encoder="gptq"), 64, 512),  # three tokens for each of 8960 inputs
        (Options(encoder="gptq", samples=4), 32, 512),
        (Options(encoder="gptq", samples=4, refine=True), 256, 512),
        (Options(encoder="gptq", samples=4, sample_length=2048), 8, 2048),
    ],
)
def test_the_models_own_text_is_long_enough_for_search_and_encoder(
    options: Options, samples: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the model writes it once."""
    asked = []

    def resolved(model: Path, sources: tuple[str, ...], *how: object) -> tuple[Path, ...]:
        asked.append((model, sources, *how))
        return (Path("written.jsonl"),)

    monkeypatch.setattr(fitting.texts, "resolved", resolved)
    settings, model = fitting.settings_of(options), Path("model.gguf")
    widest = TensorReport("blk.0.ffn_down.weight", (1536, 8960), "F32", "BOF4_S", 0, 0, 0, None, None, False)
    read = fitting.calibration_texts(model, [widest], options, settings, no_progress)
    assert read == (Path("written.jsonl"),)
    assert asked == [(model, ("self",), samples, length, 0, no_progress)]


@pytest.mark.parametrize("value", ["off", "OFF"])
def test_no_lists_with_a_target(value: str) -> None:
    assert fitting.settings_of(Options(opq=(value,))).list_bits is None


@pytest.mark.parametrize("rules", [("0.95",), ("attn_v=off",), ("off", "attn_v=0.9")])
def test_quantiles_do_not_go_with_a_target(rules: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="with a target the search says which tensors have outlier lists"):
        fitting.settings_of(Options(opq=rules))


def test_an_output_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text("mine")
    result = bof4(
        "search", str(tmp_path / "no.gguf"), str(tmp_path / "recipe.txt"), "--target-bpw", "4.4",
        "--sensitivity", "none",
    )  # fmt: skip
    assert result.returncode == 1 and "exists already" in result.stderr
    assert (tmp_path / "recipe.txt").read_text() == "mine"
