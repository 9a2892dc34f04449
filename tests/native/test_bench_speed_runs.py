""""bof4 bench speed and kernels on a small model: what they measure, keep and print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from program import bof4

from gguf_bof4.bench.csv_file import read_table
from gguf_bof4.bench.speed import kernels
from gguf_bof4.bench.speed.results import label, read_rows, speed_variants
from gguf_bof4.bench.speed.synthetic import Shape, write_synthetic

TINY = Shape(layers=2, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=512)
MIXTURE = replace(TINY, experts=4, used_experts=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("speed") / "tiny.gguf"
    write_synthetic(TINY, path)
    return path


def command(model: Path, output: Path, *arguments: str) -> list[str]:
    return [
        "bench", "speed", "--model", str(model), "--types", "q4_0,BOF4_S,BOF4_K", "--opq", "off,0.95",
        "-p", "16", "-n", "4", "--batch", "3", "-r", "1", "-t", "1",
        "--output", str(output), "--files", str(output.parent / "files"),
        *arguments,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(built: Path, tiny: Path) -> tuple[Path, str, str]:
    """A short real run: the CSV file, and what was printed on both streams."""
    output = tiny.parent / "speed.csv"
    result = bof4(*command(tiny, output, "--rounds", "2"))
    assert result.returncode == 0, result.stderr
    return output, result.stdout, result.stderr


def test_a_run_measures_every_file_once_in_each_round(run: tuple[Path, str, str], tiny: Path) -> None:
    rows = read_rows(run[0])
    variants = speed_variants(["Q4_0", "BOF4_S", "BOF4_K"], ["off", "0.95"])
    assert len(variants) == 5
    for number in (1, 2):
        there = [(r.variant, r.test) for r in rows if r.round == number]
        assert sorted(there, key=str) == sorted(((v, t) for v in variants for t in ("pp16", "tg4", "tg16x3")), key=str)
    assert [r.variant for r in rows[:15]] != [r.variant for r in rows[15:]]  # another order
    for r in rows:
        assert (r.model, r.threads, r.repack) == ("tiny", 1, 1)
        assert r.tokens_per_second > 0
        assert r.bandwidth > 0.1
        assert len(r.build) == 8
    by_label = {label(r.variant): r for r in rows}
    assert by_label["BOF4_S"].bits_per_weight == 4.25 < by_label["BOF4_S, lists 0.95"].bits_per_weight
    assert by_label["BOF4_S"].bytes_per_token < by_label["BOF4_S, lists 0.95"].bytes_per_token
    assert "generating 4 tokens" in run[1]
    assert "goals" not in run[1]
    assert run[0].with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_mixture_of_experts_whose_router_stays_as_it_is(built: Path, tmp_path: Path) -> None:
    model = tmp_path / "mixture.gguf"
    write_synthetic(MIXTURE, model)
    result = bof4(*command(model, tmp_path / "speed.csv", "--rounds", "1"))
    assert result.returncode == 0, result.stderr
    bits = {label(r.variant): r.bits_per_weight for r in read_rows(tmp_path / "speed.csv")}
    assert (bits["Q4_0"], bits["BOF4_S"], bits["BOF4_K"]) == (4.5, 4.25, 4.4375)


def test_rounds_in_the_file_count_and_more_can_be_added(run: tuple[Path, str, str], tiny: Path) -> None:
    output = run[0]
    before = output.read_text()
    again = bof4(*command(tiny, output, "--rounds", "2"))
    assert (again.returncode, again.stderr) == (0, "")
    assert output.read_text() == before
    shown = bof4(*command(tiny, output, "--plot-only"), BOF4_BIN="")  # needs no program
    assert (shown.returncode, shown.stdout) == (0, again.stdout)
    more = bof4(*command(tiny, output, "--rounds", "3"))
    assert more.returncode == 0, more.stderr
    assert "quantizing" not in more.stderr  # the files were kept
    assert {r.round for r in read_rows(output)} == {1, 2, 3}
    listed = bof4(*command(tiny, output, "--rounds", "5", "--list"), BOF4_BIN="")
    assert "3 of 5 rounds are there, 2 to measure" in listed.stdout
    output.write_text(before)


def test_kernels_are_measured_beside_their_rooflines(built: Path, tmp_path: Path) -> None:
    output = tmp_path / "kernels.csv"
    result = bof4(
        "bench", "kernels", "--types", "IQ4_NL,BOF4_S", "--rows", "512", "--length", "512", "--rounds", "1",
        "--columns", "1,32", "--output", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "roofline: reading the weights" in result.stdout
    found = read_table(output, kernels.Row, "")
    assert {(r.type, r.columns) for r in found if r.layout == "plain"} == {
        (t, n) for t in ("IQ4_NL", "BOF4_S") for n in (1, 32)
    }
    for r in found:
        assert r.ps_per_weight > 0
        # the rate of int8 products is measured with AVX512 VNNI only; a factor of 3 for load during the measurement
        assert r.columns > 1 or r.roofline_ps > 0
        assert r.roofline_ps < 3 * r.ps_per_weight
    chosen = {(r.type, r.layout == "plain"): r.prefetch for r in found if r.columns == 1}
    assert chosen["IQ4_NL", True] == -2
    assert all(chosen[key] in {0, 1024, 2048, 4096, 8192} for key in chosen if key[0] == "BOF4_S")
    fixed = bof4("bench", "kernels", "--types", "BOF4_S", "--rows", "512", "--length", "512", "--rounds", "1",
                 "--columns", "1", BOF4_PREFETCH="512")  # fmt: skip
    assert "512 bytes" in fixed.stdout
    for path in ("gemm", "gemv"):  # 48 samples decide; the kernels of AVX2, NEON and AMX have no choice
        many = bof4("bench", "kernels", "--types", "BOF4_S", "--rows", "512", "--length", "512", "--rounds", "1",
                    "--columns", "64", "--output", str(tmp_path / f"{path}.csv"), BOF4_PATH=path)  # fmt: skip
        assert many.returncode == 0, many.stderr
        (repacked,) = (r for r in read_table(tmp_path / f"{path}.csv", kernels.Row, "") if r.layout == "CPU_BOF4")
        assert repacked.path == (path if "vnni" in repacked.instructions else "gemm")
    assert bof4("bench", "kernels", "--length", "300").returncode == 1
