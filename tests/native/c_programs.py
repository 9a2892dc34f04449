"""C and C++ programs of the tests: compiled, linked with the built libraries, run."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from instruction_sets import OUR_INCLUDES, native_compiler

from gguf_bof4.ggml_patch.build import source_tree

PROGRAMS = Path(__file__).parent / "sources"
"""The programs' sources."""

STRICT = ("-Wall", "-Wextra", "-Werror")


def upstream_includes(*folders: str) -> list[str]:
    """Folders of upstream's headers, below ggml/; as system headers, whose warnings are not shown."""
    return [part for folder in folders for part in ("-isystem", str(source_tree() / "ggml" / folder))]


def _run_compiler(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def compile_program(compiler: str | Path, *arguments: str | Path) -> None:
    """Run a compiler; its errors fail the test.

    Several sources are compiled at the same time, and by ccache where there is one: the kernels take half a minute for
    each set of instructions.

    Args:
        arguments: those of one command that compiles and links.
    """
    cache = [found] if (found := shutil.which("ccache")) else []
    at = arguments.index("-o")
    options, program = [*arguments[:at], *arguments[at + 2 :]], arguments[at + 1]
    sources = [Path(a) for a in options if Path(a).suffix in {".c", ".cpp"}]
    if "-c" in options or len(sources) < 2:
        _run_compiler(*cache, compiler, *arguments)
        return
    objects = [Path(f"{program}.{i}.{source.stem}.o") for i, source in enumerate(sources)]
    flags = [a for a in options if Path(a) not in sources and not str(a).startswith(("-l", "-L", "-Wl,"))]
    flags = [a for a in flags if Path(a).suffix != ".o" and a != "-static"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = [
            pool.submit(_run_compiler, *cache, compiler, *flags, "-c", source, "-o", target)
            for source, target in zip(sources, objects, strict=True)
        ]
    for each in made:
        each.result()
    rest = [a for a in options if Path(a) not in sources]
    _run_compiler(compiler, *objects, *rest, "-o", program)


def link_with_build(source: str, built: Path, target: Path) -> Path:
    """Compile a C++ program of PROGRAMS that uses ggml's public functions and ours.

    Args:
        built: the folder of the built libraries.
    """
    compile_program(
        native_compiler("g++"), "-std=c++17", "-O2", *STRICT, *upstream_includes("include"), *OUR_INCLUDES,
        PROGRAMS / source, f"-L{built}", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{built}", "-o", target,
    )  # fmt: skip
    return target


def run_program(program: Path, *arguments: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; an abort starts no debugger."""
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=timeout,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )  # fmt: skip
