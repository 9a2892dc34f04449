"""The project's CUDA files compile for three generations of tensor cores, where there is nvcc."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_machine import cublas_headers, no_nvcc

from gguf_bof4.ggml_patch import LOCK, PATCHES, SOURCES
from gguf_bof4.ggml_patch.apply import SOURCES_IN_TREE, all_hunks, patch_tree
from gguf_bof4.ggml_patch.cuda import find_toolkit
from gguf_bof4.ggml_patch.source import cache_root, fetch_archive, snapshot

ARCHITECTURES = ("75", "80", "90")

FLAGS = (
    "-std=c++17", "-O3", "-use_fast_math", "-extended-lambda", "-DGGML_CUDA_USE_GRAPHS", "-DGGML_BACKEND_SHARED",
    "-DGGML_BACKEND_BUILD", "-Dggml_cuda_EXPORTS", "-Xcompiler=-fPIC,-Wall",
)  # fmt: skip
"""The flags with which CMake compiles llama.cpp's CUDA files."""

STRICTLY = ("-Xcompiler=-Werror=suggest-attribute=noreturn",)
"""For our files: g++ reports functions that can only abort, which undefined behaviour may cause."""

QUICKLY = ("-Xcicc=-O0", "-Xptxas=-O0")
"""For llama.cpp's own files, which are compiled only to check the patched lines."""

OURS = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.cu"))
HOOKED = sorted({hunk.path for hunk in all_hunks() if hunk.path.endswith(".cu")})


@dataclass(frozen=True)
class Work:
    """One file for one architecture."""

    path: Path
    architecture: str
    flags: tuple[str, ...] = ()


def compile_one(work: Work, tree: Path, key: str) -> str:
    """The compiler's errors, or nothing. Files that have not changed since they compiled are not compiled again."""
    kept = cache_root() / "cuda-compiled"
    kept.mkdir(parents=True, exist_ok=True)
    toolkit = find_toolkit()
    headers = cublas_headers(toolkit)
    system = ("-isystem", str(headers)) if headers else ()
    command = [
        toolkit.nvcc, *FLAGS, *work.flags, f"-gencode=arch=compute_{work.architecture},code=sm_{work.architecture}",
        f"-I{tree / 'ggml/src'}", f"-I{tree / 'ggml/include'}", f"-I{tree / 'ggml/src/ggml-cuda'}", *system,
    ]  # fmt: skip
    what = f"{work.path.relative_to(tree)} for sm_{work.architecture}"
    marker = kept / hashlib.sha256(f"{key} {toolkit.version} {FLAGS} {work.flags} {what}".encode()).hexdigest()
    if marker.is_file():
        return ""
    partial = marker.with_suffix(f".{os.getpid()}.o")
    try:
        run = subprocess.run(
            [*command, "-c", str(work.path), "-o", str(partial)],
            capture_output=True, text=True, check=False, timeout=1800,
        )  # fmt: skip
        if run.returncode == 0 and partial.stat().st_size > 0:
            marker.touch()
            return ""
        lines = (run.stdout + run.stderr).splitlines()
        errors = [line for line in lines if "error" in line] or lines[-20:]
        return "\n    ".join([f"{what}:", *errors[:8]])
    finally:
        partial.unlink(missing_ok=True)


def content_key() -> str:
    """A hash of all files that a CUDA file may include."""
    digest = hashlib.sha256()
    files = [LOCK, *sorted(PATCHES.glob("*.patch")), *sorted(SOURCES.rglob("*.h"))]
    for folder in ("cuda", "bench"):
        files.extend(sorted(path for path in (SOURCES / folder).rglob("*") if path.is_file()))
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """ggml with the patches and sources of this checkout, built or not."""
    prefix = snapshot().tree + "/"
    wanted = {hunk.path for hunk in all_hunks()}
    with tarfile.open(fetch_archive()) as tar:
        for member in tar:
            member.name = member.name.removeprefix(prefix)
            if member.name.startswith("ggml/") or member.name in wanted:
                tar.extract(member, tmp_path / "llama.cpp", filter="data")
    patch_tree(tmp_path / "llama.cpp")
    return tmp_path / "llama.cpp"


@pytest.mark.skipif(bool(no_nvcc()), reason=no_nvcc() or "nvcc is here")
def test_cuda_files_compile_for_each_architecture(tree: Path) -> None:
    key = content_key()
    work = [Work(tree / path, ARCHITECTURES[-1], QUICKLY) for path in HOOKED]
    work += [Work(tree / SOURCES_IN_TREE / path, name, STRICTLY) for path in OURS for name in ARCHITECTURES]
    assert all(one.path.is_file() for one in work)
    cublas_headers(find_toolkit())  # download once, not in each thread
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        failures = [text for text in pool.map(lambda one: compile_one(one, tree, key), work) if text]
    assert not failures, "\n".join(failures)
