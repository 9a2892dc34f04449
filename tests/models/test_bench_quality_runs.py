"""bof4 bench quality on a real model: what it measures, keeps and prints."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from program import bof4

from gguf_bof4.bench import cost, quality
from gguf_bof4.bench.results import read_rows
from gguf_bof4.bench.variants import variants
from gguf_bof4.divergence import Distance, distance
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model


@pytest.fixture(scope="module")
def measured(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A short real run on smol: the CSV file, and what was printed on both streams."""
    output = tmp_path_factory.mktemp("bench") / "short.csv"
    result = bof4(*command(output))
    assert result.returncode == 0, result.stderr
    return output, result.stdout, result.stderr


def command(output: Path) -> list[str]:
    return [
        "bench", "quality", "--models", "smol", "--texts", "test", "--chunks", "1", "--types", "Q4_K,bof4_s",
        "--encoders", "none", "--encoders", "absmax", "--opq", "off", "--threads", "1", "--output", str(output),
    ]  # fmt: skip


def test_a_short_run_measures_a_peer_and_ours(measured: tuple[Path, str, str]) -> None:
    rows = {r.type: r for r in read_rows(measured[0]).values()}
    assert set(rows) == {"Q4_K", "BOF4_S"}
    assert rows["BOF4_S"].bits_per_weight == 4.25
    assert rows["BOF4_S"].fallback == ""
    # 5.25 and 4.25 bits per weight: the difference is many standard errors of 255 tokens
    assert 0.03 < rows["Q4_K"].mean_kld < 0.15 < rows["BOF4_S"].mean_kld < 0.5
    for r in rows.values():
        assert 0 < r.mean_kld_error < r.mean_kld < r.kld_99_9
        assert 60 < r.same_top < 95
        assert 1 < r.ppl_ratio < 1.6


def test_rows_too_short_for_a_peer_are_reported_as_what_they_became(
    measured: tuple[Path, str, str], smol: Path
) -> None:
    found = next(r for r in read_rows(measured[0]).values() if r.type == "Q4_K")
    assert (found.matrices, found.fallback) == (210, "180 Q5_0")
    assert "Q4_K (180 of 210 matrices fell back to Q5_0)" in measured[1]
    matrices = [t for t in open_model(smol).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    bits = sum(t.n_weights * (5.5 if t.shape[-1] % 256 else 4.5) for t in matrices)
    assert found.bits_per_weight == pytest.approx(bits / sum(t.n_weights for t in matrices))


def test_rows_in_the_file_are_not_measured_again(measured: tuple[Path, str, str]) -> None:
    output = measured[0]
    before = output.read_text()
    assert "2 of 2 rows  smol BOF4_S absmax" in measured[2]
    again = bof4(*command(output), BOF4_BIN="")  # needs no program
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == measured[1]
    assert output.read_text() == before


def test_a_run_draws_a_picture_beside_its_rows(measured: tuple[Path, str, str]) -> None:
    assert measured[0].with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_model_has_no_distance_from_itself(built: Path, smol: Path, evaluation: Path, tmp_path: Path) -> None:
    logits = tmp_path / "logits"
    quality.write_logits(smol, evaluation, 1, logits, threads=1)
    # vocabulary, judged tokens: what the disk is checked for
    assert logits.stat().st_size == pytest.approx(cost.logits_bytes("smol", 1), rel=0.001)
    found = distance(smol, logits, 1, threads=1)
    logits.unlink()
    # the logits are kept in 16 bits
    assert abs(found.mean_kld) < 1e-3
    assert found.same_top > 99
    assert found.ppl_ratio == pytest.approx(1, abs=1e-3)


def test_a_text_that_is_too_short_is_refused(built: Path, smol: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Only a few words. " * 50)
    with pytest.raises(UserError, match="too short for 16 chunks"):
        quality.write_logits(smol, text, 16, tmp_path / "logits", threads=1)


def test_an_interrupted_run_keeps_its_rows_and_removes_its_files(
    built: Path, smol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    calls: list[Path] = []

    def interrupted(path: Path, *_: object) -> Distance:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Distance(0.2, 0.01, 2.0, 75.0, 1.2)

    monkeypatch.setattr(quality, "write_logits", lambda *_: None)
    monkeypatch.setattr(quality, "distance", interrupted)
    plan = quality.make_plan(["smol"], variants(["BOF4_S"], ["absmax"], ["off", "0.95"]), ["test", "held-out"], 1, ())
    output = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        quality.run(plan, output, 2, lambda _: None)
    rows = read_rows(output)
    assert [(r.text, r.opq) for r in rows.values()] == [("test", "off"), ("held-out", "off")]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
    rest = quality.make_plan(["smol"], variants(["BOF4_S"], ["absmax"], ["off", "0.95"]), ["test", "held-out"], 1, rows)
    assert [(s.variant.opq, s.texts) for s in rest.steps] == [("0.95", ("test", "held-out"))]
