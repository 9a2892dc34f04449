"""Damaged files with outlier lists: llama.cpp's loader under AddressSanitizer, and the reader in Python."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from c_programs import compile_program
from gguf import GGMLQuantizationType as T
from gguf_writing import finish
from instruction_sets import OUR_INCLUDES, native_compiler
from listed import quantized

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import SOURCES
from gguf_bof4.ggml_patch.build import source_tree
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.lists import decode

NATIVE = Path(__file__).parent / "sources"
MUTANTS = 60_000

UPSTREAM = (
    *(f"ggml/src/{name}" for name in (
        "ggml.c", "ggml.cpp", "ggml-alloc.c", "ggml-backend.cpp", "ggml-backend-dl.cpp", "ggml-backend-meta.cpp",
        "ggml-backend-reg.cpp", "ggml-quants.c", "ggml-threading.cpp", "gguf.cpp",
    )),
    *(f"src/{name}" for name in (
        "llama-arch.cpp", "llama-hparams.cpp", "llama-impl.cpp", "llama-mmap.cpp", "llama-model-loader.cpp",
    )),
)  # fmt: skip
"""Upstream's sources that load a model, without the models' graphs."""

OWN = (
    "format/bof4-quants.c", "format/bof4-search.c", "llama/bof4-llama.cpp", "cpu/bof4-prefetch.cpp",
    *(f"lists/{path.name}" for path in sorted(SOURCES.glob("lists/*.c"))),
    *(f"gguf/{path.name}" for path in sorted(SOURCES.glob("gguf/*.cpp"))),
)  # fmt: skip

SHAPES = {
    "token_embd.weight": (33, 128),
    "blk.0.attn_q.weight": (7, 192),
    "blk.0.attn_k.weight": (1, 64),
    "blk.0.ffn_up_exps.weight": (3, 5, 64),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four weights with lists and a norm: small, for most mutations to hit something."""
    target = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(128)
    for name, shape in SHAPES.items():
        for part, (array, qtype) in quantized(name, rng.standard_t(3, shape).astype(np.float32)):
            writer.add_tensor(part, array, raw_dtype=qtype if qtype == T.BOF4_S else None)
    writer.add_tensor("output_norm.weight", np.ones(128, dtype=np.float32))
    finish(writer)
    return target


@pytest.fixture(scope="module", params=[("portable", ()), ("native", ("-march=native",))], ids=lambda param: param[0])
def program(built: Path, request: pytest.FixtureRequest) -> Path:
    """The loader compiled with sanitizers: a minute, so objects are kept in the build folder, by content."""
    tree = source_tree()
    folder = built.parent / "fuzz-lists"
    folder.mkdir(exist_ok=True)
    compilers = {".c": native_compiler("gcc"), ".cpp": native_compiler("g++")}
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.rglob("*.h")))
    includes = [*OUR_INCLUDES, "-isystem", str(built.parent / "ggml/src")]  # CMake writes a header there
    for upstream in ("include", "src", "ggml/include", "ggml/src", "ggml/src/ggml-cpu"):
        includes += ["-isystem", str(tree / upstream)]

    def compiled(source: Path, *flags: str) -> Path:
        options = [
            compilers[source.suffix], "-c", "-O1", "-g1", "-D_GNU_SOURCE",
            "-std=c++17" if source.suffix == ".cpp" else "-std=c11", *flags, *includes,
        ]  # fmt: skip
        digest = hashlib.sha256(source.read_bytes() + headers + repr(options).encode()).hexdigest()[:16]
        target = folder / f"{source.name}-{digest}.o"
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}")
            compile_program(*options, source, "-o", partial)
            partial.replace(target)
        return target

    strict = (
        *request.param[1],
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [
            *pool.map(lambda name: compiled(tree / name, "-fsanitize=address"), UPSTREAM),
            *pool.map(lambda name: compiled(SOURCES / name, *strict), OWN),
            compiled(NATIVE / "fuzz_lists.cpp", *strict),
        ]
    target = folder / f"fuzz-lists-{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        compile_program(
            compilers[".cpp"], "-fsanitize=address,undefined", *objects, "-ldl", "-lpthread", "-lm", "-o", partial
        )
        partial.replace(target)
    return target


def test_damaged_files_crash_neither_loader_nor_kernels(program: Path, model: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [program, model, tmp_path / "mutant.gguf", str(MUTANTS), "1"],
        # refusals name tensors, and the names of mutants are any bytes
        capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, f"{tmp_path / 'mutant.gguf'}:\n{run.stdout}{run.stderr[-4000:]}"
    reports = [line for line in run.stderr.splitlines() if "Sanitizer" in line or "runtime error" in line]
    assert reports == []
    print(run.stdout)
    counts = re.fullmatch(
        r"(\d+) mutants: (\d+) unreadable, (\d+) lists refused, (\d+) accepted, (\d+) lists applied\n", run.stdout
    )
    assert counts, run.stdout
    mutants, *outcomes = map(int, counts.groups())
    assert mutants == MUTANTS
    assert min(outcomes) > MUTANTS // 100


def test_damaged_files_are_read_or_refused_by_python(model: Path, tmp_path: Path) -> None:
    original, opened = model.read_bytes(), open_model(model)
    lists = list(opened.lists.values())
    header = min(t.offset for t in (*opened.tensors, *lists))
    rng = np.random.default_rng(9)
    mutant = tmp_path / "mutant.gguf"
    outcomes = dict.fromkeys(("unreadable", "refused", "accepted"), 0)
    for _ in range(1000):
        data = np.frombuffer(original, dtype=np.uint8).copy()
        if rng.random() < 0.4:
            data[rng.integers(header)] = rng.integers(256)
        else:
            chosen = lists[rng.integers(len(lists))]
            place = chosen.offset + 4 * int(rng.integers(chosen.nbytes // 4))
            number = data[place : place + 4].view(np.int32)
            change = rng.integers(-(2**31), 2**31) if rng.random() < 0.5 else number[0] + rng.choice([-1, 1])
            number[:] = np.int64(change).astype(np.int32)
        mutant.write_bytes(data.tobytes())
        try:
            found = open_model(mutant)
            for tensor in found.tensors:
                decode(tensor.read_rows(), tensor.qtype, found.outliers(tensor))
        except (UserError, NotImplementedError) as error:  # a type without a decoder in Python
            outcomes["refused" if "outlier list" in str(error) else "unreadable"] += 1
        else:
            outcomes["accepted"] += 1
    print(outcomes)
    assert min(outcomes.values()) > 30
