"""The CUDA kernels without a GPU: compiled by the C++ compiler, run on the CPU, compared with float64.

The threads of a block are coroutines (sources/cuda_on_host.h). Runs the kernels and the functions that ggml-cuda calls,
on ggml's own tensors. The tiled product runs with tensor core instructions computed in C++ (cuda_on_host/); upstream's
kernel around it and its own products do not run.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from instruction_sets import OUR_INCLUDES, native_compiler

from gguf_bof4.formats import FORMATS, Format, Kernels
from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.build import source_tree

NATIVE = Path(__file__).parent / "sources"
CUDA_FORMATS = tuple(fmt for fmt in FORMATS if Kernels.CUDA in fmt.kernels)
GROUPS = (
    "dequantize", "get_rows", "matrix-vector", "bias and gate", "experts", "outliers of many columns", "tiles",
    "tiled product",
)  # fmt: skip


@pytest.fixture(scope="module")
def program(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checks under AddressSanitizer; allocations have the exact size."""
    folder = tmp_path_factory.mktemp("cuda")
    compiler, ggml = native_compiler("g++"), source_tree() / "ggml"
    flags = ["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    includes = [
        # no warnings about upstream's headers
        "-isystem", ggml / "include", "-isystem", ggml / "src",
        f"-I{NATIVE / 'cuda_on_host'}", f"-I{NATIVE}", *OUR_INCLUDES,
    ]  # fmt: skip
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    sources = [NATIVE / "check_cuda.cpp", *sorted((SOURCES / "cuda").glob("*.cu"))]
    # these instantiate upstream's product only
    sources = [s for s in sources if not s.name.startswith("bof4-mmq-")]
    objects = [folder / f"{s.stem}.o" for s in sources]
    compilers = [
        subprocess.Popen(
            [compiler, *flags, *warnings, *includes, "-x", "c++", "-c", s, "-o", o],
            stderr=subprocess.PIPE, text=True,
        )
        for s, o in zip(sources, objects, strict=True)
    ]  # fmt: skip
    for running in compilers:
        _, errors = running.communicate()
        assert running.returncode == 0, errors
    target = folder / "check_cuda"
    subprocess.run(
        [compiler, *flags, *objects, f"-L{built}", "-lggml", "-lggml-base", f"-Wl,-rpath,{built}", "-o", target],
        check=True,
    )
    return target


def groups(program: Path, *arguments: object) -> dict[str, int]:
    """Number of cases per group; asserts that all are correct."""
    run = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300,
        env={"GGML_NO_BACKTRACE": "1"},
    )  # fmt: skip
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"^(.*): (\d+) cases, largest error \S+: ok$", run.stdout, re.MULTILINE)
    assert len(found) == len(run.stdout.splitlines())
    return {group: int(cases) for group, cases in found}


def test_kernels_equal_float64(program: Path) -> None:
    found = groups(program)
    assert list(found) == [f"{fmt.name.lower()} {group}" for fmt in CUDA_FORMATS for group in GROUPS]
    assert sum(found.values()) > 400


@pytest.mark.parametrize("fmt", CUDA_FORMATS, ids=lambda f: f.name)
def test_real_rows_decode_and_multiply_as_the_reference_does(
    fmt: Format, program: Path, smol: Path, tmp_path: Path
) -> None:
    names = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight")
    candidates = [t for t in gguf.GGUFReader(smol).tensors if t.name in names and t.shape[0] % fmt.block_size == 0]
    weight = min(candidates, key=lambda t: int(t.shape[0]))
    rows = np.asarray(weight.data, dtype=np.float32)[:48]
    qtype = gguf.GGMLQuantizationType(fmt.type_id)
    blocks = gguf.quantize(rows, qtype)
    blocks.tofile(tmp_path / "blocks")
    gguf.dequantize(blocks, qtype).astype(np.float32).tofile(tmp_path / "decoded")
    found = groups(program, fmt.name, rows.shape[1], tmp_path / "blocks", tmp_path / "decoded")
    assert list(found) == [
        "real rows, dequantized",
        "real rows, tiles",
        "real rows, products",
        "real rows, tiled product",
    ]
