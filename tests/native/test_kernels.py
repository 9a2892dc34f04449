"""vec_dot of every instruction set, compiled one by one and run: here, or under qemu-user."""

import platform
import subprocess
from pathlib import Path

import pytest
from c_programs import compile_program
from instruction_sets import OUR_INCLUDES, Target, toolchain

from gguf_bof4.formats import FORMATS
from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.build import source_tree

NATIVE = Path(__file__).parent / "sources"


TARGETS = (
    Target("portable", "x86_64", ("-mno-sse4.1",)),
    Target("avx2", "x86_64", ("-mavx2", "-mfma", "-mf16c"), frozenset({"avx2", "fma", "f16c"})),
    Target(
        "avx512-vnni",
        "x86_64",
        ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"),
        frozenset({"avx512bw", "avx512vl", "avx512_vnni"}),
    ),
    Target("neon", "aarch64", ("-march=armv8-a",)),
    Target("neon-dotprod", "aarch64", ("-march=armv8.2-a+dotprod+fp16",)),
)


def compile_check(target: Target, compiler: str, extra: list[str], program: Path) -> None:
    tree = source_tree() / "ggml"
    sources = [*sorted((SOURCES / "cpu").glob("bof4-vec-dot-*.c")), SOURCES / "format/bof4-quants.c"]
    compile_program(
        compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", *target.flags, *extra,
        # upstream's headers are not ours to warn about
        "-isystem", str(tree / "include"), "-isystem", str(tree / "src"), "-isystem", str(tree / "src/ggml-cpu"),
        *OUR_INCLUDES, str(NATIVE / "check_vec_dot.c"),
        *map(str, sources), "-lm", "-o", str(program),
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_products_equal_float64(target: Target, tmp_path: Path) -> None:
    compiler, emulator = toolchain(target, "gcc")
    program = tmp_path / "check_vec_dot"
    compile_check(target, compiler, ["-O3"], program)
    run = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("1280 products") == len(FORMATS), run.stdout


@pytest.mark.parametrize("target", [t for t in TARGETS if t.machine == platform.machine()], ids=lambda t: t.name)
def test_kernels_stay_inside_their_rows(target: Target, tmp_path: Path) -> None:
    compiler, _ = toolchain(target, "gcc")
    program = tmp_path / "check_vec_dot"
    compile_check(target, compiler, ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"], program)
    run = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
