"""The command line on a few thousand mutated inputs: a message or a result, and nothing left behind.

BOF4_FUZZ=100000 runs that many. A failure names its seed; to see that case alone:

    python tests/fuzz_bases.py BASES
    python tests/fuzz_worker.py BASES WORK --kind files --seed SEED
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fuzz_worker
import pytest
from fuzz_bases import write_bases

from gguf_bof4.ggml_patch.build import installed_bin

CASES = int(os.environ.get("BOF4_FUZZ", "1500"))
FIRST = int(os.environ.get("BOF4_FUZZ_FIRST", "0"))
FOLDERS = 20
"""One case in this many is a Hugging Face folder: those run upstream's converter, which takes longer."""

CHUNK = 2000
"""Cases of one process: an abort costs no more than the rest of these, which the next process runs."""

SECONDS = 120.0
"""For one case, on a machine with other load."""

WORKER = Path(fuzz_worker.__file__)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bases(tmp_path_factory.mktemp("fuzz") / "bases")


def _worker(bases: Path, work: Path, kind: str, first: int, count: int) -> tuple[int, list[str], str]:
    """Exit code of a process for these cases, its failures, and the end of what it wrote to standard error."""
    command = [sys.executable, WORKER, bases, work, "--kind", kind, "--seed", str(first), "--count", str(count)]
    environment = {**os.environ, "BOF4_BIN": str(installed_bin()), "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--limit", str(SECONDS)], capture_output=True, text=True, check=False, env=environment,
        timeout=60 + SECONDS + 2 * count,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines(), done.stderr[-3000:]


def _failures(bases: Path, work: Path, kind: str, first: int, count: int) -> list[str]:
    """Run cases in as many processes as it takes; every failure with its seed."""
    failures, end = [], first + count
    while first < end:
        chunk = min(CHUNK, end - first)
        code, lines, errors = _worker(bases, work, kind, first, chunk)
        for failure in map(json.loads, lines):
            failures.append(f"{kind} seed {failure['seed']}: {failure['command']}\n{failure['wrong']}")
        if code in {0, 1} and not (code == 1 and not lines):
            first += chunk
            continue
        seed = int((work / "last").read_text())
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        failures.append(f"{kind} seed {seed} ended the process: {why}\n{errors}")
        first = seed + 1
    return failures


@pytest.mark.parametrize("kind", fuzz_worker.KINDS)
def test_no_exception_no_abort_nothing_left_behind(bases: Path, tmp_path: Path, kind: str) -> None:
    folders = max(1, CASES // FOLDERS)
    count = folders if kind == "folders" else CASES - folders
    failures = _failures(bases, tmp_path, kind, FIRST, count)
    assert not failures, "\n\n".join([f"{len(failures)} of {count} cases failed", *failures[:20]])


def test_the_judge_sees_what_is_wrong(tmp_path: Path) -> None:
    """Each complaint, from a command that behaves that way."""

    class Command(fuzz_worker.CommandLine):
        def __init__(self, code: int, errors: str, writes: str | None = None) -> None:
            self.answer, self.writes = (code, "", errors), writes

        def __call__(self, arguments: list[str]) -> tuple[int, str, str]:
            if self.writes:
                (tmp_path / self.writes).write_text("x")
            return self.answer

    (tmp_path / "model.gguf").write_text("model")
    convert = ["convert", "model.gguf", "out.gguf"]
    for command, arguments, expected in (
        (Command(1, "bof4: damaged"), convert, None),
        (Command(0, ""), ["inspect", "model.gguf"], None),
        (Command(1, "bof4: internal error: KeyError"), convert, "no UserError"),
        (Command(1, "Traceback"), convert, "no UserError"),
        (Command(1, "bof4: memory ran out"), convert, "memory"),
        (Command(1, ""), convert, "no message"),
        (Command(3, ""), convert, "exit code 3"),
        (Command(0, "bof4: half"), convert, "exit code 0"),
        (Command(0, ""), convert, "it wrote []"),
        (Command(1, "bof4: damaged", ".out.part"), convert, "left behind"),
        (Command(1, "bof4: damaged", "model.gguf"), convert, "source has changed"),
    ):
        found = fuzz_worker.judge(command, arguments, tmp_path)
        assert found is None if expected is None else found is not None and expected in found
        (tmp_path / ".out.part").unlink(missing_ok=True)
