"""Outlier lists through ggml's public API, linked against the built libraries: products, rows, views, experts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from c_programs import link_with_build, run_program


@pytest.fixture(scope="module")
def program(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_with_build("check_lists.cpp", built, tmp_path_factory.mktemp("lists") / "check_lists")


def test_products_and_rows_equal_float64(program: Path) -> None:
    run = run_program(program)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"^(.*): (\d+) cases, largest error ([\d.e+-]+): ok$", run.stdout, re.MULTILINE)
    assert [group for group, _, _ in found] == [
        "mul_mat", "mul_mat in batches", "mul_mat of views", "get_rows", "mul_mat_id",
    ]  # fmt: skip
    assert sum(int(cases) for _, cases, _ in found) > 600


@pytest.mark.parametrize("operation", ["cont", "add", "out_prod"])
def test_an_operation_that_would_lose_a_list_aborts_and_says_so(program: Path, operation: str) -> None:
    run = run_program(program, "lose", operation)
    assert run.returncode < 0, run.stdout + run.stderr
    assert "of weight would lose the outlier list of that tensor" in run.stderr
    assert "--opq off" in run.stderr
