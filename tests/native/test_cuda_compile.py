"""The project's CUDA files compile for all generations of GPUs, where there is nvcc, and stay within their budgets.

A budget is what the compiler made of a kernel (sass.py), in bench/gpu/sass.csv. After a change of kernels:

    python tests/native/test_cuda_compile.py        # compiles, shows the differences, rewrites the file

BOF4_CUDA_ARCHITECTURES="80 86 120a" compiles for others.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pytest
import sass
from cuda_machine import cublas_headers, no_nvcc

from gguf_bof4.ggml_patch import LOCK, PATCHES, SOURCES
from gguf_bof4.ggml_patch.apply import SOURCES_IN_TREE, all_hunks, patch_tree
from gguf_bof4.ggml_patch.cuda import find_toolkit
from gguf_bof4.ggml_patch.source import cache_root, fetch_archive, open_archive, snapshot

ARCHITECTURES = tuple(os.environ.get("BOF4_CUDA_ARCHITECTURES", "75 90").split())
"""The oldest generation, without asynchronous copies, and one that has all that the kernels use; `make test-nightly`
compiles for every generation. An architecture takes a minute of two cores."""

ALSO = ("86", "89")
"""Architectures for which the products of one to eight columns are compiled, too; the tiled products take a minute of a
core for each architecture, and those of 80 have the same code."""

FLAGS = (
    "-std=c++17", "-O3", "-use_fast_math", "-extended-lambda", "-DGGML_CUDA_USE_GRAPHS", "-DGGML_BACKEND_SHARED",
    "-DGGML_BACKEND_BUILD", "-Dggml_cuda_EXPORTS", "-Xcompiler=-fPIC,-Wall",
)  # fmt: skip
"""The flags with which CMake compiles llama.cpp's CUDA files."""

STRICTLY = ("-Xcompiler=-Werror=suggest-attribute=noreturn", "--no-compress")
"""For our files: g++ reports functions that can only abort, which undefined behaviour may cause. Device code that is
not compressed can be read."""

QUICKLY = ("-Xcicc=-O0", "-Xptxas=-O0")
"""For llama.cpp's own files, which are compiled only to check the patched lines."""

OURS = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.cu"))
HOOKED = sorted({hunk.path for hunk in all_hunks() if hunk.path.endswith(".cu")})

BUDGETS = Path(__file__).parents[2] / "bench/gpu/sass.csv"
BUDGETED_ARCHITECTURES = ("80", "90", "120a")
"""Of these, `make test` measures the ones of ARCHITECTURES."""
BUDGETED = re.compile(r"bof4_(?!to_|get_rows|dequantize|convert)|mul_mat_q<\(ggml_type\)\d+, (16|64|128), ")
"""Names of the kernels with a budget: all of ours but conversions, and some widths of the tiled product."""

MORE_INSTRUCTIONS, MORE_REGISTERS = 1.03, 8
"""What a kernel may have more than its budget: another version of nvcc moves instructions by a percent or two. Local
memory may not grow: a spill costs more than that."""

TOLERATED_TOOLKIT = (13, 0)
"""Release of nvcc that the budgets were measured with; others are not compared."""


@dataclass(frozen=True)
class Work:
    """One file for one architecture."""

    path: Path
    architecture: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """What came of it: errors, or the kernels of one of our files."""

    errors: str
    kernels: Mapping[str, sass.Kernel]


def compile_one(work: Work, tree: Path, key: str) -> Compiled:
    """Compile; files that have not changed since they compiled are not compiled again."""
    kept = cache_root() / "cuda-compiled"
    kept.mkdir(parents=True, exist_ok=True)
    toolkit = find_toolkit()
    headers = cublas_headers(toolkit)
    system = ("-isystem", str(headers)) if headers else ()
    command = [
        toolkit.nvcc, *FLAGS, *work.flags, f"-gencode=arch=compute_{work.architecture},code=sm_{work.architecture}",
        f"-I{tree / 'ggml/src'}", f"-I{tree / 'ggml/include'}", f"-I{tree / 'ggml/src/ggml-cuda'}", *system,
    ]  # fmt: skip
    what = f"{work.path.relative_to(tree)} for sm_{work.architecture}"
    reader = hashlib.sha256(Path(sass.__file__).read_bytes()).hexdigest()
    kind = f"{key} {toolkit.version} {FLAGS} {work.flags} {what} {reader}"
    marker = kept / f"{hashlib.sha256(kind.encode()).hexdigest()}.json"
    if marker.is_file():
        return Compiled("", {name: sass.Kernel(**k) for name, k in json.loads(marker.read_text()).items()})
    partial = marker.with_suffix(f".{os.getpid()}.o")
    try:
        run = subprocess.run(
            [*command, "-c", str(work.path), "-o", str(partial)],
            capture_output=True, text=True, check=False, timeout=1800,
        )  # fmt: skip
        if run.returncode == 0 and partial.stat().st_size > 0:
            found = sass.kernels(partial.read_bytes()) if "--no-compress" in work.flags else {}
            marker.write_text(json.dumps({name: asdict(kernel) for name, kernel in found.items()}))
            return Compiled("", found)
        lines = (run.stdout + run.stderr).splitlines()
        errors = [line for line in lines if "error" in line] or lines[-20:]
        return Compiled("\n    ".join([f"{what}:", *errors[:8]]), {})
    finally:
        partial.unlink(missing_ok=True)


def content_key() -> str:
    """A hash of all files that a CUDA file may include."""
    digest = hashlib.sha256()
    files = [LOCK, *sorted(PATCHES.glob("*.patch")), *sorted(SOURCES.rglob("*.h"))]
    for folder in ("cuda", "bench"):
        files.extend(sorted(path for path in (SOURCES / folder).rglob("*") if path.is_file()))
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def unpacked_tree(folder: Path) -> Path:
    """ggml with the patches and sources of this checkout, built or not."""
    prefix = snapshot().tree + "/"
    wanted = {hunk.path for hunk in all_hunks()}
    with open_archive(fetch_archive()) as tar:
        for member in tar:
            member.name = member.name.removeprefix(prefix)
            if member.name.startswith("ggml/") or member.name in wanted:
                tar.extract(member, folder / "llama.cpp")
    patch_tree(folder / "llama.cpp")
    return folder / "llama.cpp"


def compile_all(work: list[Work], tree: Path) -> list[Compiled]:
    """Compile on all cores."""
    key = content_key()
    assert all(one.path.is_file() for one in work)
    cublas_headers(find_toolkit())  # download once, not in each thread
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda one: compile_one(one, tree, key), work))


def our_work(tree: Path, architectures: tuple[str, ...]) -> list[Work]:
    """Our files for these architectures, those that take longest first."""
    files = sorted(OURS, key=lambda path: "mmq" not in path)
    return [Work(tree / SOURCES_IN_TREE / path, name, STRICTLY) for path in files for name in architectures]


def measured(tree: Path, architectures: tuple[str, ...]) -> dict[tuple[str, str], sass.Kernel]:
    """Kernels with a budget, by architecture and name."""
    work = our_work(tree, architectures)
    done = compile_all(work, tree)
    assert not any(one.errors for one in done), "\n".join(one.errors for one in done)
    return {
        (one.architecture, name): kernel
        for one, compiled in zip(work, done, strict=True)
        for name, kernel in compiled.kernels.items()
        # widths that no architecture uses are kernels of a few instructions
        if BUDGETED.match(name) and kernel.instructions > 64
    }


def read_budgets() -> dict[tuple[str, str], sass.Kernel]:
    """bench/gpu/sass.csv."""
    with BUDGETS.open(newline="") as file:
        return {
            (row["architecture"], row["kernel"]): sass.Kernel(*(int(row[f.name]) for f in fields(sass.Kernel)))
            for row in csv.DictReader(file)
        }


def excess(budget: sass.Kernel, found: sass.Kernel) -> list[str]:
    """What of a kernel is more than it may be."""
    limits = {
        "instructions": int(budget.instructions * MORE_INSTRUCTIONS) + 4,
        "registers": budget.registers + MORE_REGISTERS,
        "local": budget.local,
    }
    wrong = [
        f"{name} {getattr(budget, name)} -> {getattr(found, name)}, limit {limit}"
        for name, limit in limits.items()
        if getattr(found, name) > limit
    ]
    # by dot product: a loop may be unrolled more or less
    slower = found.loop * budget.products > budget.loop * found.products * MORE_INSTRUCTIONS
    if slower or (budget.products and not found.products):
        wrong.append(f"loop {budget.loop} for {budget.products} products -> {found.loop} for {found.products}")
    return wrong


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_tree(tmp_path_factory.mktemp("tree"))


@pytest.mark.skipif(bool(no_nvcc()), reason=no_nvcc() or "nvcc is here")
def test_cuda_files_compile_for_each_architecture(tree: Path) -> None:
    work = our_work(tree, ARCHITECTURES) + [Work(tree / path, "90", QUICKLY) for path in HOOKED]
    work += [one for one in our_work(tree, ALSO) if "mmvq" in one.path.name]
    failures = [done.errors for done in compile_all(work, tree) if done.errors]
    assert not failures, "\n".join(failures)


@pytest.mark.skipif(bool(no_nvcc()), reason=no_nvcc() or "nvcc is here")
def test_kernels_stay_within_their_budgets(tree: Path) -> None:
    if find_toolkit().release != TOLERATED_TOOLKIT:
        pytest.skip(f"the budgets are of nvcc {TOLERATED_TOOLKIT}, this is {find_toolkit().version}")
    architectures = tuple(name for name in BUDGETED_ARCHITECTURES if name in ARCHITECTURES)
    if not architectures:
        pytest.skip(f"budgets are of {BUDGETED_ARCHITECTURES}, this compiles for {ARCHITECTURES}")
    budgets = {key: budget for key, budget in read_budgets().items() if key[0] in architectures}
    found = measured(tree, architectures)
    remedy = f"where this is meant: python {Path(__file__).relative_to(BUDGETS.parents[2])}"
    assert found.keys() == budgets.keys(), (
        f"kernels without a budget {sorted(found.keys() - budgets.keys())[:9]}, "
        f"budgets without a kernel {sorted(budgets.keys() - found.keys())[:9]}; {remedy}"
    )
    over = {key: excess(budget, found[key]) for key, budget in budgets.items()}
    wrong = [f"sm_{architecture} {name}: {'; '.join(why)}" for (architecture, name), why in over.items() if why]
    assert not wrong, "\n".join([*wrong, remedy])
    # every multiplication of ours has a loop that was found
    for of in ("bof4_mul_mat_vec", "mul_mat_q"):
        assert any(kernel.products for (_, name), kernel in found.items() if name.startswith(of)), of


COUNTED = """
extern "C" __global__ void bof4_counted(const int * x, int n, int * y) {
    int sum = 0, local[64];
    for (int i = 0; i < 64; ++i) { local[i] = x[i]; }
    #pragma unroll 1
    for (int i = 0; i < n; ++i) { sum = __dp4a(x[i], local[x[i] & 63], sum); sum = __dp4a(sum, 3, sum); }
    y[threadIdx.x] = sum;
}
"""


@pytest.mark.skipif(bool(no_nvcc()), reason=no_nvcc() or "nvcc is here")
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_kernels_are_read_as_the_compiler_reports_them(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "counted.cu").write_text(COUNTED)
    done = subprocess.run(
        [find_toolkit().nvcc, "-O3", "--no-compress", "-Xptxas=-v",
         f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
         "-c", str(tmp_path / "counted.cu"), "-o", str(tmp_path / "counted.o")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    reported = [re.search(pattern, done.stderr + done.stdout) for pattern in (r"Used (\d+) reg", r"(\d+) bytes stack")]
    found = sass.kernels((tmp_path / "counted.o").read_bytes())["bof4_counted"]
    assert [found.registers, found.local] == [int(match[1]) for match in reported if match]
    assert found.local >= 64 * 4
    assert found.products == 2
    assert 6 <= found.loop < 40 < found.instructions


def test_more_instructions_registers_and_spills_are_found() -> None:
    budget = sass.Kernel(instructions=1000, loop=300, products=64, registers=128, local=0)
    assert excess(budget, budget) == []
    assert excess(budget, sass.Kernel(1010, 305, 64, 130, 0)) == []
    assert excess(budget, sass.Kernel(1010, 600, 128, 130, 0)) == []  # unrolled twice
    for worse in (
        sass.Kernel(1100, 300, 64, 128, 0), sass.Kernel(1000, 320, 64, 128, 0), sass.Kernel(1000, 300, 64, 168, 0),
        sass.Kernel(1000, 300, 64, 128, 8), sass.Kernel(1000, 0, 0, 128, 0),
    ):  # fmt: skip
        assert len(excess(budget, worse)) == 1, worse


def main() -> None:
    """Measure all kernels, show what is different from the budgets, and rewrite them."""
    with tempfile.TemporaryDirectory() as folder:
        found = measured(unpacked_tree(Path(folder)), BUDGETED_ARCHITECTURES)
    before = read_budgets() if BUDGETS.is_file() else {}
    for key in sorted(before.keys() | found.keys()):
        old, new = before.get(key), found.get(key)
        if old != new:
            changes = [
                f"{f.name} {getattr(old, f.name, '-')} -> {getattr(new, f.name, '-')}"
                for f in fields(sass.Kernel)
                if getattr(old, f.name, None) != getattr(new, f.name, None)
            ]
            print(f"sm_{key[0]} {key[1]}: {', '.join(changes)}")
    with BUDGETS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["architecture", "kernel", *(f.name for f in fields(sass.Kernel))])
        writer.writerows([*key, *asdict(kernel).values()] for key, kernel in sorted(found.items()))
    print(f"{BUDGETS}: {len(found)} kernels")


if __name__ == "__main__":
    sys.exit(main())
