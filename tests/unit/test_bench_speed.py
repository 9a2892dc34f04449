"""bof4 bench speed without a build: plans, rows, ratios, goals, tables and pictures."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import bof4
from gguf_writing import write_tensors

from gguf_bof4.bench.goals import judge_speed
from gguf_bof4.bench.speed import files, kernels, measure, rounds
from gguf_bof4.bench.speed.files import Files, open_source
from gguf_bof4.bench.speed.machine import name_in
from gguf_bof4.bench.speed.measure import bytes_per_token, parse_batches, parse_devices, parse_speeds
from gguf_bof4.bench.speed.plot import WIDTH, plot
from gguf_bof4.bench.speed.ratios import Measured, Spread
from gguf_bof4.bench.speed.results import (
    Row,
    Setup,
    add_rows,
    complete_rounds,
    describe,
    is_generation,
    read_rows,
    speed_variant,
)
from gguf_bof4.bench.speed.rounds import make_plan, names_of_tests, rotated
from gguf_bof4.bench.speed.synthetic import SHAPES, Shape, synthetic_model, write_synthetic
from gguf_bof4.bench.speed.table import speed_table
from gguf_bof4.bench.variants import Variant
from gguf_bof4.cli.terminal import split_numbers
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model

TINY = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=512)
SETUP = Setup("llama-1b", "0123abcd", "avx512-vnni", 2, True)
TESTS = ("pp256", "tg64")
S, K, Q4_0, IQ4_XS = (speed_variant(name) for name in ("BOF4_S", "BOF4_K", "Q4_0", "IQ4_XS"))


def row(variant: Variant, test: str, speed: float, round: int = 1, bandwidth: float = 50.0) -> Row:
    return Row(
        model="llama-1b", build="0123abcd", instructions="avx512-vnni", threads=2, repack=1, round=round,
        type=variant.type, opq=variant.opq, bits_per_weight=4.5, bytes_per_token=500_000_000, test=test,
        tokens_per_second=speed, bandwidth=bandwidth, time="2026-01-01T00:00:00Z",
    )  # fmt: skip


def measured(speeds: dict[Variant, Sequence[tuple[float, float]]], bandwidth: float = 50.0) -> Measured:
    """Speeds of the prompt and of generation, one pair a round."""
    n_rounds = len(next(iter(speeds.values())))
    found = [
        [
            row(v, test, pairs[i][t], i + 1, bandwidth if j == 0 else bandwidth / 2)
            for j, (v, pairs) in enumerate(speeds.items())
            for t, test in enumerate(TESTS)
        ]
        for i in range(n_rounds)
    ]
    return Measured(found, tuple(speeds), TESTS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speed") / "tiny.gguf"
    write_synthetic(TINY, path)
    return path


def test_the_synthetic_model_is_the_same_every_time_and_has_the_shapes_of_a_llama(tiny: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.gguf"
    write_synthetic(TINY, again)
    assert again.read_bytes() == tiny.read_bytes()
    model = open_source(tiny)
    assert [(t.name, t.shape) for t in model.tensors] == list(TINY.tensors())
    for t in model.tensors:
        weights = gguf.dequantize(t.read_rows(), t.qtype)
        if len(t.shape) == 2:
            assert float(np.std(weights)) == pytest.approx(t.shape[-1] ** -0.5, rel=0.02)
        else:
            assert (weights == 1).all()
    assert 1.07e9 < SHAPES["1b"].n_weights < 1.08e9
    assert 7e9 < SHAPES["8b"].n_weights < 8e9
    assert all(shape[-1] % 256 == 0 for llama in SHAPES.values() for _, shape in llama.tensors())


def test_generation_reads_what_is_multiplied(tiny: Path, tmp_path: Path) -> None:
    model = open_model(tiny)
    everything = sum(t.nbytes for t in model.tensors)
    assert bytes_per_token(model) == everything  # the embeddings are the output matrix
    embeddings = model.tensors[0]
    untied = replace(model, tensors=(*model.tensors, replace(embeddings, name="output.weight")))
    assert bytes_per_token(untied) == everything + embeddings.row_bytes
    path = tmp_path / "experts.gguf"
    shapes = {"output.weight": (8, 64), "blk.0.ffn_up_exps.weight": (4, 8, 64)}
    write_tensors(
        path,
        {name: np.zeros(shape, np.float16) for name, shape in shapes.items()},
        numbers={"llama.expert_count": 4, "llama.expert_used_count": 1},
    )
    assert bytes_per_token(open_model(path)) == 2 * 2 * 8 * 64


def test_a_quantized_model_is_no_source(tmp_path: Path) -> None:
    q4_0 = gguf.GGMLQuantizationType.Q4_0
    encoded = gguf.quantize(np.ones((4, 64), np.float32), q4_0)
    made = write_tensors(tmp_path / "made.gguf", {"blk.0.attn_q.weight": encoded}, q4_0)
    with pytest.raises(UserError, match=r"blk\.0\.attn_\w\.weight is Q4_0: give the unquantized model"):
        open_source(made)


def test_a_full_disk_is_noticed_before_anything_is_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**5}))
    with pytest.raises(UserError, match="--files"):
        Files(tiny, tmp_path, 1).check_disk([S, Q4_0])
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="set BOF4_CACHE"):
        synthetic_model("1b")
    assert list(tmp_path.iterdir()) == []


def test_output_without_a_figure_is_refused() -> None:
    fields = {"n_prompt": 256, "n_gen": 0, "samples_ns": [2e9, 1e9, 5e8], "test_time": "2026-01-01T00:00:00Z"}
    generating = {**fields, "n_prompt": 0, "n_gen": 64}
    (prompt, generation) = parse_speeds(f"warning\n{json.dumps(fields)}\n{json.dumps(generating)}\n")
    assert (prompt.test, prompt.tokens_per_second) == ("pp256", 256)
    assert (generation.test, generation.tokens_per_second) == ("tg64", 64)
    for name in fields:
        lacking = json.dumps({k: v for k, v in fields.items() if k != name})
        with pytest.raises(UserError, match="without the figures"):
            parse_speeds(lacking)
    with pytest.raises(UserError, match="no test; it ended with:\nfailed"):
        parse_speeds("failed\n")


def test_batches_are_medians_of_their_repetitions() -> None:
    lines = [{"pl": n, "speed_tg": speed} for n, speed in ((2, 30.0), (2, 50.0), (2, 40.0), (4, 70.0))]
    output = "\n".join(["loading", *map(json.dumps, lines), ""])
    found = parse_batches(output, "2026-01-01T00:00:00Z")
    assert [(s.test, s.tokens_per_second) for s in found] == [("tg16x2", 40), ("tg16x4", 70)]
    assert describe(found[0].test) == "generating 16 tokens of each of 2 sequences"
    assert not any(is_generation(s.test) for s in found)
    for broken in ('{"pl": 2}', '{"speed_tg": 3.0}', '{"pl": "a", "speed_tg": 3.0}', "{"):
        with pytest.raises(UserError, match="without the figures"):
            parse_batches(broken, "")
    with pytest.raises(UserError, match="no test; it ended with:\nfailed"):
        parse_batches("failed\n", "")


def test_only_rounds_that_have_everything_count() -> None:
    whole = [row(v, t, 100, n) for n in (1, 2) for v in (Q4_0, S) for t in TESTS]
    rows = [*whole, row(K, "pp256", 100, 2), row(Q4_0, "pp256", 100, 3)]
    assert [len(r) for r in complete_rounds(rows, SETUP, [Q4_0, S], TESTS)] == [4, 4]
    assert [len(r) for r in complete_rounds(rows, SETUP, [Q4_0, S, K], ["pp256"])] == [3]
    assert complete_rounds(rows, SETUP, [Q4_0, S, K], TESTS) == []
    assert complete_rounds(rows, replace(SETUP, build="another"), [Q4_0, S], TESTS) == []
    plan = make_plan(SETUP, [Q4_0, S], [256], 64, [], 1, 99, 5, rows)
    assert (plan.there, list(plan.numbers), plan.tests) == (2, [4, 5, 6], TESTS)
    assert list(make_plan(SETUP, [Q4_0, S], [256], 64, [], 1, 99, 2, rows).numbers) == []
    assert list(make_plan(SETUP, [Q4_0, S], [256], 64, [], 1, 99, 2, rows, again=True).numbers) == [4, 5]
    assert names_of_tests([], 0) == ()
    assert make_plan(SETUP, [Q4_0, S], [256], 64, [2, 4], 1, 99, 5, rows).tests == (*TESTS, "tg16x2", "tg16x4")


def test_an_interrupted_run_keeps_its_rows_and_begins_its_round_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def interrupted(path: Path, *_: object) -> list[measure.Speed]:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return [measure.Speed(test, 100.0, "") for test in TESTS]

    class Quick:
        def bandwidth(self, _: int) -> float:
            return 50.0

    monkeypatch.setattr(rounds, "llama_bench", interrupted)
    monkeypatch.setattr(rounds, "Memory", Quick)
    monkeypatch.setattr(Files, "get", lambda _, v: files.File(v, Path(v.type), 4.5, 1, {}))
    output = tmp_path / "rows.csv"
    plan = make_plan(SETUP, [Q4_0, S], [256], 64, [], 1, 99, 3, [])
    with pytest.raises(KeyboardInterrupt):
        rounds.run(plan, Files(tiny, tmp_path, 1), output, lambda _: None)
    assert [r.round for r in read_rows(output)] == [1, 1, 1, 1, 2, 2]
    rest = make_plan(SETUP, [Q4_0, S], [256], 64, [], 1, 99, 3, read_rows(output))
    assert list(rest.numbers) == [3, 4]


def test_no_file_always_comes_first_or_after_the_same() -> None:
    orders = [rotated("abcd", number) for number in range(8)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert {order[0] for order in orders} == set("abcd")
    followers = {order[order.index("a") + 1] for order in orders if order[-1] != "a"}
    assert followers == {"b", "d"}


def test_ratios_are_taken_within_rounds() -> None:
    found = measured({Q4_0: [(100, 50), (200, 80), (50, 60)], S: [(130, 60), (240, 88), (70, 63)]})
    assert found.speed(S, "pp256") == Spread(130, 70, 240)
    ratio = found.ratio(S, Q4_0, "pp256")
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.3, 1.2, 1.4))
    assert found.fastest_peer("pp256") == Q4_0
    # the bandwidth of a round is the highest that was measured in it
    assert found.bandwidth == Spread(50, 50, 50)
    assert found.bandwidth_bound(S, "tg64").median == pytest.approx(100)
    assert found.of_bandwidth_bound(S, "tg64").median == pytest.approx(0.63)
    assert measured({S: [(1, 1)]}).fastest_peer("pp256") is None


def test_goals_are_those_of_the_instruction_set() -> None:
    found = measured({Q4_0: [(100, 50)], IQ4_XS: [(110, 30)], S: [(130, 80)], K: [(128, 90)]})
    outcomes = {o.title: o for o in judge_speed(found, "avx512-vnni")}
    verdicts = {title: o.verdict for title, o in outcomes.items()}
    assert verdicts == {
        "pp256: BOF4_S over IQ4_XS, the fastest": "missed by 9.1 %",
        "pp256: BOF4_K over IQ4_XS, the fastest": "missed by 3.0 %",
        "tg64: BOF4_S over Q4_0": "met",
        "tg64: BOF4_S over the bandwidth bound": "missed by 5.9 %",
        "tg64: BOF4_K over Q4_0": "met",
        "tg64: BOF4_K over the bandwidth bound": "met",
    }
    assert [o.met for o in judge_speed(found, "avx2")[:2]] == [True, True]
    lacking = judge_speed(measured({S: [(1, 1)]}), "avx2")
    assert [o.verdict for o in lacking if o.met is None] == [
        "not measured: types of llama.cpp", "not measured: types of llama.cpp",
        "not measured: Q4_0", "not measured: BOF4_K and Q4_0", "not measured: BOF4_K",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        ([], ""),
        (["RPC0: 127.0.0.1:50052 (8 MiB, 8 MiB free)"], ""),
        (["CUDA0: NVIDIA H200 (143771 MiB, 143200 MiB free)"], "cuda: NVIDIA H200"),
        (["ROCm0: AMD Instinct (10 MiB, 10 MiB free)"] * 2, "cuda: 2 x AMD Instinct"),
        (
            ["Vulkan0: AMD Radeon 780M (RADV PHOENIX) (9 MiB, 8 MiB free)", "Vulkan1: Arc (9 MiB, 8 MiB free)"],
            "vulkan: AMD Radeon 780M (RADV PHOENIX), Arc",
        ),
    ],
)
def test_gpus_are_named_as_llama_bench_lists_them(devices: list[str], name: str) -> None:
    lines = [f"  {device}" for device in devices] or ["  (none)"]
    assert parse_devices("\n".join(["loaded a module (1 MiB)", "Available devices:", *lines, ""])) == name


@pytest.mark.parametrize("gpu", ["cuda", "cuda: NVIDIA H200", "vulkan: llvmpipe (LLVM 19.1.7, 256 bits)"])
def test_on_a_gpu_the_bandwidth_of_this_machine_is_not_reported(
    gpu: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def on_gpu(*arguments: object) -> list[measure.Speed]:
        asked.append(arguments)
        return [measure.Speed(test, 100.0, "") for test in TESTS]

    monkeypatch.setattr(rounds, "llama_bench", on_gpu)
    monkeypatch.setattr(Files, "get", lambda _, v: files.File(v, Path(v.type), 4.5, 1, {}))
    setup, output, said = replace(SETUP, instructions=gpu), tmp_path / "rows.csv", list[str]()
    plan = make_plan(setup, [Q4_0, S], [256], 64, [], 1, 99, 1, [])
    rounds.run(plan, Files(tiny, tmp_path, 1), output, said.append)
    assert [arguments[-1] for arguments in asked] == [99, 99]
    assert not any("GB/s" in line for line in said)
    found = Measured(complete_rounds(read_rows(output), setup, [Q4_0, S], TESTS), [Q4_0, S], TESTS)
    assert found.bandwidth == Spread(0, 0, 0)
    headings = [str(column.header) for column in speed_table(setup, found, "tg64").columns]
    assert headings == ["type", "lists", "bits", "tokens/s", "over Q4_0"]
    assert judge_speed(found, setup.instructions) == ()


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.csv"
    add_rows(path, [row(S, "pp256", 1234.5)])
    add_rows(path, [row(speed_variant("BOF4_K", "0.95"), "tg64", 66.25)])
    assert read_rows(path) == [row(S, "pp256", 1234.5), row(speed_variant("BOF4_K", "0.95"), "tg64", 66.25)]
    path.write_text(path.read_text().replace("1234.5", "fast"))
    with pytest.raises(UserError, match="line 2: not a row of `bof4 bench speed`"):
        read_rows(path)


def test_the_picture_has_the_width_for_a_readme(tmp_path: Path) -> None:
    found = measured({Q4_0: [(100, 50), (90, 51)], S: [(125, 80), (120, 85)], K: [(112, 90), (115, 80)]})
    plot(SETUP, found, tmp_path / "speed.png")
    data = (tmp_path / "speed.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert width == WIDTH
    assert 300 < height < 600


def test_goals_are_shown_only_on_request(tmp_path: Path) -> None:
    output = tmp_path / "speed.csv"
    add_rows(output, [row(v, test, speed) for v, speed in ((Q4_0, 100), (S, 130), (K, 110)) for test in TESTS])
    arguments = ["bench", "speed", "--plot-only", "--model", "llama-1b.gguf", "--types", "Q4_0,BOF4_S,BOF4_K"]
    plain = bof4(*arguments, "-p", "256", "--output", str(output))
    assert plain.returncode == 0, plain.stderr
    assert "over Q4_0" in plain.stdout
    for word in ("goals:", "missed", "at least"):
        assert word not in plain.stdout
    shown = bof4(*arguments, "-p", "256", "--output", str(output), "--goals")
    for line in ("goals: speed over speed", "pp256: BOF4_S over Q4_0, the fastest", "tg64: BOF4_K over Q4_0"):
        assert line in shown.stdout
    tables = shown.stdout.index("goals: speed")
    assert plain.stdout.startswith(shown.stdout[:tables])


def test_a_malformed_file_is_noticed_before_kernels_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "kernels.csv"
    output.write_text("type\nQ4_0\n")
    with pytest.raises(UserError, match="line 2: not a row of `bof4 bench kernels`"):
        kernels.run(None, [], 1, output, lambda _: None)  # type: ignore[arg-type]


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "none.csv"
    for arguments, message in (
        (("-p", "0", "-n", "0"), "there is nothing to measure"),
        (("--plot-only", "-o", str(empty)), "no round has all of these"),
    ):
        refused = bof4("bench", "speed", *arguments)
        assert refused.returncode == 1
        assert message in refused.stderr
    with pytest.raises(UserError, match="--prompt many: give whole numbers"):
        split_numbers("--prompt", ["256,many"])
    assert split_numbers("--prompt", ["256,0", "512", "256"]) == (256, 512)


def test_batches_have_a_goal_of_their_own() -> None:
    variants, tests = (Q4_0, S), ("tg16x4",)
    found = Measured([[row(Q4_0, "tg16x4", 100), row(S, "tg16x4", 115)]], variants, tests)
    (of_s, of_k) = judge_speed(found, "avx512-vnni")
    assert (of_s.title, of_s.verdict) == ("tg16x4: BOF4_S over Q4_0, the fastest", "met")
    assert of_k.verdict == "not measured: BOF4_K"
    slower = Measured([[row(Q4_0, "tg16x4", 100), row(S, "tg16x4", 114)]], variants, tests)
    assert judge_speed(slower, "avx2")[0].verdict == "missed by 0.9 %"


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 25, 17, "Zen 4"),  # EPYC 9004
        ("AuthenticAMD", 25, 1, "Zen 3"),  # EPYC 7003
        ("AuthenticAMD", 25, 97, "Zen 4"),  # Ryzen 7000
        ("AuthenticAMD", 25, 33, "Zen 3"),  # Ryzen 5000
        ("AuthenticAMD", 26, 2, "Zen 5"),  # EPYC 9005
        ("GenuineIntel", 6, 173, "Granite Rapids"),
        ("GenuineIntel", 6, 1, "The Product"),
        ("Somebody", 25, 17, "The Product"),
    ],
)
def test_machines_are_named_by_their_microarchitecture(vendor: str, family: int, model: int, name: str) -> None:
    """Families and models as Linux prints them on these processors."""
    fields = {"vendor_id": vendor, "cpu family": family, "model": model, "model name": "The Product"}
    first = "".join(f"{key}\t: {value}\n" for key, value in fields.items())
    assert name_in(f"processor\t: 0\n{first}\nprocessor\t: 1\nmodel\t: 9\n") == name
    assert name_in("") == ""


def test_rows_without_a_machine_are_read_and_are_a_setup_of_their_own(tmp_path: Path) -> None:
    output = tmp_path / "speed.csv"
    add_rows(output, [row(S, "pp256", 100)])
    lines = output.read_text().splitlines()
    output.write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    (old,) = read_rows(output)
    assert old == row(S, "pp256", 100)
    assert replace(old, machine="Zen 4").setup != old.setup
