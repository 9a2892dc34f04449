"""The portable build, with some variants of the CPU backend that this processor can run."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

from tiny_models import write_llama

from gguf_bof4.convert import convert
from gguf_bof4.ggml_patch import portable
from gguf_bof4.ggml_patch.build import PROGRAMS, Build, NotBuiltError, build, source_tree

BASE = {"x86_64": "x64", "aarch64": "armv8.0_1"}
"""The variant without any feature."""

CPUINFO = {
    "x86_64": {
        "SSE42": "sse4_2", "AVX": "avx", "F16C": "f16c", "FMA": "fma", "AVX2": "avx2", "BMI2": "bmi2",
        "AVX_VNNI": "avx_vnni", "AVX512": "avx512f avx512cd avx512vl avx512dq avx512bw", "AVX512_VBMI": "avx512vbmi",
        "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16", "AMX_TILE": "amx_tile", "AMX_INT8": "amx_int8",
    },
    "aarch64": {
        "DOTPROD": "asimddp", "FP16_VECTOR_ARITHMETIC": "fphp asimdhp", "SVE": "sve", "MATMUL_INT8": "i8mm",
        "SVE2": "sve2", "SME": "sme",
    },
}  # fmt: skip
"""Features of variants as upstream's CMake names them, and as /proc/cpuinfo does."""

ALL = os.environ.get("BOF4_VARIANTS") == "all"
"""Build every variant of the architecture, as `make wheel` does, and run those that this processor can."""


def runnable_variants() -> dict[str, frozenset[str]]:
    """Variants that this processor can run, in upstream's order, with their features; none where nothing is built."""
    machine = platform.machine()
    try:
        text = (source_tree() / "ggml/src/CMakeLists.txt").read_text()
    except NotBuiltError:
        return {}
    known = CPUINFO.get(machine, {})
    here = set(Path("/proc/cpuinfo").read_text().split())
    found = {}
    for name, words in re.findall(r"ggml_add_cpu_backend_variant\((\S+)([^)\n]*)\)", text):
        features = words.split()
        is_of_machine = name == BASE.get(machine) or (features and set(features) <= known.keys())
        if is_of_machine and all(set(known[f].split()) <= here for f in features):
            found[name] = frozenset(features)
    return found


def variants_to_run() -> dict[str, frozenset[str]]:
    """Variants that tests run: of those that this processor can all, or the first two and the one with most features,
    as each takes a minute to compile."""
    found = runnable_variants()
    if ALL:
        return found
    chosen = {*list(found)[:2], *([max(found, key=lambda name: len(found[name]))] if found else [])}
    return {name: features for name, features in found.items() if name in chosen}


def built_variants() -> tuple[str, ...]:
    """Those that tests build; none: all of the architecture."""
    return () if ALL else tuple(variants_to_run())


def portable_build() -> Build:
    """The build; made where it is missing."""
    return build(PROGRAMS, portable.cmake_arguments(built_variants()))


def convert_listed(folder: Path) -> Path:
    """A small random model in BOF4_S with outlier lists, as `bof4 convert` writes it."""
    source, target = write_llama(folder / "f32.gguf"), folder / "listed.gguf"
    assert any(tensor.outliers for tensor in convert(source, target, type="BOF4_S").tensors)
    return target


def only_with(variant: str, build_bin: Path, target: Path) -> Path:
    """A copy of the folder of programs with one variant of the CPU backend.

    Copies, as programs look for variants beside the file that they are.
    """
    target.mkdir()
    for path in build_bin.iterdir():
        of_variant = path.name.startswith("libggml-cpu-")
        if path.is_file() and (not of_variant or path.stem == f"libggml-cpu-{variant}"):
            shutil.copy2(path, target)
    shutil.copy2(build_bin.parent / "CMakeCache.txt", target.parent)
    return target
