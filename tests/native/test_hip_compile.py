"""The project's CUDA files compile as HIP, for an AMD GPU, where clang 15 and HIP's headers are.

`apt install hipcc` on Debian 12 is enough, or its packages unpacked in the folder that BOF4_HIP_ROOT names. Its HIP
(5.2) is older than what ggml needs: tests/native/sources/hip_headers has what is missing, and what ggml uses of
hipBLAS, as declarations. Only syntax and types are checked. There is no such package for MUSA.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from c_programs import PROGRAMS

from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.apply import SOURCES_IN_TREE

ROOT = Path(os.environ.get("BOF4_HIP_ROOT", "/"))
CLANG = ROOT / "usr/lib/llvm-15/bin/clang++"

FILES = sorted(path.name for path in (SOURCES / "cuda").glob("*.cu"))

pytestmark = pytest.mark.skipif(
    not (CLANG.is_file() and (ROOT / "usr/include/hip/hip_runtime.h").is_file()),
    reason="HIP is not compiled: clang 15 or HIP's headers are missing (Debian's hipcc)",
)


@pytest.mark.parametrize("name", FILES)
def test_cuda_files_compile_as_hip(patched_tree: Path, name: str) -> None:
    (wrappers,) = (ROOT / "usr/lib/llvm-15/lib/clang").glob("15*/include/cuda_wrappers")
    libraries = f"{ROOT / 'usr/lib/x86_64-linux-gnu'}:{ROOT / 'usr/lib/llvm-15/lib'}"
    ggml = patched_tree / "ggml"
    done = subprocess.run(
        [CLANG, "-x", "hip", "--offload-arch=gfx1100", "-nogpulib", "-nogpuinc", "-fsyntax-only", "-std=c++17",
         "-Wno-everything", "-DGGML_USE_HIP", "-D__HIP_PLATFORM_AMD__", "-D__HIP_PLATFORM_HCC__", "-DGGML_SHARED",
         "-DGGML_BACKEND_SHARED", "-isystem", wrappers, "-isystem", PROGRAMS / "hip_headers",
         "-isystem", ROOT / "usr/include", "-include", "hip/hip_runtime.h",
         f"-I{ggml / 'src'}", f"-I{ggml / 'include'}", f"-I{ggml / 'src/ggml-cuda'}",
         patched_tree / SOURCES_IN_TREE / "cuda" / name],
        capture_output=True, text=True, check=False, env={**os.environ, "LD_LIBRARY_PATH": libraries},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
