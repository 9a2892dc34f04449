"""The project's CUDA files compile, where nvcc is, for three generations of tensor cores."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nvidia import cublas_headers, no_nvcc

from gguf_bof4.ggml_patch import LOCK, PATCHES, SOURCES
from gguf_bof4.ggml_patch.apply import SOURCES_IN_TREE, all_hunks, patch_tree
from gguf_bof4.ggml_patch.cuda import find_toolkit
from gguf_bof4.ggml_patch.source import cache_root, fetch_archive, snapshot

ARCHITECTURES = ("75", "80", "90")

FLAGS = (
    "-std=c++17", "-O3", "-use_fast_math", "-extended-lambda", "-DGGML_CUDA_USE_GRAPHS", "-DGGML_BACKEND_SHARED",
    "-DGGML_BACKEND_BUILD", "-Dggml_cuda_EXPORTS", "-Xcompiler=-fPIC,-Wall",
)  # fmt: skip
"""What CMake gives llama.cpp's own CUDA files."""

OURS = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.cu"))
HOOKED = sorted({hunk.path for hunk in all_hunks() if hunk.path.endswith(".cu")})


def compile_for(architecture: str, path: Path, tree: Path, key: str) -> str:
    """What the compiler says where it fails, else nothing; files that have not changed are not compiled again."""
    kept = cache_root() / "cuda-compiled"
    kept.mkdir(parents=True, exist_ok=True)
    toolkit = find_toolkit()
    headers = cublas_headers(toolkit)
    system = ("-isystem", str(headers)) if headers else ()
    command = [
        toolkit.nvcc, *FLAGS, f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
        f"-I{tree / 'ggml/src'}", f"-I{tree / 'ggml/include'}", f"-I{tree / 'ggml/src/ggml-cuda'}", *system,
    ]  # fmt: skip
    name = hashlib.sha256(
        f"{key} {toolkit.version} {FLAGS} {architecture} {path.relative_to(tree)}".encode()
    ).hexdigest()
    marker = kept / name
    if marker.is_file():
        return ""
    partial = marker.with_suffix(f".{os.getpid()}.o")
    try:
        run = subprocess.run(
            [*command, "-c", str(path), "-o", str(partial)], capture_output=True, text=True, check=False, timeout=900
        )
        if run.returncode == 0 and partial.stat().st_size > 0:
            marker.touch()
            return ""
        lines = (run.stdout + run.stderr).splitlines()
        errors = [line for line in lines if "error" in line] or lines[-20:]
        return "\n    ".join([f"{path.relative_to(tree)} for sm_{architecture}:", *errors[:8]])
    finally:
        partial.unlink(missing_ok=True)


def content_key() -> str:
    """Changes with whatever a CUDA file can include."""
    digest = hashlib.sha256()
    files = [LOCK, *sorted(PATCHES.glob("*.patch")), *sorted(SOURCES.glob("*.h"))]
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
    # nvcc's own threads would not help: one file and one architecture is one process of two programs in turn
    work = [(architecture, tree / SOURCES_IN_TREE / path) for path in OURS for architecture in ARCHITECTURES]
    # the files of llama.cpp that are hooked: whether they compile does not depend on the architecture
    work += [(ARCHITECTURES[-1], tree / path) for path in HOOKED]
    assert all(path.is_file() for _, path in work)
    cublas_headers(find_toolkit())  # once, not in each thread
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        failures = [text for text in pool.map(lambda item: compile_for(*item, tree, key), work) if text]
    assert not failures, "\n".join(failures)
