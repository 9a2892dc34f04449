"""What tests of CUDA need: nvcc, cuBLAS' headers, a GPU and a build for it; or the reason why it is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from once import one_at_a_time

from gguf_bof4.ggml_patch import build as building
from gguf_bof4.ggml_patch import cuda
from gguf_bof4.ggml_patch.source import cache_root


@cache
def no_nvcc() -> str:
    """The reason why CUDA files cannot be compiled; empty where they can."""
    try:
        cuda.find_toolkit()
    except cuda.ToolkitError as error:
        return f"CUDA files are not compiled: {error}"
    return ""


@cache
def no_gpu() -> str:
    """The reason why nothing can run on a GPU; empty where it can."""
    if not cuda.gpu_architectures():
        return "nothing runs on a GPU: nvidia-smi is missing or shows none"
    return "" if _chosen_bin() else no_nvcc()


def _has_cublas(toolkit: cuda.Toolkit) -> bool:
    root = toolkit.root
    folders = [root / "include", root / "../../math_libs/include", Path("/usr/include")]
    return any((folder / "cublas_v2.h").is_file() for folder in (*folders, *root.glob("targets/*/include")))


def _packaged_cublas() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        for header in sorted(Path(place).glob("*/include/cublas_v2.h"), reverse=True):
            return header.parent
    return None


def cublas_headers(toolkit: cuda.Toolkit) -> Path | None:
    """The folder of cublas_v2.h: of a Python package, installed or in the cache. None where the toolkit has it."""
    if _has_cublas(toolkit):
        return None
    if package := _packaged_cublas():
        return package
    major, minor = toolkit.release
    kept = cache_root() / f"cublas-headers-{major}.{minor}"
    with one_at_a_time("cublas"):
        if (kept / "cublas_v2.h").is_file():
            return kept
        name = "nvidia-cublas" if major >= 13 else f"nvidia-cublas-cu{major}"
        with tempfile.TemporaryDirectory(dir=cache_root()) as folder:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                 "--dest", folder, f"{name}=={major}.{minor}.*"],
                check=True,
            )  # fmt: skip
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as packed:
                kept.mkdir(exist_ok=True)
                headers = [n for n in packed.namelist() if "/include/" in n and n.endswith(".h")]
                # last, because its presence shows that all were written
                for header in sorted(headers, key=lambda n: n.endswith("cublas_v2.h")):
                    (kept / Path(header).name).write_bytes(packed.read(header))
    return kept


def _chosen_bin() -> Path | None:
    """The folder in BOF4_BIN, if that is a CUDA build."""
    if chosen := os.environ.get("BOF4_BIN"):
        configured = Path(chosen).parent / "CMakeCache.txt"
        if configured.is_file() and "GGML_CUDA:BOOL=ON" in configured.read_text():
            return Path(chosen)
    return None


def gpu_bin() -> Path:
    """The folder of programs for this machine's GPU: BOF4_BIN, that of the last `bof4 build --cuda`, or built now."""
    if chosen := _chosen_bin():
        return chosen
    arguments = building.chosen_arguments()
    if not cuda.wanted(arguments):
        # without FlashAttention, which is most of the compile time and has no BOF4 type
        arguments = cuda.cmake_arguments(cuda.default_architectures(cuda.find_toolkit()), flash_attention=False)
    return building.build((*building.PROGRAMS, *building.TESTS, *cuda.TARGETS), arguments).bin
