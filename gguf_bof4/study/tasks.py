"""Multiple-choice tasks with quantized models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.reference_texts import calibration_text
from gguf_bof4.study.capture import TaskSet, accuracy
from gguf_bof4.study.models import Loaded
from gguf_bof4.study.quality import Calibrated, Case, check_case
from gguf_bof4.study.tables import Results, Say, TaskRow


def check_tasks(
    model: str, cases: Sequence[Case], sets: Sequence[TaskSet], results: Results[TaskRow], force: bool
) -> list[tuple[Case, TaskSet]]:
    """What is not in the results yet, or everything."""
    return [
        (case, tasks)
        for case in cases
        for tasks in sets
        if force or TaskRow(model, *case.names, tasks.name, len(tasks.tasks), 0, 0, 0).key not in results
    ]


def run_tasks(
    loaded: Loaded,
    calibration: Path | None,
    missing: Sequence[tuple[Case, TaskSet]],
    results: Results[TaskRow],
    say: Say,
    progress: Progress = no_progress,
) -> None:
    """Solve the sets with each case; each row is in the file as soon as it is measured.

    Args:
        calibration: the text for samples of activations; None: the reference text.
    """
    for case, _ in missing:
        check_case(case, loaded)
    calibrated = Calibrated(loaded, calibration_text() if calibration is None else calibration)
    for i, (case, tasks) in enumerate(missing):
        started = time.monotonic()
        with calibrated.quantized(case, progress):
            solved = accuracy(loaded, tasks.tasks, progress)
        results.add(
            TaskRow(
                loaded.name, *case.names, tasks.name, len(tasks.tasks), tasks.chance, solved,
                time.monotonic() - started,
            )
        )  # fmt: skip
        say(f"{i + 1} of {len(missing)}  {' x '.join(case.names)}, {tasks.name}: {100 * solved:.1f} %")
