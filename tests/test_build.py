"""bof4 build: what it finds, and what it says when something is missing. (The build itself is what all tests use.)"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from program import bof4

from gguf_bof4.ggml_patch import build as building
from gguf_bof4.ggml_patch.build import PROGRAMS, NotBuiltError, build, build_of, installed_bin
from gguf_bof4.ggml_patch.toolchain import BuildError, find_tools


@pytest.fixture
def own_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the project's own build, whatever BOF4_BIN the developer has set."""
    monkeypatch.delenv("BOF4_BIN", raising=False)


def only(folder: Path, *programs: str) -> str:
    """A PATH that holds nothing but these programs."""
    for name in programs:
        (folder / name).symlink_to(shutil.which(name) or "")
    return str(folder)


def test_print_bin_names_the_folder_of_the_programs() -> None:
    printed = bof4("build", "--print-bin")
    assert printed.returncode == 0
    folder = Path(printed.stdout.strip())
    assert folder == installed_bin()
    for program in PROGRAMS:
        if program.startswith("llama-"):
            assert os.access(folder / program, os.X_OK)


def test_without_a_build_every_command_names_the_remedy(tmp_path: Path) -> None:
    refused = bof4("build", "--print-bin", BOF4_CACHE=str(tmp_path), BOF4_BIN="")
    assert refused.returncode == 1
    assert "run `bof4 build`" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.usefixtures("own_build")
def test_a_folder_that_is_no_build_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOF4_BIN", str(tmp_path))
    with pytest.raises(NotBuiltError, match="not the bin folder"):
        installed_bin()


@pytest.mark.usefixtures("own_build")
def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler.*apt install g\+\+"):
        build()


@pytest.mark.usefixtures("own_build")
def test_cmake_and_ninja_come_from_the_index_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", only(tmp_path, "c++"))
    cmake, ninja = find_tools(lambda what, done, total: None)
    assert Path(cmake).is_relative_to(tmp_path / "cache")
    for tool in (cmake, ninja):
        version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
        assert any(c.isdigit() for c in version.stdout)


@pytest.mark.usefixtures("own_build")
def test_a_failing_step_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "print('[1/2] step'); print('it is broken'); raise SystemExit(3)"]
    steps: list[tuple[str, int, int]] = []
    with pytest.raises(BuildError, match=r"compiling failed[\s\S]*it is broken[\s\S]*log"):
        building._run(command, log, "compiling", lambda *step: steps.append(step))
    assert steps == [("compiling", 1, 2)]
    assert "it is broken" in log.read_text()


@pytest.mark.usefixtures("own_build")
def test_each_set_of_options_has_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_of()
    assert build_of() == plain
    assert build_of(("-DGGML_AVX512=OFF",)) != plain
    monkeypatch.setenv("CXXFLAGS", "-O1")
    assert build_of() != plain


def test_the_wheel_carries_patches_and_sources(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
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


def test_help_names_every_command() -> None:
    shown = bof4("--help")
    assert shown.returncode == 0
    for command in ("build", "patch", "convert", "inspect", "verify", "run", "codebook", "demo"):
        assert f" {command} " in shown.stdout


def test_wrong_usage_exits_with_2() -> None:
    assert bof4("build", "--no-such-option").returncode == 2
    assert bof4("no-such-command").returncode == 2
