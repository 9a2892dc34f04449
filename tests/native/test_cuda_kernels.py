"""The CUDA kernels without a GPU: compiled by the C++ compiler, run on the processor, compared with float64.

The threads of a block are coroutines (native/cuda_on_host.h). What runs are the kernels and the functions that
ggml-cuda calls, on ggml's own tensors; what does not is upstream's: its product on tensor cores, what it fuses.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from instruction_sets import OUR_INCLUDES, native_compiler

from gguf_bof4.formats import FORMATS, Format
from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.build import source_tree

NATIVE = Path(__file__).parent / "sources"
GROUPS = (
    "dequantize", "get_rows", "matrix-vector", "bias and gate", "experts", "outliers of many columns", "tiles",
)  # fmt: skip


@pytest.fixture(scope="module")
def program(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checks under AddressSanitizer: memory is as large as it is said to be, to the byte."""
    folder = tmp_path_factory.mktemp("cuda")
    compiler, ggml = native_compiler("g++"), source_tree() / "ggml"
    flags = ["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    includes = [
        # upstream's headers are not ours to warn about
        "-isystem", ggml / "include", "-isystem", ggml / "src",
        f"-I{NATIVE / 'cuda_on_host'}", f"-I{NATIVE}", *OUR_INCLUDES,
    ]  # fmt: skip
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    sources = [NATIVE / "check_cuda.cpp", *sorted((SOURCES / "cuda").glob("*.cu"))]
    # the two that hold nothing but upstream's product
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
    """Cases by group; all have to be right."""
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
    assert list(found) == [f"{fmt.name.lower()} {group}" for fmt in FORMATS for group in GROUPS]
    assert sum(found.values()) > 400


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_real_rows_decode_and_multiply_as_the_reference_does(
    fmt: Format, program: Path, smol: Path, tmp_path: Path
) -> None:
    name = {"BOF4_S": "blk.0.attn_q.weight", "BOF4_K": "blk.0.ffn_down.weight"}[fmt.name]
    weight = next(t for t in gguf.GGUFReader(smol).tensors if t.name == name)
    rows = np.asarray(weight.data, dtype=np.float32)[:48]
    qtype = gguf.GGMLQuantizationType(fmt.type_id)
    blocks = gguf.quantize(rows, qtype)
    blocks.tofile(tmp_path / "blocks")
    gguf.dequantize(blocks, qtype).astype(np.float32).tofile(tmp_path / "decoded")
    found = groups(program, fmt.name, rows.shape[1], tmp_path / "blocks", tmp_path / "decoded")
    assert list(found) == ["real rows, dequantized", "real rows, tiles", "real rows, products"]
