"""Outlier lists through ggml's public API, linked against the built libraries: products, rows, views, experts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from instruction_sets import OUR_INCLUDES

from gguf_bof4.ggml_patch.build import installed_bin, source_tree

NATIVE = Path(__file__).parent / "sources"


@pytest.fixture(scope="module")
def program(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("lists") / "check_lists"
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "a C++ compiler is what the build needed, too"
    result = subprocess.run(
        [
            compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror",
            # upstream's headers are not ours to warn about
            "-isystem", source_tree() / "ggml/include", *OUR_INCLUDES, NATIVE / "check_lists.cpp",
            f"-L{built}", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{built}", "-o", target,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return target


def test_products_and_rows_equal_float64(program: Path) -> None:
    run = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"^(.*): (\d+) cases, largest error ([\d.e+-]+): ok$", run.stdout, re.MULTILINE)
    assert [group for group, _, _ in found] == [
        "mul_mat", "mul_mat in batches", "mul_mat of views", "get_rows", "mul_mat_id",
    ]  # fmt: skip
    assert sum(int(cases) for _, cases, _ in found) > 600


@pytest.mark.parametrize("operation", ["cont", "add", "out_prod"])
def test_an_operation_that_would_lose_a_list_aborts_and_says_so(program: Path, operation: str) -> None:
    run = subprocess.run(
        [program, "lose", operation],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger would be started
    )  # fmt: skip
    assert run.returncode < 0, run.stdout + run.stderr
    assert "of weight would lose the outlier list of that tensor" in run.stderr
    assert "--opq off" in run.stderr


def test_upstreams_random_cases_have_lists_and_pass(built: Path) -> None:
    """Every case of a BOF4_S weight that upstream's test-backend-ops has, with a list."""
    if not (installed_bin() / "test-backend-ops").is_file():
        pytest.skip("test-backend-ops is not built: `bof4 build --tests` builds it")
    run = subprocess.run(
        [installed_bin() / "test-backend-ops", "test", "-b", "CPU", "-p", "list=1"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    plain = re.sub(r"\x1b\[[\d;]*m", "", run.stdout)
    passed = re.findall(r"^ *(\w+)\(type(?:_a)?=bof4_s,.*list=1\): OK$", plain, re.MULTILINE)
    assert set(passed) == {"MUL_MAT", "MUL_MAT_ID", "GET_ROWS"}
    print({operation: passed.count(operation) for operation in sorted(set(passed))})
    # F32 activations are what lists, and the type, are for
    skipped = re.findall(r"^.*list=1\): not supported.*$", plain, re.MULTILINE)
    assert all("type_b=f16" in line for line in skipped)
    assert len(passed) > 100
