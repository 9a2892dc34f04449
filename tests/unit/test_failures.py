"""How the command line ends after exceptions that no command expects."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import gguf
import pytest
from command_line import bof4

import gguf_bof4.gguf_files.model as model_module
from gguf_bof4.convert import from_huggingface
from gguf_bof4.convert.hub_cache import repository_of, use_repository_names
from gguf_bof4.convert.options import Options
from gguf_bof4.errors import UserError


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `bof4 inspect` meet an exception."""

    def fail(path: Path) -> NoReturn:
        raise error

    monkeypatch.setattr(model_module, "open_model", fail)


def test_an_internal_error_is_one_line_that_says_where_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyError("first line\nsecond line"))
    done = bof4("inspect", "model.gguf")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("bof4: internal error: KeyError: ")
    assert "report it" in done.stderr and "issue tracker" in done.stderr and "--verbose" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--verbose", "inspect", "x.gguf"), ("convert", "x.gguf", "y.gguf", "-v")])
def test_verbose_prints_the_traceback(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyError("broken"))
    monkeypatch.setattr("gguf_bof4.convert.installed_bin", lambda: 1 / 0)
    done = bof4(*arguments)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("bof4: internal error: ")
    assert "--verbose" not in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "bof4: memory ran out: close other programs"),
        (RuntimeError("error 1: std::bad_alloc"), "bof4: memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "bof4: memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "bof4: a/b: No space left on device. Make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "bof4: Disk quota exceeded. Make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "bof4: a/b: Permission denied"),
        (UserError("what is wrong"), "bof4: what is wrong"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_machine_causes_is_no_internal_error(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    done = bof4("inspect", "model.gguf")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(expected)


def test_a_missing_file_inside_the_program_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, FileNotFoundError(errno.ENOENT, "No such file or directory", "lock.json"))
    assert "internal error: FileNotFoundError" in bof4("inspect", "model.gguf").stderr


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    done = bof4("inspect", "model.gguf")
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr


def test_an_internal_error_of_the_child_process_has_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Upstream's converter runs in a process of its own."""
    said = {"bug": "KeyError: 1", "traceback": "Traceback of the child"}
    monkeypatch.setattr(from_huggingface, "_START", f"import json; print(json.dumps({said}))")
    monkeypatch.setattr(from_huggingface, "source_tree", lambda: tmp_path)
    monkeypatch.setattr(from_huggingface, "require", lambda *_: None)
    with pytest.raises(RuntimeError, match="KeyError: 1") as failed:
        from_huggingface.convert_folder(tmp_path, tmp_path / "out.gguf", None, Options(), lambda *_: None)
    assert "Traceback of the child" in str(failed.value.__cause__)
    monkeypatch.setattr(from_huggingface, "_START", "import sys; sys.exit('it ended before it could say why')")
    with pytest.raises(RuntimeError, match="ended with 1") as failed:
        from_huggingface.convert_folder(tmp_path, tmp_path / "out.gguf", None, Options(), lambda *_: None)
    assert "it ended before it could say why" in str(failed.value.__cause__)


PROGRAM = "from gguf_bof4.cli import main; main()"


def test_a_reader_that_has_gone() -> None:
    """`bof4 --help | head -1`, which closes the pipe: no traceback, no complaint of Python when it ends."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_standard_output_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "bof4: No space left on device. Make room, or write to another disk\n"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("hub/models--org--name/snapshots/0123abcd", ("org", "name")),
        ("hub/models--org--a-name--of-parts/snapshots/main", ("org", "a-name--of-parts")),
        ("hub/models--gpt2/snapshots/0123abcd", (None, "gpt2")),
        ("models--org--name", None),
        ("snapshots/0123abcd", None),
        ("hub/datasets--org--name/snapshots/0123abcd", None),
        ("hub/models--org--name/blobs/0123abcd", None),
        ("my-model", None),
    ],
)
def test_names_of_hub_snapshots(folder: str, expected: tuple[str | None, str] | None) -> None:
    assert repository_of(Path("/home/me") / folder) == expected


def test_snapshots_are_named_after_their_repository() -> None:
    class Metadata(gguf.Metadata):
        """Upstream's, so that its own class stays as it is."""

    use_repository_names(Metadata)

    def named(folder: str, config: dict[str, str] | None = None) -> tuple[str | None, str | None, str | None]:
        found = Metadata.apply_metadata_heuristic(gguf.Metadata(), None, config, Path(folder), 0)
        return found.name, found.organization, found.basename

    snapshot = "/hub/models--some-org--Tiny-1.5B/snapshots/0123456789abcdef"
    assert named(snapshot) == ("Tiny 1.5B", "Some Org", "Tiny")
    assert named(snapshot, {"_name_or_path": "their/own-name"})[:2] == ("Own Name", "Their")
    for folder in ("/models/my-model-7B", "/hub/models--a--b", "/x/snapshots/0123456789abcdef"):
        theirs = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), None, None, Path(folder), 0)
        assert named(folder) == (theirs.name, theirs.organization, theirs.basename)
