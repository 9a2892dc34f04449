"""Optuna's TPE over groups of tensors, with measured KL divergence as the objective.

A trial has a factor of the losses for each group: kinds of matrices, in the first, middle and last third of the layers.
The factors change which tensors get more bits, and the assignment under them meets the target, so that all trials have
the same size. The first trial has factors of 1, so the result is never worse than the prediction's, on the text that
was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_bof4.errors import UserError, require
from gguf_bof4.gguf_files.model import Tensor
from gguf_bof4.search.run import Assignment, Measured
from gguf_bof4.weight_errors import group_of, layer_of

RANGE = 4.0
"""Factors are between its inverse and it."""

_SEED = 2505
_NAME = "bof4 search"


@dataclass(frozen=True)
class Tuned:
    """The best trial.

    Attributes:
        factors: of the losses, by tensor.
        first, best: measured divergence with factors of 1, and of the best trial.
        trials: that were measured, earlier runs included.
    """

    factors: Mapping[str, float]
    first: float
    best: float
    trials: int


def groups_of(tensors: list[Tensor]) -> dict[str, list[str]]:
    """Names of tensors by group: the kind, and the third of the layers."""
    depth = 1 + max((n for t in tensors if (n := layer_of(t.name)) is not None), default=0)
    found: dict[str, list[str]] = {}
    for t in tensors:
        layer = layer_of(t.name)
        third = "" if layer is None else f" {('first', 'middle', 'last')[min(2, 3 * layer // depth)]}"
        found.setdefault(group_of(t.name) + third, []).append(t.name)
    return found


def _open_study(path: Path, subject: Mapping[str, Any]) -> Any:
    """The study in a database, which must be of this subject.

    Raises:
        UserError: it is of another model or target, or the file is no study.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            study_name=_NAME, storage=f"sqlite:///{path}", load_if_exists=True,
        )  # fmt: skip
        # a study that is resumed must not draw the same trials again
        study.sampler = optuna.samplers.TPESampler(seed=_SEED + len(study.trials), multivariate=True)
        attributes = study.user_attrs
    except Exception as error:  # of SQLite, SQLAlchemy or Optuna, by what is wrong with the file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no database of bof4 search ({reason}): give --study another file") from error
    for key, value in subject.items():
        if attributes.get(key, value) != value:
            what = "another model" if key == "model" else f"another {key}"
            raise UserError(f"{path} is a study of {what}: give --study another file, or remove it")
        study.set_user_attr(key, value)
    return study


def tune(
    measured: Measured,
    path: Path,
    subject: Mapping[str, Any],
    trials: int,
    assign: Callable[[Mapping[str, float]], Assignment],
    judge: Callable[[Assignment], float],
    say: Callable[[str], None],
) -> Tuned:
    """Run trials until the study has as many as wanted.

    Args:
        path: of the study's database (SQLite); one that exists is resumed.
        subject: of the study, as JSON values: "model" and others.
        trials: in all, those of earlier runs included.
        assign: makes an assignment from factors, by tensor.
        judge: measures the divergence of one.
        say: called with a line for each trial.

    Raises:
        UserError: Optuna is missing, or the study is of another subject.
    """
    require("search", "bof4 search --trials", "optuna")
    import optuna

    groups = groups_of([w.tensor for w in measured.matrices])
    study = _open_study(path, {**subject, "groups": sorted(groups)})

    def factors_of(values: Mapping[str, float]) -> dict[str, float]:
        return {name: values[group] for group, names in groups.items() for name in names}

    def objective(trial: Any) -> float:
        values = {group: trial.suggest_float(group, 1 / RANGE, RANGE, log=True) for group in groups}
        return judge(assign(factors_of(values)))

    def complete() -> list[Any]:
        return list(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))

    if not complete():
        study.enqueue_trial(dict.fromkeys(groups, 1.0))
    while (done := len(complete())) < trials:
        study.optimize(objective, n_trials=1)
        say(f"trial {done + 1} of {trials}: KL divergence {complete()[-1].value:.5g}, best {study.best_value:.5g}")
    best = study.best_trial
    return Tuned(factors_of(best.params), float(complete()[0].value), float(best.value), len(complete()))
