"""bof4 compare on real models: figures of a model against itself and against a quantized one; what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import command_line
import pytest
from program import bof4
from rich.console import Console

from gguf_bof4.bench.compare import compare, logits_bytes
from gguf_bof4.cli.compare import result_table
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model

THREADS = ("-t", "1")
VOCABULARY = 49152


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR of the programs and of this one, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_quantized_model_against_the_one_that_it_was_made_from(
    smol: Path, smol_bof4: Path, evaluation: Path, temporary: Path
) -> None:
    done = bof4("compare", str(smol), str(smol_bof4), "-f", str(evaluation), "--chunks", "1", "--json", *THREADS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["chunks"], found["context"]) == (1, 512)
    # bench/quality.csv has 0.28 for absmax without lists, over more of this text
    assert 0.1 < found["mean_kld"] < 0.5
    assert 0 < found["mean_kld_error"] < 0.1 * found["mean_kld"]
    assert 60 < found["same_top"] < 90
    assert 0 < found["same_top_error"] < 5
    assert found["ppl_ratio"] == pytest.approx(found["ppl"] / found["ppl_base"], rel=1e-4)
    # both have read the same text: the error of the ratio is smaller than that of the perplexities
    assert 0 < found["ppl_ratio_error"] / found["ppl_ratio"] < found["ppl_error"] / found["ppl"]
    assert found["base"]["bits_per_weight"] == open_model(smol).bits_per_weight()
    assert found["model"]["bytes"] == smol_bof4.stat().st_size
    assert list(temporary.iterdir()) == []


def test_a_model_against_itself(
    smol_bof4: Path, evaluation: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    asked: list[tuple[int, int, int]] = []

    def recorded(vocabulary: int, chunks: int, context: int) -> int:
        asked.append((vocabulary, chunks, context))
        return logits_bytes(vocabulary, chunks, context)

    monkeypatch.setattr("gguf_bof4.bench.compare.logits_bytes", recorded)
    # -b 512: a chunk at a time, so that there is something to tell
    found = compare(smol_bof4, smol_bof4, evaluation, chunks=2, threads=1, arguments=("-b", "512"),
                    progress=lambda *step: told.append(step))  # fmt: skip
    name = f"running {smol_bof4.name}"
    assert {step[1:] for step in told if step[0] == name} >= {(1, 2), (2, 2)}
    # the size of the file was compared with this
    assert asked == [(VOCABULARY, 2, 512)] * 2
    assert list(temporary.iterdir()) == []
    # distributions are stored in 16 bits
    assert abs(found.figures.mean_kld) < 1e-4
    assert found.figures.ppl_ratio == pytest.approx(1, abs=1e-3)
    assert found.figures.same_top > 99
    console = Console(width=150, file=io.StringIO())
    console.print(result_table(found))
    assert isinstance(console.file, io.StringIO)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines()]
    assert ["bits per weight", f"{found.base.bits_per_weight():.2f}", f"{found.model.bits_per_weight():.2f}"] in rows
    assert ["mean KL divergence", "0", f"{found.figures.mean_kld:.5f} ± {found.figures.mean_kld_error:.5f}"] in rows


def refused(*arguments: str) -> str:
    done = command_line.bof4("compare", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("bof4: ")
    return line


def test_what_cannot_be_compared(
    smol_bof4: Path, gemma: Path, evaluation: Path, temporary: Path, tmp_path: Path
) -> None:
    model, text = str(smol_bof4), ("-f", str(evaluation))
    line = refused(model, str(gemma), *text)
    assert f"have different vocabularies, of {VOCABULARY} and 262144 tokens: their distributions cannot" in line
    short = tmp_path / "short.txt"
    short.write_text("Only some words. " * 100)
    line = refused(model, model, "-f", str(short))
    assert re.search(r"short\.txt has \d+ tokens, and two chunks of 512 are needed: give a longer text", line)
    short.write_text("")
    assert "short.txt is empty" in refused(model, model, "-f", str(short))
    assert "none.txt cannot be read: No such file" in refused(model, model, "-f", str(tmp_path / "none.txt"))
    assert "none.gguf does not exist" in refused(model, str(tmp_path / "none.gguf"), *text)
    line = refused(model, model, *text, "--chunks", "100000000")
    assert re.search(r"comparing 100000000 chunks takes [\d.]+ GB in \S+, where [\d.]+ GB are free: set TMPDIR", line)
    assert list(temporary.iterdir()) == []


def test_vocabularies_of_one_size_are_compared(smol_bof4: Path, tmp_path: Path, evaluation: Path) -> None:
    data = smol_bof4.read_bytes()
    token = b"\x05\0\0\0\0\0\0\0light"
    assert data.count(token) == 1
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(data.replace(token, token[:-1] + b"k"))
    with pytest.raises(UserError, match=r"token \d+ is light in the first and lighk in the second"):
        compare(smol_bof4, changed, evaluation)


def test_ctrl_c_leaves_nothing(smol: Path, evaluation: Path, temporary: Path) -> None:
    program = Path(sys.executable).with_name("bof4")
    process = subprocess.Popen(
        [program, "compare", smol, smol, "-f", evaluation, "--chunks", "64", *THREADS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # a job in the background ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one thread of this program
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(temporary.rglob("logits")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # the program alone, as `kill -INT` sends it: its child must end, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "bof4: interrupted; nothing is left\n"
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
