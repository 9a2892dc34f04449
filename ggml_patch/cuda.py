"""CUDA builds: the toolkit, the architectures to compile for, and a remedy where a part is missing."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gguf_bof4.errors import UserError

TARGETS = ("bof4-bench-cuda",)
"""Programs that only a CUDA build has."""

TOOLCHAIN_FILE = Path(__file__).with_name("cuda-toolchain.cmake")
"""Finds cuBLAS and libcuda where the toolkit lacks them; for CMake's option -C."""

ENVIRONMENT = ("CUDAHOSTCXX", "CUDAFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
"""Variables that CMake and nvcc read, beside CUDACXX."""

REMEDIES = (
    (
        r"links to:\s+CUDA::cublas|fatal error: cublas_v2\.h|has\s+no\s+cuBLAS",
        "The CUDA toolkit has no cuBLAS: install its library and headers, e.g. `apt install libcublas-dev-{dashed}` "
        "from NVIDIA's repository, or `pip install 'nvidia-cublas=={major}.{minor}.*'` into the environment of bof4 "
        "(`nvidia-cublas-cu12` for CUDA 12).",
    ),
    (
        r"links to:\s+CUDA::cuda_driver",
        "There is no libcuda.so to link with: install NVIDIA's driver, or the toolkit's stub library, e.g. "
        "`apt install cuda-driver-dev-{dashed}` from NVIDIA's repository.",
    ),
    (
        "unsupported (GNU|clang) version",
        "nvcc {version} does not support this C++ compiler: install an older one and name it, e.g. "
        "`CUDAHOSTCXX=g++-12 bof4 build --cuda`, or install a newer CUDA toolkit.",
    ),
    (
        "Unsupported gpu architecture",
        "nvcc {version} does not support one of the architectures: choose others with --cuda-architectures.",
    ),
)
"""Patterns of error messages of CMake and nvcc, and the remedy for each."""


class ToolkitError(UserError):
    """The CUDA toolkit, or a part of it, is missing; the message names the remedy."""


@dataclass(frozen=True)
class Toolkit:
    """An nvcc, its version ("13.0.88") and the folder of its toolkit."""

    nvcc: str
    version: str
    root: Path

    @property
    def release(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def wanted(cmake_args: tuple[str, ...]) -> bool:
    """Do these arguments make a CUDA build?"""
    return "-DGGML_CUDA=ON" in cmake_args


def _candidates() -> list[str]:
    if chosen := os.environ.get("CUDACXX"):
        return [chosen]
    folders = [os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    return ["nvcc", *(str(Path(folder) / "bin" / "nvcc") for folder in (*folders, "/usr/local/cuda"))]


@cache
def _read_toolkit(nvcc: str) -> Toolkit | None:
    shown = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"release [\d.]+, V([\d.]+)", shown.stdout)
    # /usr/local/bin/nvcc may be a script that calls the real one, which prints its folder
    traced = subprocess.run([nvcc, "-v", "__none"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", traced.stdout + traced.stderr, re.MULTILINE)
    if version is None:
        return None
    root = Path(top[1].strip()) if top else Path(nvcc).resolve().parents[1]
    return Toolkit(nvcc, version[1], root.resolve())


def find_toolkit() -> Toolkit:
    """The toolkit of $CUDACXX, else of the nvcc on the PATH, else of those in $CUDA_PATH, $CUDA_HOME, /usr/local/cuda.

    Raises:
        ToolkitError: there is no nvcc, or it does not run.
    """
    candidates = _candidates()
    for name in candidates:
        if (path := shutil.which(name)) and (toolkit := _read_toolkit(path)):
            return toolkit
    raise ToolkitError(
        f"no working CUDA compiler found (looked for {', '.join(candidates)}). Install the CUDA toolkit: "
        "`apt install nvidia-cuda-toolkit` on Debian and Ubuntu, or NVIDIA's own from "
        "https://developer.nvidia.com/cuda-downloads, and set CUDACXX=/path/to/bin/nvcc where it is not on the PATH."
    )


def fingerprint() -> tuple[str, ...]:
    """What a CUDA build depends on beside its arguments: nvcc, its version and the environment. Empty without nvcc."""
    try:
        toolkit = find_toolkit()
    except ToolkitError:
        return ()
    return (toolkit.nvcc, toolkit.version, *(os.environ.get(name, "") for name in ENVIRONMENT))


def gpu_architectures() -> tuple[str, ...]:
    """Compute capabilities of this machine's NVIDIA GPUs by nvidia-smi, ascending, without the dot: ("90",)."""
    if not shutil.which("nvidia-smi"):
        return ()
    shown = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    found = re.findall(r"^(\d+)\.(\d+)\s*$", shown.stdout, re.MULTILINE)
    return tuple(f"{a}{b}" for a, b in sorted(set(found), key=lambda pair: (int(pair[0]), int(pair[1]))))


def has_driver() -> bool:
    """Can programs that use CUDA start here? They need the driver's library, even without a GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def default_architectures(toolkit: Toolkit) -> tuple[str, ...]:
    """Architectures of this machine's GPUs; without a GPU, those of llama.cpp's own releases.

    CMake's "native" is not used, because without a GPU it means an architecture that is too old.
    """
    if gpus := gpu_architectures():
        return tuple(f"{gpu}-real" for gpu in gpus)
    older = ("61-virtual", "70-virtual") if toolkit.release < (13, 0) else ()
    newer = ("89-real", "90-virtual") if toolkit.release >= (11, 8) else ()
    blackwell = ("120a-real",) if toolkit.release >= (12, 8) else ()
    return (*older, "75-virtual", "80-virtual", "86-real", *newer, *blackwell)


def parse_architectures(text: str) -> tuple[str, ...]:
    """The names in a list that is separated by semicolons (as in CMake), commas or blanks. "8.6" becomes "86".

    Raises:
        ToolkitError: one of them is not an architecture.
    """
    names = tuple(re.sub(r"^(\d+)\.(\d)", r"\1\2", name) for name in re.split(r"[;,\s]+", text.strip()))
    for name in names:
        if not re.fullmatch(r"native|all|all-major|\d{2,3}[af]?(-real|-virtual)?", name):
            raise ToolkitError(f"{name!r} is not a CUDA architecture: write numbers, as in --cuda-architectures 86,90")
    return names


def cmake_arguments(architectures: tuple[str, ...], flash_attention: bool) -> tuple[str, ...]:
    """CMake options of a CUDA build."""
    return (
        "-DGGML_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}",
        f"-DGGML_CUDA_FA={'ON' if flash_attention else 'OFF'}",
    )


def toolchain_arguments(toolkit: Toolkit) -> tuple[str, ...]:
    """CMake options that select this toolkit, and what it lacks from elsewhere (TOOLCHAIN_FILE)."""
    return (
        f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}", f"-DCUDAToolkit_ROOT={toolkit.root}",
        f"-DBOF4_PYTHON={sys.executable}", "-C", str(TOOLCHAIN_FILE),
    )  # fmt: skip


def remedy(toolkit: Toolkit, output: str) -> str:
    """The remedy for the failure that this output of CMake or nvcc shows; empty where none is known."""
    major, minor = toolkit.release
    for pattern, text in REMEDIES:
        if re.search(pattern, output):
            return text.format(major=major, minor=minor, dashed=f"{major}-{minor}", version=toolkit.version)
    return ""
