"""bof4 build --bundle: its size, the same bytes each time, and a build from it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_machine import no_nvcc
from program import bof4
from vulkan_machine import toolkit_arguments, vulkan_machine

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.apply import HEADERS_IN_TREE, PUBLIC_HEADERS, SOURCES_IN_TREE
from gguf_bof4.ggml_patch.build import CMAKE_OPTIONS, PROGRAMS, TESTS
from gguf_bof4.ggml_patch.bundle import FOLDER, write_bundle
from gguf_bof4.ggml_patch.cuda import TOOLCHAIN_FILE
from gguf_bof4.ggml_patch.source import open_archive
from gguf_bof4.ggml_patch.toolchain import find_tools


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundle") / "bof4.tar.gz"
    done = bof4("build", "--bundle", str(target))
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def unpacked(bundle: Path) -> Path:
    with open_archive(bundle) as tar:
        tar.extractall(bundle.parent)
    return bundle.parent / FOLDER


def test_it_is_small_and_says_how_to_build(bundle: Path, unpacked: Path) -> None:
    assert [path.name for path in bundle.parent.iterdir() if path.is_file()] == [bundle.name]
    assert bundle.stat().st_size < 8e6
    text = (unpacked / "BUILD.txt").read_text()
    for wanted in (*CMAKE_OPTIONS, *PROGRAMS, *TESTS, "bof4-bench-cuda", "-DGGML_CUDA=ON", "-DGGML_CUDA_FA=O"):
        assert wanted in text
    assert (unpacked / "LICENSE").is_file()
    assert (unpacked / TOOLCHAIN_FILE.name).read_bytes() == TOOLCHAIN_FILE.read_bytes()


def test_it_contains_all_of_our_sources(unpacked: Path) -> None:
    ours = {path.relative_to(SOURCES) for path in SOURCES.rglob("*") if path.is_file()}
    public = {path for path in ours if path.parts[0] == PUBLIC_HEADERS}
    contained = unpacked / SOURCES_IN_TREE
    assert {path.relative_to(contained) for path in contained.rglob("*") if path.is_file()} == ours - public
    assert all((unpacked / HEADERS_IN_TREE / header.name).is_file() for header in public)


def test_an_existing_file_stays_unless_forced_and_the_bytes_are_always_the_same(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "bof4.tgz"
    target.write_text("mine")
    refused = bof4("build", "--bundle", str(target))
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert target.read_text() == "mine"
    write_bundle(target, force=True)
    assert target.read_bytes() == bundle.read_bytes()


def test_bad_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.tar\.gz"):
        write_bundle(tmp_path / "bof4.zip", force=False)
    with pytest.raises(UserError, match="no folder"):
        write_bundle(tmp_path / "nowhere" / "bof4.tar.gz", force=False)
    assert list(tmp_path.iterdir()) == []


def test_it_configures_and_builds_as_its_text_says(unpacked: Path) -> None:
    cmake, ninja = find_tools(lambda what, done, total: None)
    commands = re.findall(r"^    (cmake -B build -DCMAKE.*)$", (unpacked / "BUILD.txt").read_text(), re.MULTILINE)
    assert len(commands) == 1
    arguments = commands[0].split()[1:]
    subprocess.run(
        [cmake, *arguments, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"],
        cwd=unpacked, check=True, capture_output=True,
    )  # fmt: skip
    known = subprocess.run(
        [ninja, "-C", "build", "-t", "targets", "all"], cwd=unpacked, check=True, capture_output=True, text=True
    ).stdout
    for target in (*PROGRAMS, *TESTS):
        assert f"\n{target}: phony" in known
    # where a source file of any target is missing, ninja fails
    dry = subprocess.run(
        [ninja, "-C", "build", "-n"], cwd=unpacked, check=False, capture_output=True, text=True
    )  # fmt: skip
    assert dry.returncode == 0, dry.stdout[-1000:] + dry.stderr[-1000:]
    # llama-ui-assets makes a source file from templates
    subprocess.run(
        [ninja, "-C", "build", "llama-ui-assets", "ggml-base"], cwd=unpacked, check=True, capture_output=True
    )
    assert list((unpacked / "build" / "bin").glob("*ggml-base*"))
    shutil.rmtree(unpacked / "build")


@pytest.mark.skipif(bool(no_nvcc()), reason=no_nvcc() or "nvcc is here")
def test_it_configures_for_cuda_as_its_text_says(unpacked: Path, tmp_path: Path) -> None:
    """Where the toolkit has no cuBLAS, that of a Python package is found; here a package of empty files."""
    for name in ("include/cublas_v2.h", "lib/libcublas.so.13", "lib/libcublasLt.so.13"):
        file = tmp_path / "nvidia/cu13" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    cmake, ninja = find_tools(lambda what, done, total: None)
    text = (unpacked / "BUILD.txt").read_text()
    (command,) = re.findall(r"^    (cmake -C .* -B build-cuda [^\\]*)\\\n +(.*)$", text, re.MULTILINE)
    arguments = " ".join(command).replace("=native", "=90").split()[1:]
    done = subprocess.run(
        [cmake, *arguments, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"],
        cwd=unpacked, check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    dry = subprocess.run(
        [ninja, "-C", "build-cuda", "-n", "ggml-cuda", "bof4-bench-cuda"],
        cwd=unpacked, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert dry.returncode == 0, dry.stdout[-1000:] + dry.stderr[-1000:]
    shutil.rmtree(unpacked / "build-cuda")


def test_it_builds_for_vulkan_as_its_text_says(unpacked: Path) -> None:
    """All files are there, and a shader of ours is compiled: it includes upstream's and our own."""
    tools = toolkit_arguments(vulkan_machine())
    cmake, ninja = find_tools(lambda what, done, total: None)
    text = (unpacked / "BUILD.txt").read_text()
    (command,) = re.findall(r"^    (cmake -B build-vulkan [^\\]*)\\\n +(.*)$", text, re.MULTILINE)
    arguments = " ".join(command).split()[1:]
    assert "-DGGML_VULKAN=ON" in arguments
    for option in ("-DVulkan_INCLUDE_DIR=", "-DVulkan_GLSLC_EXECUTABLE="):
        assert option in text
    done = subprocess.run(
        [cmake, *arguments, *tools, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"],
        cwd=unpacked, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    dry = subprocess.run(
        [ninja, "-C", "build-vulkan", "-n", "ggml-vulkan", "llama-bench", "test-backend-ops"],
        cwd=unpacked, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert dry.returncode == 0, dry.stdout[-1000:] + dry.stderr[-1000:]
    shader = "ggml/src/ggml-vulkan/bof4-get-rows.comp.cpp"
    made = subprocess.run(
        [ninja, "-C", "build-vulkan", shader], cwd=unpacked, check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    assert "get_rows_bof4_k_f32_len" in (unpacked / "build-vulkan" / shader).read_text()
    shutil.rmtree(unpacked / "build-vulkan")


def test_no_file_of_the_vulkan_backend_is_left_out(unpacked: Path, patched_tree: Path) -> None:
    """Shaders include each other, which no dry run of a build notices."""
    folder = Path("ggml/src/ggml-vulkan")
    contained, whole = (
        {path.relative_to(tree) for path in (tree / folder).rglob("*") if path.is_file()}
        for tree in (unpacked, patched_tree)
    )
    assert contained == whole != set()
