"""Trains scales until a budget is used up, and keeps the best of what samples that are not trained on have seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gguf_bof4.encoders.gptq.refine.student import Student
from gguf_bof4.paths import atomic_path

LEARNING_RATE = 1e-3
"""Of the relative change of a scale, after the first steps; it falls to zero along a cosine (bench/NOTES.md)."""

WARM_UP = 5
"""Steps in which the learning rate rises to that."""

BATCH = 4
"""Samples of a step."""

JUDGED = 8
"""Samples that are not trained on, at most; and at most one in this many."""

CHECKS = 6
"""How often these judge, beside the beginning."""


@dataclass(frozen=True)
class Budget:
    """How long training lasts.

    Attributes:
        minutes: of training.
        steps: of the optimizer, with which the result does not depend on the speed of the machine; None: as many as
            fit the minutes.
    """

    minutes: float
    steps: int | None = None

    def used(self, step: int, seconds: float) -> float:
        """The fraction that is used up after some steps."""
        return step / self.steps if self.steps is not None else seconds / (60 * self.minutes)


@dataclass(frozen=True)
class Split:
    """Samples that are trained on, and those that judge."""

    trained: Sequence[int]
    judged: Sequence[int]


def split(count: int) -> Split:
    """Judging samples lie evenly among the others.

    Args:
        count: of samples, two or more.
    """
    n = max(1, min(JUDGED, count // JUDGED))
    judged = {count * (2 * i + 1) // (2 * n) for i in range(n)}
    return Split([i for i in range(count) if i not in judged], sorted(judged))


@dataclass(frozen=True)
class Course:
    """What training has achieved.

    Attributes:
        before: mean KL divergence of the judging samples in nats, as the tensors were given.
        after: the same with the scales that were kept; never more.
        steps: that were made.
    """

    before: float
    after: float
    steps: int


def judge(student: Student, samples: Sequence[int]) -> float:
    """Mean KL divergence over the tokens of samples, in nats, with scales as a file stores them."""
    with torch.no_grad(), student.rounded():
        total = sum(float(student.divergence(i)) for i in samples)
    return total / (len(samples) * student.tokens.shape[1])


class _State:
    """Everything that training resumes from: a file that is replaced whenever samples have judged."""

    def __init__(self, path: Path, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._path, self._parameters, self._optimizer = path, parameters, optimizer
        self.step, self.seconds = 0, 0.0
        self.before = self.lowest = math.inf
        self.best = [p.detach().clone() for p in parameters]

    def save(self) -> None:
        with atomic_path(self._path) as partial:
            torch.save(
                {
                    "step": self.step, "seconds": self.seconds, "before": self.before, "lowest": self.lowest,
                    "best": self.best, "now": [p.detach() for p in self._parameters],
                    "optimizer": self._optimizer.state_dict(),
                },
                partial,
            )  # fmt: skip

    def load(self) -> bool:
        if not self._path.is_file():
            return False
        stored: dict[str, Any] = torch.load(self._path, weights_only=True)
        self.step, self.seconds = stored["step"], stored["seconds"]
        self.before, self.lowest, self.best = stored["before"], stored["lowest"], stored["best"]
        with torch.no_grad():
            for parameter, value in zip(self._parameters, stored["now"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(stored["optimizer"])
        return True


def sample_at(trained: Sequence[int], place: int) -> int:
    """The sample at a place of an endless sequence, in another order in each round."""
    turn, i = divmod(place, len(trained))
    return trained[int(torch.randperm(len(trained), generator=torch.Generator().manual_seed(turn))[i])]


def _rate(step: int, used: float) -> float:
    return LEARNING_RATE * min(1.0, step / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, used)))


def train(
    student: Student, budget: Budget, work_file: Path, report: Callable[[int, float, float, float], None]
) -> Course:
    """Train the scales of a student; afterwards it has those under which the judging samples had the least divergence.

    Args:
        work_file: training resumes from it where it exists; it is rewritten in between.
        report: called after each step with its number, the fraction of the budget that is used, and the divergence of
            the judging samples before and at best.

    Raises:
        OSError: the work file cannot be written.
    """
    parts = split(len(student.tokens))
    vectors = [v.parameter for v in student.vectors.values()]
    parameters = [m.change for m in student.matrices.values()] + vectors
    # a change of a scale is relative, a vector is not
    sizes = [1.0] * len(student.matrices) + [float(v.detach().square().mean().sqrt()) for v in vectors]
    groups = [{"params": [p], "size": size} for p, size in zip(parameters, sizes, strict=True)]
    optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    state = _State(work_file, parameters, optimizer)
    if not state.load():
        state.before = state.lowest = judge(student, parts.judged)
    began = time.monotonic() - state.seconds
    checked = int(CHECKS * budget.used(state.step, state.seconds))
    while (used := budget.used(state.step, time.monotonic() - began)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = group["size"] * _rate(state.step + 1, used)
        for i in range(BATCH):
            loss = student.divergence(sample_at(parts.trained, state.step * BATCH + i))
            (loss / (BATCH * student.tokens.shape[1])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        state.step += 1
        state.seconds = time.monotonic() - began
        used = budget.used(state.step, state.seconds)
        if int(CHECKS * used) > checked:
            checked = int(CHECKS * used)
            if (found := judge(student, parts.judged)) < state.lowest:
                state.lowest, state.best = found, [p.detach().clone() for p in parameters]
            state.seconds = time.monotonic() - began
            state.save()
        report(state.step, used, state.before, state.lowest)
    with torch.no_grad():
        for parameter, kept in zip(parameters, state.best, strict=True):
            parameter.copy_(kept)
    return Course(state.before, state.lowest, state.step)
