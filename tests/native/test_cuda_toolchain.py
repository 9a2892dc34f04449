"""cuda-toolchain.cmake finds what a toolkit lacks: cuBLAS of a Python package, libcuda of the driver."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_bof4.ggml_patch.cuda import TOOLCHAIN_FILE
from gguf_bof4.ggml_patch.toolchain import find_tools

PROJECT = "cmake_minimum_required(VERSION 3.18)\nproject(nothing LANGUAGES NONE)\n"


class Machine:
    """A toolkit without cuBLAS and libcuda, a Python without packages, no driver."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.toolkit, self.packages = folder, folder / "cuda-13", folder / "packages"
        self.nvcc = folder / "bin" / "nvcc"
        (self.toolkit / "include").mkdir(parents=True)
        self.packages.mkdir()
        self.write_program("nvcc", f"echo '#$ TOP={self.toolkit}/bin/..' >&2")
        self.write_program("ldconfig", "")
        (self.toolkit / "bin").mkdir()

    def write_program(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def touch(self, path: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return file

    def configure(self, *arguments: str) -> tuple[dict[str, str], str]:
        """CMake's cache and its output after loading the file."""
        source, build = self.folder / "source", self.folder / "build"
        source.mkdir(exist_ok=True)
        (source / "CMakeLists.txt").write_text(PROJECT)
        cmake, _ = find_tools(lambda what, done, total: None)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")}
        done = subprocess.run(
            [cmake, *arguments, "-C", TOOLCHAIN_FILE, "-S", source, "-B", build],
            capture_output=True, text=True, check=False,
            env={**environment, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "CUDAFLAGS": "-lineinfo",
                 "PYTHONPATH": str(self.packages)},
        )  # fmt: skip
        cache = build / "CMakeCache.txt"
        lines = cache.read_text().splitlines() if cache.is_file() else []
        return {m[1]: m[2] for line in lines if (m := re.match(r"(\w+):\w+=(.*)", line))}, done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


PYTHON = f"-DBOF4_PYTHON={sys.executable}"


def test_cublas_of_a_python_package_and_the_drivers_libcuda_are_used(machine: Machine) -> None:
    header = machine.touch("packages/nvidia/cu13/include/cublas_v2.h")
    blas = [machine.touch(f"packages/nvidia/cu13/lib/lib{name}.so.13") for name in ("cublas", "cublasLt")]
    driver = machine.touch("driver/libcuda.so.1")
    machine.write_program("ldconfig", f"echo '\tlibcuda.so.1 (libc6,x86-64) => {driver}'")
    cache, output = machine.configure(PYTHON)
    found = [cache.get(f"CUDA_{name}_LIBRARY") for name in ("cublas", "cublasLt")]
    assert found == [str(path) for path in blas], output
    assert cache["CMAKE_CUDA_FLAGS"] == f'-lineinfo -isystem "{header.parent}"'
    assert cache["CUDA_cuda_driver_LIBRARY"] == str(driver)
    assert "GGML_CUDA_NO_VMM" not in cache
    assert cache["CMAKE_CUDA_COMPILER"] == str(machine.nvcc)
    assert cache["CUDAToolkit_ROOT"] == str(machine.toolkit)


def test_a_whole_toolkit_is_left_alone(machine: Machine) -> None:
    machine.touch("cuda-13/targets/x86_64-linux/include/cublas_v2.h")
    machine.touch("cuda-13/lib64/stubs/libcuda.so")
    machine.touch("packages/nvidia/cu13/include/cublas_v2.h")
    cache, output = machine.configure(PYTHON)
    assert cache["CUDAToolkit_ROOT"] == str(machine.toolkit), output
    for name in ("CUDA_cublas_LIBRARY", "CMAKE_CUDA_FLAGS", "CUDA_cuda_driver_LIBRARY", "GGML_CUDA_NO_VMM"):
        assert name not in cache


def test_without_a_driver_the_pool_that_needs_it_is_left_out(machine: Machine) -> None:
    machine.touch("cuda-13/include/cublas_v2.h")
    cache, output = machine.configure(PYTHON)
    if "GGML_CUDA_NO_VMM" not in cache:
        pytest.skip(f"this machine has a libcuda: {output}")
    assert cache["GGML_CUDA_NO_VMM"] == "ON"


def test_a_missing_cublas_is_named_with_the_remedy(machine: Machine) -> None:
    if Path("/usr/include/cublas_v2.h").is_file():
        pytest.skip("the system has cuBLAS")
    cache, output = machine.configure(PYTHON)
    words = " ".join(output.split())
    assert f"The CUDA toolkit in {machine.toolkit} has no cuBLAS" in words
    assert "nvidia-cublas" in words
    assert "CUDA_cublas_LIBRARY" not in cache


def test_a_named_compiler_is_taken(machine: Machine) -> None:
    machine.touch("cuda-13/include/cublas_v2.h")
    other = machine.folder / "bin" / "other"
    other.write_text(machine.nvcc.read_text())
    other.chmod(0o755)
    cache, _ = machine.configure(f"-DCMAKE_CUDA_COMPILER={other}", PYTHON)
    assert cache["CMAKE_CUDA_COMPILER"] == str(other)
