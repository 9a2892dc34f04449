"""Files and folders that appear under their names only when they are complete, and names of parts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_bof4.errors import UserError, require
from gguf_bof4.gguf_files.parts import Split, parse_part_name, part_paths
from gguf_bof4.paths import atomic_path, hidden_folder, write_text


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    write_text(target, "old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_path(target) as partial:
        partial.mkdir()
        (partial / "file").write_text("x")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["file"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as partial:
        partial.write_text(str(1 // 0))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("/dev/null")
    for target, kind in ((fifo, "FIFO"), (link, "device")):
        with pytest.raises(UserError, match=f"{target} is a {kind}, which a file must not replace"):
            write_text(target, "x")
    assert fifo.is_fifo() and link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".bin"])
def test_part_names(suffix: str) -> None:
    name = parse_part_name(f"m-1-00002-of-00003{suffix}")
    assert name is not None
    assert (name.stem, name.number, name.count, name.suffix) == ("m-1", 2, 3, suffix)
    assert name.all() == [f"m-1-0000{i}-of-00003{suffix}" for i in (1, 2, 3)]
    assert parse_part_name(f"m{suffix}") is None


def test_the_files_of_a_model_are_up_to_its_metadata(tmp_path: Path) -> None:
    one, parts = tmp_path / "m-00002-of-00002.gguf", Split(2, 1, 7)
    for split in (Split(None, None, None), Split(0, 0, 0), Split(1, 0, 7)):
        assert part_paths(one, split) == [one]
    with pytest.raises(UserError, match=r"give the first one, .*m-00001-of-00002\.gguf"):
        part_paths(one, parts)
    with pytest.raises(UserError, match=r"m\.gguf is part 2 of 2 .*does not end in -00002-of-00002\.gguf"):
        part_paths(tmp_path / "m.gguf", parts)


def test_a_missing_package_is_named_with_its_extra() -> None:
    require("hf", "this test", "numpy")
    with pytest.raises(UserError, match=r"this test needs no_such_package: pip install 'gguf-bof4\[hf\]'"):
        require("hf", "this test", "numpy", "no_such_package")


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """By the next process that writes the same file; what belongs to others or to a running process stays."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".a.{ended.pid}.part", f".a.{ended.pid}.x1_2abcd", f".a.{os.getpid()}.reused12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("half")
    kept = [f".a.{os.getppid()}.running1", f".b.{ended.pid}.other123", f".a.{ended.pid}", ".a.gptq", f"a.{ended.pid}.x"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f".a.{ended.pid}.file").write_text("no folder")
    write_text(tmp_path / "a", "new")
    assert {p.name for p in tmp_path.iterdir()} == {"a", *kept, f".a.{ended.pid}.file"}


def test_hidden_folders_in_use_stay(tmp_path: Path) -> None:
    """Also where the number of the process says nothing: in another container."""
    with hidden_folder(tmp_path / "a") as first:
        with hidden_folder(tmp_path / "a") as second:
            assert first.is_dir() and second.is_dir() and first != second
        assert first.is_dir()
    assert list(tmp_path.iterdir()) == []
