"""Repacked weights: every instruction set's kernels, the buffer type through ggml, and whole models."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
from c_programs import compile_program
from instruction_sets import OUR_INCLUDES, Target, native_compiler, toolchain
from llama import THREADS, llama

from gguf_bof4.convert import convert
from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.build import source_tree

NATIVE = Path(__file__).parent / "sources"
NO_KERNELS = 77
WITHOUT_AMX = {**os.environ, "BOF4_AMX": "0"}
"""Products on AMX have the bits of the others except BOF4_S's: test_amx.py."""

AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c")
HAS_AVX512 = frozenset({"avx512bw", "avx512vl", "avx512_vnni"})
TARGETS = (
    Target("avx2", "x86_64", ("-mavx2", "-mfma", "-mf16c"), frozenset({"avx2", "fma", "f16c"})),
    Target(
        "avx-vnni", "x86_64", ("-mavx2", "-mfma", "-mf16c", "-mavxvnni"), frozenset({"avx2", "fma", "f16c", "avx_vnni"})
    ),
    Target("avx512-vnni", "x86_64", AVX512, HAS_AVX512),
    Target("avx512-vbmi", "x86_64", (*AVX512, "-mavx512vbmi"), HAS_AVX512 | {"avx512vbmi"}),
    Target("neon-dotprod", "aarch64", ("-march=armv8.2-a+dotprod+fp16",)),
    Target("neon-i8mm", "aarch64", ("-march=armv8.2-a+dotprod+fp16+i8mm",)),
)


def compile_check(target: Target, extra: list[str], program: Path, *sources: Path) -> list[str]:
    """Compile the check with all CPU kernels and more sources; returns the command in front of the program."""
    tree = source_tree() / "ggml"
    flags = [
        "-Wall", "-Wextra", "-Werror", *target.flags, *extra,
        # upstream's headers are not ours to warn about
        "-isystem", tree / "include", "-isystem", tree / "src", "-isystem", tree / "src/ggml-cpu", *OUR_INCLUDES,
    ]  # fmt: skip
    cc, _ = toolchain(target, "gcc")
    objects = []
    for name in ("cpu/bof4-vec-dot-s", "cpu/bof4-vec-dot-k", "format/bof4-quants"):
        objects.append(program.with_name(f"{Path(name).name}.o"))
        compile_program(cc, "-std=c11", *flags, "-c", SOURCES / f"{name}.c", "-o", objects[-1])
    cxx, emulator = toolchain(target, "g++")
    kernels = [SOURCES / "cpu/bof4-repack-layout.cpp", SOURCES / "cpu/bof4-gemm.cpp"]
    compile_program(cxx, "-std=c++17", *flags, NATIVE / "check_gemm.cpp", *kernels, *sources, *objects, "-o", program)
    return emulator


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_products_equal_float64(target: Target, tmp_path: Path) -> None:
    program = tmp_path / "check_gemm"
    emulator = compile_check(target, ["-O3"], program)
    run = subprocess.run([*emulator, program], capture_output=True, text=True, check=False, env=WITHOUT_AMX)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.findall(r"^(\w+): 261 shapes(, equal to the row kernel)?.*: ok$", run.stdout, re.MULTILINE)
    ours = [(name, ", equal to the row kernel") for name in ("BOF4_S", "BOF4_K")]
    assert passed == ours + [("Q6_K", "")] * ("vnni" in " ".join(target.flags))


@pytest.mark.parametrize("target", [t for t in TARGETS if t.machine == platform.machine()], ids=lambda t: t.name)
def test_kernels_stay_inside_their_memory(target: Target, tmp_path: Path) -> None:
    program = tmp_path / "check_gemm"
    compile_check(target, ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"], program)
    run = subprocess.run([program], capture_output=True, text=True, check=False, env=WITHOUT_AMX)
    assert run.returncode == 0, run.stdout + run.stderr


def test_repacked_weights_give_the_results_of_rows(built: Path, tmp_path: Path) -> None:
    program = tmp_path / "check_repack"
    compile_program(
        native_compiler("g++"), "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror",
        "-isystem", source_tree() / "ggml/include", *OUR_INCLUDES, NATIVE / "check_repack.cpp",
        f"-L{built}", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{built}", "-o", program,
    )  # fmt: skip
    run = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300, env=WITHOUT_AMX)
    print(run.stdout)
    if run.returncode == NO_KERNELS:
        pytest.skip("this processor has no kernels for repacked weights")
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.findall(r"^(.*): \d+ cases, .*: ok$", run.stdout, re.MULTILINE) == [
        "mul_mat", "mul_mat in batches", "mul_mat_id",
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["smol", "gemma"])
def test_perplexity_is_the_same_to_the_last_digit(
    model: str, request: pytest.FixtureRequest, built: Path, evaluation: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Rows of 256 times anything are in BOF4_K, the others in BOF4_S, and both have lists."""
    monkeypatch.setenv("BOF4_AMX", "0")
    target = tmp_path / "model.gguf"
    convert(request.getfixturevalue(model), target, type="BOF4_K", token_embedding_type="F16")

    def perplexities(*arguments: str) -> tuple[str, str]:
        """The buffer type of the weights, and the estimate after every chunk."""
        chosen = ("-f", evaluation, "-c", "512", "--chunks", "2", "-v", *THREADS, *arguments)
        result = llama("perplexity", "-m", target, *chosen)
        assert result.returncode == 0, result.stderr[-2000:]
        output = result.stdout + result.stderr
        found = re.search(r"^\[1\][\d.]+,\[2\][\d.]+,", output, re.MULTILINE)
        assert found, output[-2000:]
        return "CPU_BOF4" if "CPU_BOF4" in output else "CPU", found[0]

    where, repacked = perplexities()
    plainly, plain = perplexities("--no-repack")
    target.unlink()
    print(f"{model}: {repacked} in {where}, {plain} in {plainly}")
    assert plainly == "CPU"
    if where == "CPU":
        pytest.skip("this processor has no kernels for repacked weights")
    assert repacked == plain
