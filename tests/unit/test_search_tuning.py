"""TPE over groups of tensors: the first trial, resuming, and databases of something else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gguf_bof4.errors import UserError
from gguf_bof4.search.tuning import Tuned, groups_of, tune

pytest.importorskip("optuna", reason="the extra search is not installed")

KINDS = ("attn_q", "ffn_down")
TENSORS: list[Any] = [SimpleNamespace(name=f"blk.{i}.{kind}.weight") for i in range(6) for kind in KINDS]
MINE = {"model": "a", "target": "4.4-bits"}


def run(path: Path, trials: int, subject: Mapping[str, Any] = MINE) -> tuple[Tuned, list[str]]:
    """Trials whose divergence grows with the distance of factors from 1."""
    measured: Any = SimpleNamespace(matrices=[SimpleNamespace(tensor=t) for t in TENSORS])
    same: Any = dict
    said: list[str] = []
    judge: Any = lambda factors: 1 + sum(math.log(v) ** 2 for v in factors.values())  # noqa: E731
    return tune(measured, path, subject, trials, same, judge, said.append), said


def test_groups_are_kinds_in_thirds_of_the_layers() -> None:
    found = groups_of(TENSORS)
    assert len(found) == 6
    assert found["attention q first"] == ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
    assert found["ffn down last"] == ["blk.4.ffn_down.weight", "blk.5.ffn_down.weight"]


def test_the_first_trial_changes_nothing_and_a_study_resumes(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    first, said = run(path, 3)
    assert (first.first, first.best, first.trials, len(said)) == (1.0, 1.0, 3, 3)
    assert set(first.factors.values()) == {1.0} and len(first.factors) == len(TENSORS)
    again, said = run(path, 5)
    assert again.trials == 5 and [line.split(":")[0] for line in said] == ["trial 4 of 5", "trial 5 of 5"]


@pytest.mark.parametrize("other, what", [({"model": "b"}, "another model"), ({"target": "5-bits"}, "another target")])
def test_a_study_of_something_else_is_refused(tmp_path: Path, other: dict[str, str], what: str) -> None:
    run(tmp_path / "study.db", 1)
    with pytest.raises(UserError, match=f"is a study of {what}: give --study another file"):
        run(tmp_path / "study.db", 2, {**MINE, **other})


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database at all " * 50)
    with pytest.raises(UserError, match="is no database of bof4 search"):
        run(tmp_path / "bad.db", 1)
