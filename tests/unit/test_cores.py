"""How many processor cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from gguf_bof4 import cores
from gguf_bof4.cores import allowed_cores, physical_cores, processor_time_limit


@pytest.fixture
def two_cores(tmp_path: Path) -> Path:
    """Two cores of two hardware threads each, and two hardware threads of which the system says nothing."""
    for i, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{i}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [({0, 1, 2, 3, 4, 5}, 4), ({0, 2}, 1), ({1, 2}, 2), ({4, 5}, 2), ({3}, 1)],
    ids=["all", "both threads of a core", "threads of two cores", "unknown threads", "one"],
)
def test_hardware_threads_of_one_core_count_once(
    allowed: set[int], expected: int, two_cores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    assert physical_cores(two_cores) == expected


@pytest.mark.parametrize(
    ("line", "limits", "expected"),
    [
        ("0::/service", {"service": "150000 100000"}, 1.5),
        ("0::/slice/service", {"slice": "200000 100000", "slice/service": "max 100000"}, 2.0),
        ("0::/slice/service", {"slice": "200000 100000", "slice/service": "50000 100000"}, 0.5),
        ("0::/", {"": "300000 100000"}, 3.0),
        ("0::/", {}, math.inf),
        ("0::/service", {"service": "damaged"}, math.inf),
        ("4:cpu:/service", {"service": "150000 100000"}, math.inf),
    ],
    ids=["own group", "group above", "both", "container", "none", "damaged", "version 1"],
)
def test_control_groups_limit_processor_time(
    line: str, limits: dict[str, str], expected: float, tmp_path: Path
) -> None:
    folder, of_process = tmp_path / "groups", tmp_path / "cgroup"
    of_process.write_text(f"3:cpuset:/\n{line}\n")
    for name, text in limits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "cpu.max").write_text(f"{text}\n")
    assert processor_time_limit(folder, of_process) == expected
    assert processor_time_limit(folder, tmp_path / "missing") == math.inf


@pytest.mark.parametrize(
    ("allowed", "limit", "expected"),
    [({0, 1, 2, 3}, math.inf, None), ({0, 2}, math.inf, 1), ({0, 1, 2, 3}, 1.5, 1), ({0, 1, 2, 3}, 0.5, 1),
     ({0, 1, 2, 3}, 2.0, None)],
)  # fmt: skip
def test_only_fewer_cores_than_the_machine_has_are_a_limit(
    allowed: set[int], limit: float, expected: int | None, two_cores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setattr(cores, "processor_time_limit", lambda: limit)
    assert allowed_cores(two_cores) == expected
