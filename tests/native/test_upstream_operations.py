"""Upstream's test-backend-ops: every case of a BOF4 weight has a twin with an outlier list, and both are right."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from gguf_bof4.formats import FORMATS

LISTED_CASES = {"MUL_MAT": 46, "MUL_MAT_ID": 75, "GET_ROWS": 8}
"""Upstream's cases of each type that the CPU computes, in the pinned snapshot: so many must pass with a list."""


@dataclass(frozen=True)
class Case:
    """One line of the program's report.

    Attributes:
        weight: type of the weights, as ggml names it.
        fields: the parameters, like {"type_b": "f32", "bs": "[1,1]"}.
    """

    operation: str
    weight: str
    fields: dict[str, str]
    result: str


def parse_report(output: str) -> list[Case]:
    """All cases that the program reports, passed or not."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    found = []
    for operation, parameters, result in re.findall(r"^ *([A-Z_]+)\((.*)\): (.*?) *$", plain, re.MULTILINE):
        fields = dict(re.findall(r"(\w+)=(\[[^\]]*\]|[^,]*)", parameters))
        found.append(Case(operation, fields.get("type_a") or fields["type"], fields, result))
    return found


@pytest.fixture(scope="module")
def listed(built: Path) -> list[Case]:
    """The cases whose weights have lists, run on the CPU."""
    program = built / "test-backend-ops"
    if not program.is_file():
        pytest.skip("test-backend-ops is not built: `bof4 build --tests` builds it")
    run = subprocess.run(
        [program, "test", "-b", "CPU", "-p", "list=1"], capture_output=True, text=True, check=False, timeout=600
    )
    assert run.returncode == 0, run.stdout[-3000:]
    return parse_report(run.stdout)


def test_only_our_types_have_lists(listed: list[Case]) -> None:
    assert {case.weight for case in listed} == {fmt.c_name for fmt in FORMATS}
    assert all(case.fields["list"] == "1" for case in listed)


@pytest.mark.parametrize("name", ["bof4_s", "bof4_k"])
def test_cases_with_lists_pass(listed: list[Case], name: str) -> None:
    passed = Counter(case.operation for case in listed if case.weight == name and case.result == "OK")
    print(dict(passed))
    assert passed.keys() == LISTED_CASES.keys()
    for operation, at_least in LISTED_CASES.items():
        assert passed[operation] >= at_least, operation


def test_only_half_precision_activations_are_not_supported(listed: list[Case]) -> None:
    """The CPU backend multiplies F32 activations with these types, with a list or without."""
    left_out = [case for case in listed if case.result != "OK"]
    assert all(case.result.startswith("not supported") for case in left_out)
    assert {(case.operation, case.fields["type_b"]) for case in left_out} == {("MUL_MAT", "f16")}
