"""The products that bof4-bench-cuda times, on the CPU backend, where there is no GPU."""

from __future__ import annotations

from pathlib import Path

from c_programs import PROGRAMS, STRICT, compile_program, run_program, upstream_includes
from instruction_sets import OUR_INCLUDES, native_compiler

from gguf_bof4.ggml_patch import SOURCES


def test_graphs_of_all_types_and_of_mixtures_can_be_computed(built: Path, tmp_path: Path) -> None:
    program = tmp_path / "check"
    compile_program(
        native_compiler("g++"), "-std=c++17", "-O1", *STRICT, *upstream_includes("include", "src"), *OUR_INCLUDES,
        "-I", SOURCES, PROGRAMS / "check_bench_products.cpp", SOURCES / "bench/bench-products.cpp",
        f"-L{built}", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{built}", "-o", program,
    )  # fmt: skip
    done = run_program(program)
    assert done.returncode == 0, done.stdout + done.stderr
