"""The build that all tests use is found; CMake and Ninja come from the package index."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program import bof4

from gguf_bof4.ggml_patch.build import PROGRAMS, installed_bin
from gguf_bof4.ggml_patch.toolchain import find_tools


def test_print_bin_names_the_folder_of_the_programs() -> None:
    printed = bof4("build", "--print-bin")
    assert printed.returncode == 0
    folder = Path(printed.stdout.strip())
    assert folder == installed_bin()
    for program in PROGRAMS:
        if program.startswith("llama-"):
            assert os.access(folder / program, os.X_OK)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_libraries_are_not_sought_in_the_current_folder(built: Path) -> None:
    files = [file for file in built.iterdir() if file.name.startswith(("llama-", "lib")) and not file.is_symlink()]
    assert {"llama-cli", "libbof4.so"} <= {file.name for file in files}
    for file in files:
        read = subprocess.run(["readelf", "-d", str(file)], capture_output=True, text=True, check=True).stdout
        entries = [entry for path in re.findall(r"R(?:UN)?PATH.*\[(.*)\]", read) for entry in path.split(":")]
        assert all(entry.startswith(("/", "$ORIGIN")) for entry in entries), f"{file}: {entries}"


def test_cmake_and_ninja_come_from_the_index_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    (tmp_path / "c++").symlink_to(shutil.which("c++") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    cmake, ninja = find_tools(lambda what, done, total: None)
    assert Path(cmake).is_relative_to(tmp_path / "cache")
    for tool in (cmake, ninja):
        version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
        assert any(c.isdigit() for c in version.stdout)
