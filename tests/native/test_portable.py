"""The portable build: each variant of the CPU backend computes what the build for this processor does.

Of those that this processor can run, the first two and the one with the most features; with BOF4_VARIANTS=all every
one, and AArch64's are cross-compiled and run under qemu.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from instruction_sets import Target, toolchain
from llama import THREADS
from portable_build import ALL, convert_listed, only_with, variants_to_run
from program import bof4
from tiny_models import write_llama

from gguf_bof4 import native
from gguf_bof4.ggml_patch.build import PROGRAMS, Build, build, installed_bin
from gguf_bof4.ggml_patch.portable import cmake_arguments

VARIANTS = variants_to_run()

MEAN_DIVERGENCE = 0.02
"""Most between two instruction sets. Sums that are rounded in another order make some int8 activations round the other
way, and that propagates as noise of their rounding: 0.003 was measured between x64 or sse42 and AVX2. A kernel that
takes wrong weights gives more than 1. Equal instruction sets have equal bits, which another test demands."""

BITS = """
import hashlib
import gguf, numpy as np
from gguf_bof4 import FORMATS, native

rng = np.random.default_rng(0)
weights = rng.standard_t(3, (48, 512)).astype(np.float32)
activations = rng.normal(size=(9, 512)).astype(np.float32)
outliers = native.select_outliers(weights, 0.95)
order, feedback = np.arange(512, dtype=np.int32), np.triu(rng.normal(size=(512, 512)), 1).astype(np.float32) / 512
panels = np.ascontiguousarray(feedback.reshape(512, 8, 64).transpose(1, 0, 2))
digest = hashlib.sha256()
for fmt in FORMATS:
    qtype = gguf.GGMLQuantizationType(fmt.type_id)
    results = [native.gptq(weights, qtype, order, panels, np.ones(512, np.float32), outliers=outliers)[0]]
    for encoder in native.BlockEncoder:
        encoded = native.quantize(weights, qtype, encoder=encoder, outliers=outliers)
        results += [encoded, native.dequantize(encoded, qtype)]
        results += [np.float32(native.vec_dot(encoded[0], qtype, activations[0]))]
        results += [native.mul_mat(encoded, qtype, activations[:n], outliers=outliers) for n in (1, 9)]
    for result in results:
        digest.update(result.tobytes())
print(native.instruction_set(), digest.hexdigest())
"""
"""Prints a digest of all that the native library computes."""

LOADED = re.compile(r"loaded CPU backend from .*libggml-cpu-(\S+)\.so")


def run(program: Path, *arguments: str | Path) -> str:
    """Both streams of a program that must not fail."""
    done = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=300,
    )  # fmt: skip
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-2000:]
    return output


def logits(programs: Path, model: Path, text: Path, target: Path) -> bytes:
    """Log-probabilities of every token after each of 64 tokens, as llama-perplexity keeps them in `target`."""
    run(programs / "llama-perplexity", "-m", model, "-f", text, "-c", "32", "--chunks", "2", *THREADS,
        "--save-all-logits", target)  # fmt: skip
    return target.read_bytes()


def mean_divergence(programs: Path, model: Path, text: Path, base: Path) -> float:
    output = run(programs / "llama-perplexity", "-m", model, "-f", text, "-c", "32", "--chunks", "2", *THREADS,
                 "--kl-divergence-base", base, "--kl-divergence")  # fmt: skip
    # its statistics in the end are for 100 tokens or more; the line of the last chunk has the mean of all
    # (equal models have the error nan)
    found = re.search(r"^ +2(?: +-?[\d.]+ ± +(?:[\d.]+|-?nan)){2} +(-?[\d.]+) ±", output, re.MULTILINE)
    assert found, output[-2000:]
    return float(found[1])


@pytest.fixture(scope="module")
def single(portable: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of programs with one variant each."""
    folder = tmp_path_factory.mktemp("variants")
    return {name: only_with(name, portable.bin, folder / name) for name in VARIANTS}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("text") / "text.txt"
    target.write_text("The river rises in the hills north of the town and reaches the sea after forty miles. " * 8)
    return target


@pytest.fixture(scope="module")
def of_native_build(smol_listed: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log-probabilities by the build for this processor."""
    target = tmp_path_factory.mktemp("logits") / "native.dat"
    logits(installed_bin(), smol_listed, text, target)
    return target


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in BOF4_S with lists."""
    return convert_listed(tmp_path_factory.mktemp("listed"))


def test_the_variant_with_the_most_features_is_loaded(portable: Build, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "tiny.gguf")
    output = run(portable.bin / "llama-bench", "-m", model, "-p", "1", "-n", "0", *THREADS)
    found = LOADED.search(output)
    assert found, output
    assert len(VARIANTS[found[1]]) == max(map(len, VARIANTS.values()))


def test_programs_need_nothing_but_the_c_library_and_openmp(portable: Build) -> None:
    """No libstdc++ of the machine, no links between files, no library from the current folder."""
    readelf, ours = Path(shutil.which("readelf") or "readelf"), {path.name for path in portable.bin.iterdir()}
    for path in portable.bin.iterdir():
        if path.name in PROGRAMS or ".so" in path.name:
            assert not path.is_symlink()
            dynamic = run(readelf, "-d", path)
            for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic):
                assert name in ours or re.match(r"(libc|libm|libdl|libpthread|libgcc_s|libgomp|ld-linux.*)\.so", name)
            assert re.findall(r"R(?:UN)?PATH.*\[(.*)\]", dynamic) in ([], ["$ORIGIN"])
            assert "arc4random@GLIBC" not in run(readelf, "--dyn-syms", "--wide", path)  # needs glibc 2.36


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_computes_what_the_build_for_this_processor_does(
    variant: str, single: dict[str, Path], smol_listed: Path, text: Path, of_native_build: Path
) -> None:
    assert mean_divergence(single[variant], smol_listed, text, of_native_build) < MEAN_DIVERGENCE


def test_the_loaded_variant_has_the_bits_of_the_build_for_this_processor(
    portable: Build, smol_listed: Path, text: Path, of_native_build: Path, tmp_path: Path
) -> None:
    assert logits(portable.bin, smol_listed, text, tmp_path / "portable.dat") == of_native_build.read_bytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_python_computes_with_a_variant(variant: str, single: dict[str, Path], listed: Path) -> None:
    """libbof4 loads the variant beside it: products against float64, and blocks against numpy."""
    checked = bof4("verify", str(listed), BOF4_BIN=str(single[variant]))
    assert checked.returncode == 0, checked.stderr


def test_python_has_the_same_bits_by_both_builds(portable: Build, tmp_path: Path) -> None:
    """Encoders, the core of gptq, products with lists, and the instruction set that benches show."""
    of_native, of_portable = (
        subprocess.run(
            [sys.executable, "-c", BITS],
            capture_output=True, text=True, check=True, env={**os.environ, "BOF4_BIN": str(folder)},
        ).stdout.split()
        for folder in (installed_bin(), portable.bin)
    )  # fmt: skip
    assert of_portable == of_native
    assert of_native[0] == native.instruction_set()


def test_without_a_variant_for_this_processor_the_library_says_so(
    single: dict[str, Path], listed: Path, tmp_path: Path
) -> None:
    first, empty = next(iter(VARIANTS)), tmp_path / "empty"
    shutil.copytree(single[first], empty / "bin")
    shutil.copy2(single[first].parent / "CMakeCache.txt", empty)
    (empty / "bin" / f"libggml-cpu-{first}.so").unlink()
    failed = bof4("verify", str(listed), BOF4_BIN=str(empty / "bin"))
    assert failed.returncode == 1
    assert "no CPU backend of ggml was found beside this library" in failed.stderr


def knows(compiler: str, option: str) -> bool:
    command = [compiler, option, "-x", "c++", "-c", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not ALL, reason="takes minutes: `make test-nightly` runs it, or BOF4_VARIANTS=all")
@pytest.mark.skipif(platform.machine() == "aarch64", reason="the other tests run AArch64's variants here")
def test_variants_for_aarch64_are_cross_compiled_and_one_runs_under_an_emulator(
    smol_listed: Path, text: Path, of_native_build: Path, tmp_path: Path
) -> None:
    compiler, emulator = toolchain(Target("aarch64", "aarch64", ()), "g++")
    made = build(("llama-perplexity",), cmake_arguments(machine="aarch64"))
    variants = {"armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.2_3", "armv8.6_1", "armv8.6_2"}
    if knows(compiler, "-march=armv9.2-a+sme"):  # GCC from 14 on; others leave these variants out
        variants |= {"armv9.2_1", "armv9.2_2"}
    assert {path.stem.removeprefix("libggml-cpu-") for path in made.bin.glob("libggml-cpu-*.so")} == variants

    emulated = tmp_path / "llama-perplexity"
    command = shlex.join([emulator[0], "-cpu", "max", *emulator[1:], str(made.bin / "llama-perplexity")])
    emulated.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    emulated.chmod(0o755)
    assert mean_divergence(tmp_path, smol_listed, text, of_native_build) < MEAN_DIVERGENCE
    tiny = write_llama(tmp_path / "tiny.gguf")
    found = LOADED.search(run(emulated, "-m", tiny, "-f", text, "-c", "32", "--chunks", "2", "-v", *THREADS))
    assert found and found[1] in variants - {"armv8.0_1"}
