"""bof4 build: fetch, patch and build llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gguf_bof4.ggml_patch import build as building
from gguf_bof4.ggml_patch import cuda as gpu
from gguf_bof4.ggml_patch import portable as portable_build
from gguf_bof4.ggml_patch import vulkan as vulkan_build
from gguf_bof4.ggml_patch.backends import chosen_backends
from gguf_bof4.ggml_patch.bundle import write_bundle
from gguf_bof4.ggml_patch.page import build_page, made_page, place_page
from gguf_bof4.progress import progress_bar


def build(
    print_bin: Annotated[
        bool,
        typer.Option(
            "--print-bin",
            help="Build nothing; print the folder of the programs in use (with --cuda, --vulkan or --portable: of that "
            "build).",
        ),
    ] = False,
    tests: Annotated[bool, typer.Option("--tests", help="Also build llama.cpp's tests of the types.")] = False,
    ui: Annotated[
        bool,
        typer.Option(
            "--ui",
            help="Also build llama-server's web page; needs npm and some minutes, once: later builds get it from the "
            "cache.",
        ),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Parallel compilers; 0: one for each core.")] = 0,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="Build for all processors of this architecture, in a folder of its own: programs choose the kernels "
            "when they start. Takes about three times as long.",
        ),
    ] = False,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Build for NVIDIA GPUs, in a folder of its own; needs the CUDA toolkit.")
    ] = False,
    cuda_architectures: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="GPU architectures as in CMAKE_CUDA_ARCHITECTURES, e.g. 86,90. Default: those of this machine's GPUs; "
            "without a GPU those of llama.cpp's releases, which are many and slow to compile.",
            show_default=False,
        ),
    ] = "",
    flash_attention: Annotated[
        bool | None,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="Build llama.cpp's FlashAttention kernels (GGML_CUDA_FA), which take most of the compile time. "
            "Default: yes.",
            show_default=False,
        ),
    ] = None,
    vulkan: Annotated[
        bool,
        typer.Option(
            "--vulkan",
            help="Build for GPUs of all makers through Vulkan, in a folder of its own; needs glslc, Vulkan's headers "
            "and SPIRV-Headers.",
        ),
    ] = False,
    vulkan_headers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --vulkan: the folder that has vulkan/vulkan.hpp, where the system's headers are too old.",
            show_default=False,
        ),
    ] = None,
    glslc: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --vulkan: the shader compiler. Newer ones know cooperative matrices and integer dot products.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tar.gz",
            help="Build nothing; write the patched source to this file, to build it on a machine without network.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --bundle: overwrite the file.")] = False,
) -> None:
    """Fetch the pinned llama.cpp, patch it and build its programs. A second call finds them in the cache.

    bof4 uses the programs of the last `bof4 build`: after `bof4 build --cuda` or `--vulkan` they run on the GPU, after
    `bof4 build` on the CPU again. Without a build it uses those in the package, where it was installed with programs.

    BOF4_CACHE is the folder of sources and builds; default: the user's cache folder. BOF4_BIN is the bin folder of a
    checkout that you patched (`bof4 patch`) and built yourself; its programs are then used.
    """
    cuda_options = bool(cuda_architectures) or flash_attention is not None
    _check_kind(portable, (cuda, cuda_options), (vulkan, bool(vulkan_headers or glslc)))
    if force and bundle is None:
        raise typer.BadParameter("--force needs --bundle")
    if ui and bundle is not None:
        raise typer.BadParameter("--ui belongs to a build: a bundle has the source alone")
    console = Console(stderr=True)
    if bundle is not None:
        with progress_bar("checking the cache", steps_of="bof4 build") as report:
            size = write_bundle(bundle, force, report)
        console.print(f"bof4 build: {bundle} has {size / 1e6:.1f} MB; BUILD.txt inside says how to build it")
        return
    if print_bin:
        if cuda:
            print(_cuda_bin(cuda_architectures, flash_attention))
        elif vulkan:
            print(_vulkan_bin(vulkan_headers, glslc))
        else:
            print(_portable_bin() if portable else building.installed_bin())
        return

    cmake_args: tuple[str, ...] = portable_build.cmake_arguments() if portable else ()
    if cuda:
        cmake_args = _cuda_arguments(console, cuda_architectures, flash_attention)
    if vulkan:
        cmake_args = _vulkan_arguments(console, vulkan_headers, glslc)
    targets = _programs(cmake_args) + (building.tests_of(cmake_args) if tests else ())
    with progress_bar("checking the cache", steps_of="bof4 build") as report:
        page = build_page(report) if ui else made_page()
        result = building.build(targets, cmake_args, jobs, report)
        if page is not None:
            place_page(page, result.bin)
    building.choose(cmake_args)
    console.print("bof4 build: the programs are in")
    print(result.bin)


def _check_kind(portable: bool, cuda: tuple[bool, bool], vulkan: tuple[bool, bool]) -> None:
    """Refuse two kinds of builds at once, and options of a kind without it: (chosen, has options)."""
    if cuda[1] and not cuda[0]:
        raise typer.BadParameter("--cuda-architectures and --flash-attention need --cuda")
    if vulkan[1] and not vulkan[0]:
        raise typer.BadParameter("--vulkan-headers and --glslc need --vulkan")
    if portable + cuda[0] + vulkan[0] > 1:
        raise typer.BadParameter("--portable, --cuda and --vulkan exclude each other")


def _programs(cmake_args: tuple[str, ...]) -> tuple[str, ...]:
    """Targets of a build with these arguments, without tests."""
    return building.PROGRAMS + tuple(p for backend in chosen_backends(cmake_args) for p in backend.programs)


def _cuda_arguments(console: Console, architectures: str, flash_attention: bool | None) -> tuple[str, ...]:
    """CMake's arguments of a CUDA build; prints the toolkit and the architectures."""
    toolkit = gpu.find_toolkit()
    console.print(f"bof4 build: CUDA {toolkit.version} ({toolkit.nvcc})")
    if architectures:
        chosen = gpu.parse_architectures(architectures)
    else:
        chosen = gpu.default_architectures(toolkit)
        why = "this machine's" if gpu.gpu_architectures() else "no GPU here, so those of llama.cpp's releases"
        console.print(f"bof4 build: architectures {', '.join(chosen)} ({why}; --cuda-architectures chooses others)")
    return gpu.cmake_arguments(chosen, flash_attention is not False)


def _vulkan_arguments(console: Console, headers: Path | None, glslc: Path | None) -> tuple[str, ...]:
    """CMake's arguments of a Vulkan build; prints the versions of headers and glslc."""
    toolkit = vulkan_build.find_toolkit(headers, glslc)
    console.print(f"bof4 build: Vulkan headers {toolkit.headers_version}, {toolkit.glslc_version} ({toolkit.glslc})")
    return vulkan_build.cmake_arguments(headers, glslc)


def _bin_of(cmake_args: tuple[str, ...], not_built: str) -> Path:
    """The folder of programs of the build with these arguments.

    Raises:
        NotBuiltError: it is not built, with this message.
    """
    build = building.build_of(cmake_args)
    if not build.targets() >= set(_programs(cmake_args)):
        raise building.NotBuiltError(not_built)
    return build.bin


def _cuda_bin(architectures: str, flash_attention: bool | None) -> Path:
    """The folder of programs of the CUDA build with these options; without options of the one made last.

    Raises:
        NotBuiltError: it is not built.
    """
    arguments = building.chosen_arguments()
    if architectures or flash_attention is not None or not gpu.wanted(arguments):
        chosen = gpu.parse_architectures(architectures) if architectures else None
        arguments = gpu.cmake_arguments(
            chosen or gpu.default_architectures(gpu.find_toolkit()), flash_attention is not False
        )
    return _bin_of(arguments, "there is no CUDA build with these options yet: run `bof4 build --cuda` with them")


def _vulkan_bin(headers: Path | None, glslc: Path | None) -> Path:
    """The folder of programs of the Vulkan build with these options; without options of the one made last.

    Raises:
        NotBuiltError: it is not built.
    """
    arguments = building.chosen_arguments()
    if headers or glslc or not vulkan_build.wanted(arguments):
        arguments = vulkan_build.cmake_arguments(headers, glslc)
    return _bin_of(arguments, "there is no Vulkan build with these options yet: run `bof4 build --vulkan` with them")


def _portable_bin() -> Path:
    """The folder of programs of the portable build.

    Raises:
        NotBuiltError: it is not built.
    """
    arguments = portable_build.cmake_arguments()
    return _bin_of(arguments, "there is no portable build yet: run `bof4 build --portable`")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(build)
