"""How long work reports its progress, and the bar that a terminal shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with the current step, the units done, and the units in all (0: unknown). The unit is the caller's.

With NOTE for the units in all the step is a line that stays, such as an estimate of the time.
"""

NOTE = -1


def duration_text(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def no_progress(step: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@contextmanager
def progress_bar(first_step: str, *, steps_of: str | None = None) -> Iterator[Progress]:
    """A progress bar on standard error, where that is a terminal; notes are printed there in any case.

    Args:
        first_step: shown until the first report.
        steps_of: a command; each new step is then also printed as a line that begins with it, and units are shown as
            numbers instead of percents.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    numbers: tuple[ProgressColumn, ...] = (TaskProgressColumn(), TimeRemainingColumn())
    if steps_of:
        numbers = (MofNCompleteColumn(), TimeElapsedColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *numbers)
    with Bar(*columns, console=console, transient=True, disable=not (console.is_terminal or steps_of)) as bar:
        task = bar.add_task(first_step, total=None)
        printed = ""

        def report(step: str, done: int, total: int) -> None:
            nonlocal printed
            if total == NOTE:
                console.print(step, markup=False, highlight=False, soft_wrap=True)
                return
            bar.update(task, description=step, completed=done, total=total or None)
            if steps_of and step != printed:
                printed = step
                console.print(f"{steps_of}: {step}")

        yield report
