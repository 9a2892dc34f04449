"""Instructions of the plain kernels for a weight, beside those of llama.cpp's types with the same activations.

And of the kernels of repacked weights on NEON, beside those of llama.cpp's repacked IQ4_NL.

Counted, not timed: by valgrind, by qemu for other processors, and by single steps for what valgrind does not know. The
counts are printed (pytest -s) and stand in bench/NOTES.md.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from c_programs import compile_program
from instruction_sets import OUR_INCLUDES, Target, toolchain

from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.build import source_tree

NATIVE = Path(__file__).parent / "sources"
FORBIDDEN = 77

PAIRS = {"BOF4_S": "IQ4_NL", "BOF4_K": "Q4_K"}
"""Each of ours and the type that has its activations: Q8_0, and Q8_K."""

AVX2 = Target("avx2", "x86_64", ("-march=x86-64-v3",), frozenset({"avx2", "fma", "f16c", "bmi2"}))
TARGETS = (
    Target("portable", "x86_64", ("-march=x86-64",)),
    AVX2,
    Target(
        "avx512-vnni",
        "x86_64",
        ("-march=x86-64-v4", "-mavx512vnni", "-mavx512vbmi"),
        frozenset({"avx512bw", "avx512vl", "avx512_vnni", "avx512vbmi"}),
    ),
    Target("neon", "aarch64", ("-march=armv8-a",)),
    Target("neon-dotprod", "aarch64", ("-march=armv8.2-a+dotprod+fp16",)),
)

LIMITS = {("avx2", "BOF4_S"): 0.80, ("avx2", "BOF4_K"): 1.15, ("avx512-vnni", "BOF4_S"): 0.70,
          ("avx512-vnni", "BOF4_K"): 0.65, ("neon-dotprod", "BOF4_S"): 1.00,
          ("portable", "BOF4_K"): 1.45, ("neon", "BOF4_K"): 0.70, ("neon-dotprod", "BOF4_K"): 1.05}  # fmt: skip
"""Ratios that no change may lose again, some percent above what they were: compilers differ. (BOF4_K on AVX2 had 1.06
before its sums had the order of the kernels of repacked weights.)"""

SHORT, LONG = 2048, 4096
Counter = Callable[[Path, str, int], int]

REPACKED = (
    TARGETS[-1],
    Target("neon-i8mm", "aarch64", ("-march=armv8.2-a+dotprod+fp16+i8mm",)),
)
REPACKED_LIMIT = 1.05
"""Of upstream's instructions for the same product: it repacks IQ4_NL in one way for all of NEON."""
ROWS, WEIGHTS = 64, 512
COLUMNS = {"GEMV": 1, "GEMM": 32}


@dataclass(frozen=True)
class Program:
    """A program to count the instructions of.

    Attributes:
        main: below tests/native.
        ours: sources in ggml_patch/src.
        theirs: sources in ggml/src/ggml-cpu.
    """

    language: str
    standard: str
    main: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


PLAIN = Program(
    "gcc", "gnu11", "count_vec_dot.c", ("cpu/bof4-vec-dot-s.c", "cpu/bof4-vec-dot-k.c", "format/bof4-quants.c"),
    ("quants.c", "arch/{architecture}/quants.c"),
)  # fmt: skip
REPACKING = Program(
    "g++", "gnu++17", "count_gemm.cpp",
    ("cpu/bof4-repack-layout.cpp", "cpu/bof4-gemm.cpp"),
    ("arch/{architecture}/repack.cpp",),
)  # fmt: skip


def compile_counter(target: Target, source: Program, program: Path) -> list[str]:
    """Compile the program; returns what must stand in front of it."""
    compiler, emulator = toolchain(target, source.language)
    cpu = source_tree() / "ggml/src/ggml-cpu"
    architecture = {"x86_64": "x86", "aarch64": "arm"}[target.machine]
    compile_program(
        compiler, f"-std={source.standard}", "-O3", "-DNDEBUG", *target.flags, "-static",
        # upstream's kernels come with much that is not called, and that wants the rest of ggml
        "-ffunction-sections", "-Wl,--gc-sections",
        "-isystem", cpu.parents[1] / "include", "-isystem", cpu.parent, "-isystem", cpu, *OUR_INCLUDES,
        NATIVE / source.main, *(SOURCES / name for name in source.ours),
        *(cpu / name.format(architecture=architecture) for name in source.theirs), "-lm", "-o", program,
    )  # fmt: skip
    return emulator


def per_weight(count: Counter, program: Path, name: str) -> float:
    """Instructions of a kernel for a weight, without what a call costs once."""
    return (count(program, name, LONG) - count(program, name, SHORT)) / (LONG - SHORT)


def by_callgrind(program: Path, name: str, n: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, name, str(n)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = re.search(r"Collected : (\d+)", result.stderr)
    assert found, result.stderr
    return int(found[1])


def by_steps(program: Path, name: str, n: int) -> int:
    result = subprocess.run([program, name, str(n), "step"], capture_output=True, text=True, check=False)
    if result.returncode == FORBIDDEN:
        pytest.skip("this system forbids a process to step another")
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def by_qemu(program: Path, name: str, n: int) -> int:
    log = program.with_suffix(".log")
    command = ["qemu-aarch64", "-singlestep", "-d", "nochain,exec", "-D", log, program, name, str(n)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return sum(line.startswith("Trace") for line in log.open())


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_plain_kernels_take_few_instructions(target: Target, tmp_path: Path) -> None:
    program = tmp_path / "count_vec_dot"
    emulated = compile_counter(target, PLAIN, program)
    counts = {
        name: per_weight(by_qemu if emulated else by_steps, program, name) for pair in PAIRS.items() for name in pair
    }
    print(f"\n{target.name}: " + ", ".join(f"{name} {count:.3f}" for name, count in counts.items()))
    for ours, theirs in PAIRS.items():
        assert 0.05 < counts[ours] < 20
        assert counts[ours] <= LIMITS.get((target.name, ours), 10) * counts[theirs]


@pytest.mark.skipif(platform.machine() != AVX2.machine, reason="valgrind is used for x86 here")
@pytest.mark.parametrize("target", TARGETS[:2], ids=lambda t: t.name)
def test_valgrind_counts_what_single_steps_count(target: Target, tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is missing: `apt install valgrind` to run this")
    program = tmp_path / "count_vec_dot"
    compile_counter(target, PLAIN, program)
    for name in ("BOF4_S", "BOF4_K", "IQ4_NL", "Q4_K"):
        # valgrind sees the whole process, in which numbers are parsed, too
        assert per_weight(by_callgrind, program, name) == pytest.approx(per_weight(by_steps, program, name), abs=0.005)


@pytest.mark.parametrize("target", REPACKED, ids=lambda t: t.name)
def test_repacked_kernels_take_few_instructions(target: Target, tmp_path: Path) -> None:
    program = tmp_path / "count_gemm"
    if not compile_counter(target, REPACKING, program):
        pytest.skip("counted under qemu, which this processor does without")
    counts = {
        name: {
            kind: (by_qemu(program, name, columns) - by_qemu(program, name, 0)) / (ROWS * WEIGHTS * columns)
            for kind, columns in COLUMNS.items()
        }
        for name in (*PAIRS, "IQ4_NL")
    }
    print(f"\n{target.name}, {ROWS} x {WEIGHTS}, instructions for a product; over IQ4_NL")
    for name, of_kind in counts.items():
        row = (f"{kind} {count:.4f} {count / counts['IQ4_NL'][kind]:.2f}" for kind, count in of_kind.items())
        print(f"{name:8}" + "   ".join(row))
    for name in PAIRS:
        for kind, count in counts[name].items():
            assert 0.01 < count <= REPACKED_LIMIT * counts["IQ4_NL"][kind], (name, kind)
