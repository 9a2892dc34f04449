"""bof4 build: fetch, patch and build llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gguf_bof4.ggml_patch import build as building
from gguf_bof4.ggml_patch import cuda as gpu
from gguf_bof4.ggml_patch.bundle import write_bundle
from gguf_bof4.progress import progress_bar


def build(
    print_bin: Annotated[
        bool,
        typer.Option("--print-bin", help="Only print the folder of the built programs (with --cuda: of that build)."),
    ] = False,
    tests: Annotated[bool, typer.Option("--tests", help="Build upstream's tests of the types, too.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Parallel compilers; 0: one a core.")] = 0,
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Build for NVIDIA GPUs, in a folder of its own; needs the CUDA toolkit.")
    ] = False,
    cuda_architectures: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What CMAKE_CUDA_ARCHITECTURES takes, e.g. 86,90. By default this machine's GPUs, and where there "
            "is none, those that llama.cpp's releases have: many, and slow to compile.",
            show_default=False,
        ),
    ] = "",
    flash_attention: Annotated[
        bool | None,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="With llama.cpp's FlashAttention kernels (GGML_CUDA_FA), most of the compile time, or without. "
            "Default: with.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tar.gz",
            help="Build nothing; write the patched source, to be built on a machine without network.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --bundle: overwrite the file.")] = False,
) -> None:
    """Fetch the pinned llama.cpp, patch it and build its programs, once; then it is found in the cache.

    bof4 uses the programs of the last `bof4 build`: after `bof4 build --cuda` those run on the GPU, after
    `bof4 build` on the CPU again.

    Set BOF4_CACHE to keep sources and builds elsewhere than in the user's cache folder, and BOF4_BIN to use
    the programs of a checkout that you patched (`bof4 patch`) and built yourself.
    """
    if not cuda and (cuda_architectures or flash_attention is not None):
        raise typer.BadParameter("--cuda-architectures and --flash-attention go with --cuda")
    if force and bundle is None:
        raise typer.BadParameter("--force goes with --bundle")
    console = Console(stderr=True)
    if bundle is not None:
        with progress_bar("checking the cache", steps_of="bof4 build") as report:
            size = write_bundle(bundle, force, report)
        console.print(f"bof4 build: {bundle} has {size / 1e6:.1f} MB; BUILD.txt inside says how to build it")
        return
    if print_bin:
        print(_cuda_bin(cuda_architectures, flash_attention) if cuda else building.installed_bin())
        return

    targets = building.PROGRAMS + (building.TESTS if tests else ()) + (gpu.TARGETS if cuda else ())
    cmake_args = _cuda_arguments(console, cuda_architectures, flash_attention) if cuda else ()
    with progress_bar("checking the cache", steps_of="bof4 build") as report:
        result = building.build(targets, cmake_args, jobs, report)
    building.choose(cmake_args)
    console.print("bof4 build: the programs are in")
    print(result.bin)


def _cuda_arguments(console: Console, architectures: str, flash_attention: bool | None) -> tuple[str, ...]:
    """CMake's arguments of a CUDA build, and a word on what was chosen."""
    toolkit = gpu.find_toolkit()
    console.print(f"bof4 build: CUDA {toolkit.version} ({toolkit.nvcc})")
    if architectures:
        chosen = gpu.parse_architectures(architectures)
    else:
        chosen = gpu.default_architectures(toolkit)
        why = "this machine's" if gpu.gpu_architectures() else "no GPU here, so those of llama.cpp's releases"
        console.print(f"bof4 build: architectures {', '.join(chosen)} ({why}; --cuda-architectures chooses others)")
    return gpu.cmake_arguments(chosen, flash_attention is not False)


def _cuda_bin(architectures: str, flash_attention: bool | None) -> Path:
    """Where the CUDA build with these options is; without options the one made last.

    Raises:
        NotBuiltError: it is not built.
    """
    arguments = building.chosen_arguments()
    if architectures or flash_attention is not None or not gpu.wanted(arguments):
        chosen = gpu.parse_architectures(architectures) if architectures else None
        arguments = gpu.cmake_arguments(
            chosen or gpu.default_architectures(gpu.find_toolkit()), flash_attention is not False
        )
    build = building.build_of(arguments)
    if not build.targets() >= {*building.PROGRAMS, *gpu.TARGETS}:
        raise building.NotBuiltError("there is no CUDA build with these options yet: run `bof4 build --cuda` with them")
    return build.bin


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(build)
