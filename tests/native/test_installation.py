"""The build that all tests use is found; CMake and Ninja come from the package index; the wheel is complete."""

import os
import shutil
import subprocess
import sys
import zipfile
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


def test_the_wheel_carries_patches_and_sources(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(root)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (root / "ggml_patch").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"gguf_bof4/ggml_patch/{path.relative_to(root / 'ggml_patch')}" in names
    assert "gguf_bof4/convert/__init__.py" in names
