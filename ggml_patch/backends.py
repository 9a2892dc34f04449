"""The backends of ggml that builds and bundles have: one record for each.

`cpu` and `rpc` are in every build; any other is chosen by its CMake option and gives the build a folder of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.ggml_patch import cuda, vulkan


def _nothing() -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Backend:
    """A backend of ggml. What a build of it needs is found by functions, called when it is built or used.

    Attributes:
        name: as in ggml/src/ggml-NAME, the folder of its sources that a bundle contains.
        title: its name in ggml's registry of backends, and in documents.
        other_titles: its names there when its sources are compiled by other toolchains, which `bof4 build` does not do.
        applies_lists: whether it applies outlier lists (ggml_bof4_list_is_supported in ggml_patch/src/lists); the
            scheduler gives products of weights with lists to another backend otherwise.
        programs: targets that every build of it has beside those of an ordinary build.
        cmake_options: of every build, for a backend that is in every build.
        chosen_by: whether CMake arguments make a build one of this backend; None: it is in every build.
        toolchain: CMake arguments that find its compiler and libraries. Raises a UserError with the remedy.
        fingerprint: what a build depends on beside its CMake arguments: compiler, version, environment.
        remedy: what helps against the failure that the output of a build shows; empty where none is known.
        can_start: whether programs of such a build can start on this machine.
        driver: what they need to start.
        build_option: of `bof4 build`, for messages.
        bundle_file: a CMake file that finds the toolchain, contained in bundles; CMake gets it with -C.
        bundle_arguments: CMake arguments that a bundle's text recommends.
        bundle_text: what that text says of them.
    """

    name: str
    title: str
    applies_lists: bool
    programs: tuple[str, ...] = ()
    cmake_options: tuple[str, ...] = ()
    chosen_by: Callable[[tuple[str, ...]], bool] | None = None
    toolchain: Callable[[], tuple[str, ...]] = _nothing
    fingerprint: Callable[[], tuple[str, ...]] = _nothing
    remedy: Callable[[str], str] = lambda output: ""
    can_start: Callable[[], bool] = lambda: True
    driver: str = ""
    build_option: str = ""
    bundle_file: Path | None = None
    bundle_arguments: tuple[str, ...] = ()
    bundle_text: str = ""
    other_titles: tuple[str, ...] = ()


CPU = Backend(name="cpu", title="CPU", applies_lists=True)

CUDA = Backend(
    name="cuda",
    title="CUDA",
    applies_lists=True,
    programs=cuda.TARGETS,
    chosen_by=cuda.wanted,
    toolchain=lambda: cuda.toolchain_arguments(cuda.find_toolkit()),
    fingerprint=cuda.fingerprint,
    remedy=lambda output: cuda.remedy(cuda.find_toolkit(), output),
    can_start=lambda: cuda.has_driver(),  # noqa: PLW0108 - looked up when called, so that tests can replace it
    driver="NVIDIA's driver",
    build_option="--cuda",
    other_titles=("ROCm", "MUSA"),
    bundle_file=cuda.TOOLCHAIN_FILE,
    bundle_arguments=("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DGGML_CUDA_FA=ON"),
    bundle_text="""\
For NVIDIA GPUs, in this folder; needs NVIDIA's toolkit with nvcc. cuda-toolchain.cmake finds nvcc in /usr/local/cuda or
by CUDACXX=/path/to/nvcc, cuBLAS in the toolkit or in the Python package nvidia-cublas (which torch brings), and libcuda
of the toolkit or of the driver. Architecture 90 is an H100 or H200, 89 an RTX 4000, 86 an RTX 3000, 80 an A100; native
is the GPU of this machine. -DGGML_CUDA_FA=OFF leaves out the FlashAttention kernels, most of the compile time.
""",
)

VULKAN = Backend(
    name="vulkan",
    title="Vulkan",
    applies_lists=True,
    chosen_by=vulkan.wanted,
    fingerprint=vulkan.fingerprint,
    remedy=vulkan.remedy,
    can_start=lambda: vulkan.has_loader(),  # noqa: PLW0108 - as above
    driver="Vulkan's loader (Debian's package libvulkan1)",
    build_option="--vulkan",
    bundle_arguments=("-DGGML_VULKAN=ON",),
    bundle_text="""\
For GPUs of all makers through Vulkan, in this folder; needs CMake 3.19, Vulkan's loader and headers (1.3.272 or newer),
glslc and SPIRV-Headers: `apt install libvulkan-dev glslc spirv-headers`, or LunarG's SDK; CMake names what is missing.
Other headers are named with -DVulkan_INCLUDE_DIR=FOLDER, another glslc with -DVulkan_GLSLC_EXECUTABLE=FILE.
""",
)

RPC = Backend(
    name="rpc",
    title="RPC",
    applies_lists=True,
    programs=("ggml-rpc-server",),
    cmake_options=("-DGGML_RPC=ON",),
)

BACKENDS = (CPU, CUDA, VULKAN, RPC)

ALWAYS = tuple(backend for backend in BACKENDS if backend.chosen_by is None)
"""Backends that are in every build."""


def chosen_backends(cmake_args: tuple[str, ...]) -> tuple[Backend, ...]:
    """The backends that CMake arguments add to those of every build."""
    return tuple(backend for backend in BACKENDS if backend.chosen_by and backend.chosen_by(cmake_args))
