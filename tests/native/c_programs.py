"""C and C++ programs of the tests: compiled, linked with the built libraries, run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from instruction_sets import OUR_INCLUDES, native_compiler

from gguf_bof4.ggml_patch.build import source_tree

PROGRAMS = Path(__file__).parent / "sources"
"""The programs' sources."""

STRICT = ("-Wall", "-Wextra", "-Werror")


def upstream_includes(*folders: str) -> list[str]:
    """Folders of upstream's headers, below ggml/; as system headers, whose warnings are not shown."""
    return [part for folder in folders for part in ("-isystem", str(source_tree() / "ggml" / folder))]


def compile_program(compiler: str | Path, *arguments: str | Path) -> None:
    """Run a compiler; its errors fail the test."""
    result = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


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
