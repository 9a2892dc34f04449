"""The GEMM path on AMX tiles.

Run on the processor where it has AMX, and everywhere on two substitutes: tile operations in portable C++, and the
instructions of AMX emulated (tests/native/sources/amx_on_host.cpp). Vectors are those of AVX2 then.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_programs import PROGRAMS, STRICT, compile_program, link_with_build, run_program, upstream_includes
from instruction_sets import OUR_INCLUDES, Target, native_compiler
from test_repack import AVX512, HAS_AVX512, compile_check

from gguf_bof4.ggml_patch import SOURCES

AVX2 = Target("avx2", "x86_64", ("-mavx2", "-mfma", "-mf16c"), frozenset({"avx2", "fma", "f16c"}))
AMX = Target(
    "amx", "x86_64", (*AVX512, "-mavx512vbmi"), HAS_AVX512 | {"avx512vbmi", "amx_tile", "amx_int8"}
)  # fmt: skip
EMULATION = PROGRAMS / "amx_on_host.cpp"
PORTABLE, EMULATED = "bof4_tiles_portable", "bof4_tiles_amx"
KERNELS = (SOURCES / "cpu/bof4-gemm.cpp", SOURCES / "cpu/bof4-repack-layout.cpp")

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is an extension of x86-64")


def require_emulation() -> None:
    if "amx_tile" in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has AMX: its own instructions are tested")


def check_products(program: Path) -> None:
    run = run_program(program)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.findall(r"^(\w+): 261 shapes.*: ok$", run.stdout, re.MULTILINE)
    assert passed == ["BOF4_S", "BOF4_K", "Q6_K"]


@pytest.mark.parametrize("tiles", [PORTABLE, EMULATED])
def test_tile_operations_are_what_the_processor_defines(tiles: str, tmp_path: Path) -> None:
    program = tmp_path / "check_tiles"
    if tiles == EMULATED:
        require_emulation()
    compile_program(
        native_compiler("g++"), "-std=c++17", "-O2", *STRICT, *OUR_INCLUDES, f"-DBOF4_GEMM_TWIN={tiles}",
        PROGRAMS / "check_tiles.cpp", EMULATION, "-o", program,
    )  # fmt: skip
    run = run_program(program)
    assert (run.returncode, run.stdout) == (0, "ok\n"), run.stdout + run.stderr


def test_products_with_emulated_instructions(tmp_path: Path) -> None:
    require_emulation()
    compile_check(AVX2, ["-O1", f"-DBOF4_GEMM_TWIN={EMULATED}"], tmp_path / "check_gemm", EMULATION)
    check_products(tmp_path / "check_gemm")


def test_products_on_the_processor_itself(tmp_path: Path) -> None:
    compile_check(AMX, ["-O3"], tmp_path / "check_gemm")
    check_products(tmp_path / "check_gemm")


def test_products_with_portable_tiles_stay_inside_their_memory(tmp_path: Path) -> None:
    sanitized = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover", f"-DBOF4_GEMM_TWIN={PORTABLE}"]
    compile_check(AVX2, sanitized, tmp_path / "check_gemm")
    check_products(tmp_path / "check_gemm")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that gives any program kernels with portable tiles: loaded first, it replaces those of the build."""
    library = tmp_path_factory.mktemp("twin") / "libtwin.so"
    compile_program(
        native_compiler("g++"), "-std=c++17", "-O3", "-fPIC", "-shared", *STRICT, *AVX2.flags,
        *upstream_includes("include", "src", "src/ggml-cpu"), *OUR_INCLUDES, f"-DBOF4_GEMM_TWIN={PORTABLE}",
        *KERNELS, "-o", library,
    )  # fmt: skip
    return library


def with_library(library: Path, *command: str | Path) -> str:
    """Run a program to its end with a library loaded first; returns its output."""
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout + run.stderr


def test_operations_give_the_results_of_rows(built: Path, twin: Path, tmp_path: Path) -> None:
    """mul_mat in batches and mul_mat_id of the built ggml, with lists and without, with kernels of the twin."""
    program = link_with_build("check_repack.cpp", built, tmp_path / "check_repack")
    output = with_library(twin, program, "tiles")
    print(output)
    found = re.findall(r"^(.*): (\d+) cases, .*: ok$", output, re.MULTILINE)
    # more cases than without Q6_K
    assert found == [("mul_mat", "225"), ("mul_mat in batches", "90"), ("mul_mat_id", "180")]


def functions(listing: str) -> Iterator[tuple[str, list[str]]]:
    """Names and mnemonics of the functions in the output of objdump."""
    for part in re.split(r"\n\n+", listing):
        head, *lines = part.splitlines()
        if name := re.match(r"^[0-9a-f]+ <(.*)>:$", head):
            yield name[1], [line.split("\t")[1].split()[0] for line in lines if line.count("\t") >= 1]


def test_instructions_of_the_compiled_kernels(tmp_path: Path) -> None:
    """Compiles without warnings for AVX-512 VNNI, and takes as many instructions as the roofline counts."""
    compiled = tmp_path / "bof4-gemm.o"
    compile_program(
        native_compiler("g++"), "-std=c++17", "-O3", "-DNDEBUG", *STRICT, *AMX.flags,
        *upstream_includes("include", "src", "src/ggml-cpu"), *OUR_INCLUDES, "-c", KERNELS[0], "-o", compiled,
    )  # fmt: skip
    listing = subprocess.run(
        ["objdump", "-dC", "--no-show-raw-insn", compiled], capture_output=True, text=True, check=True
    ).stdout
    counts = {name: Counter(mnemonics) for name, mnemonics in functions(listing)}

    def adding(count: Counter[str]) -> tuple[int, int]:
        return count["vcvtdq2ps"], sum(n for name, n in count.items() if name.startswith("vfmadd"))

    # two tiles of columns: for 64 weights in two parts, or of two groups, four loads and four products
    parts = next(c for name, c in counts.items() if "multiply_parts<2," in name)
    assert (parts["tileloadd"], parts["tdpbssd"], parts["tdpbsud"], parts["tilestored"]) == (4, 2, 2, 4)
    # and the results of a column in one loop
    assert adding(parts) == (1, 1)
    levels = next(c for name, c in counts.items() if "multiply_levels<2, 2," in name)
    assert (levels["tileloadd"], levels["tdpbssd"], levels["tilestored"]) == (4, 4, 4)
    # of a column, two blocks and two groups
    results = next(c for name, c in counts.items() if "level_results::add_to_sums<2>" in name)
    assert adding(results) == (4, 4)
    print(
        f"\nmultiply_parts<2>: {parts.total()} instructions, "
        f"multiply_levels<2, 2>: {levels.total()} and {results.total()}"
    )
    assert parts.total() <= 110
    assert levels.total() <= 90
    assert results.total() <= 60

    types = {"BOF4_S": ("levels", 176, 64, 0.08), "BOF4_K": ("parts", 177, 256, 0.26), "Q6_K": ("parts", 14, 256, 0.29)}
    for name, (form, number, block, limit) in types.items():
        count = next(c for f, c in counts.items() if f"unpack_{form}<(ggml_type){number}>" in f)
        per_weight = count.total() / (16 * block)
        print(f"unpacking {name}: {per_weight:.3f} instructions per weight")
        # two for 64 bytes
        assert count["vpmulhrsw"] == (0 if name == "BOF4_S" else 16 * block // 32)
        assert per_weight <= limit
