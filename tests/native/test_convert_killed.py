"""kill -9 and a full disk at any moment of a conversion: afterwards the old file, the new file, or none.

BOF4_KILLS=20 makes twenty moments of each kind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killed_runner
import pytest
from calibration_models import family_folder
from convert_models import SHAPES, write_gguf

from gguf_bof4.convert import convert

QUICK = 2
MOMENTS = int(os.environ.get("BOF4_KILLS", str(QUICK)))
SEED = int(os.environ.get("BOF4_KILLS_SEED", "0"))
OLD = b"what was there before"

Run = Callable[..., dict[str, Any]]
"""Runs a job of killed_runner."""


@dataclass(frozen=True)
class Kind:
    """A kind of conversion and what it writes when nobody interrupts it.

    Attributes:
        expected: contents of the files by name.
        operations: on files below the folder of the output.
        seconds: that it took.
    """

    name: str
    source: Path
    options: dict[str, Any]
    expected: dict[str, bytes]
    operations: int
    seconds: float


@pytest.fixture(scope="module")
def runner() -> Iterator[Run]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, killed_runner.__file__, "--gptq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None

    def run(**job: Any) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(job, default=str) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        assert not answer.get("bug"), answer["bug"]
        return answer

    yield run
    process.stdin.close()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("killed") / "model.gguf", shapes=SHAPES)


@pytest.fixture(scope="module")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed-gptq")
    (folder / "hf").mkdir()
    return convert(family_folder(folder / "hf", "llama"), folder / "model.gguf", type="F32").outputs[0]


OPTIONS: dict[str, dict[str, Any]] = {
    "search": {},
    "split": {"split_max_size": "100K"},
    "gptq": {
        "encoder": "gptq", "calibration": __file__, "samples": 4, "sample_length": 48, "threads": 1,
        "split_max_size": "60K",
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=OPTIONS)
def kind(request: pytest.FixtureRequest, runner: Run, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    options: dict[str, Any] = OPTIONS[request.param]
    source: Path = request.getfixturevalue("trained_model" if request.param == "gptq" else "small_model")
    folder = tmp_path_factory.mktemp(request.param)
    done = runner(source=source, output=folder / "out.gguf", options=options)
    assert done["signal"] is None and done["message"] is None, done
    expected = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert len(expected) == 1 if request.param == "search" else len(expected) > 2
    return Kind(request.param, source, options, expected, done["operations"], done["seconds"])


def count(kind: Kind) -> int:
    """Number of moments: gptq takes seconds for each."""
    return 1 if kind.name == "gptq" and MOMENTS == QUICK else MOMENTS


def moments(kind: Kind, generator: random.Random) -> list[dict[str, Any]]:
    """Half of them just before an operation on files, of those half among the last, when files get their names."""
    found: list[dict[str, Any]] = []
    for i in range(count(kind)):
        if i % 4 == 1:
            last = len(kind.expected) + 4
            found.append({"operation": kind.operations - 1 - generator.randrange(min(last, kind.operations))})
        elif i % 4 == 0:
            found.append({"operation": generator.randrange(kind.operations)})
        else:
            found.append({"seconds": generator.uniform(0, kind.seconds)})
    return found


def visible(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("out")}


def is_old_new_or_none(kind: Kind, found: dict[str, bytes], old: dict[str, bytes]) -> bool:
    """Parts whose first is missing are no model: readers open the first, and refuse a set that lacks one."""
    assert all(content in {kind.expected[name], old.get(name)} for name, content in found.items())
    first = min(kind.expected)
    return first not in found or found in (kind.expected, old)


def test_killed(kind: Kind, runner: Run, tmp_path: Path) -> None:
    generator = random.Random(f"{SEED} {len(kind.expected)}")
    for i, moment in enumerate(moments(kind, generator)):
        folder = tmp_path / str(i)
        folder.mkdir()
        old = dict.fromkeys(kind.expected, OLD) if i % 2 else {}
        for name, content in old.items():
            (folder / name).write_bytes(content)
        job = {"source": kind.source, "output": folder / "out.gguf", "options": kind.options | {"force": bool(old)}}
        done = runner(**job, **moment)
        assert done["signal"] in {signal.SIGKILL, None}, (moment, done)
        found = visible(folder)
        assert is_old_new_or_none(kind, found, old), (moment, sorted(found))
        # the next run removes what was left, and gptq resumes from its finished layers
        done = runner(source=job["source"], output=job["output"], options=kind.options | {"force": True})
        assert done["message"] is None, (moment, done)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == kind.expected, moment


def test_a_limit_on_the_size_of_files(kind: Kind, runner: Run, tmp_path: Path) -> None:
    """A write fails in the middle of a file, as on a full disk."""
    generator, old = random.Random(SEED), dict.fromkeys(kind.expected, OLD)
    for i in range(count(kind)):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, content in old.items():
            (folder / name).write_bytes(content)
        limit = generator.randrange(1, max(map(len, kind.expected.values())))
        job = {"source": kind.source, "output": folder / "out.gguf", "options": kind.options | {"force": True}}
        done = runner(**job, largest_file=limit)
        assert done["signal"] is None and "File too large" in done["message"], done
        assert {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".gptq")} == old
        assert runner(**job)["message"] is None
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == kind.expected


def test_a_disk_that_gets_full(kind: Kind, runner: Run, tmp_path: Path) -> None:
    """Another program takes the room just before one of the operations."""
    generator = random.Random(SEED)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        for _ in range(count(kind)):
            job = {"source": kind.source, "output": disk / "out.gguf", "options": kind.options | {"force": True}}
            done = runner(**job, action="fill", disk=disk, operation=generator.randrange(kind.operations))
            assert done["signal"] is None
            (disk / "filler").unlink(missing_ok=True)
            found = {p.name: p.read_bytes() for p in disk.iterdir() if not p.name.endswith(".gptq")}
            assert found == ({} if done["message"] else kind.expected), done
            assert runner(**job)["message"] is None
            assert {p.name: p.read_bytes() for p in disk.iterdir()} == kind.expected
            for path in disk.iterdir():
                path.unlink()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_child_process_ends_with_its_parent() -> None:
    """Its standard input is a pipe that ends when the parent is killed; nothing else can read from it."""
    program = (
        "import sys, time; from gguf_bof4.convert.parent_process import end_with_parent; end_with_parent(); "
        "print(repr(sys.stdin.read()), flush=True); time.sleep(300)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "''\n"
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=60) == 1
