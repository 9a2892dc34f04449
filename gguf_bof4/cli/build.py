"""bof4 build: fetch, patch and build llama.cpp."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gguf_bof4.ggml_patch import build as building


def build(
    print_bin: Annotated[
        bool, typer.Option("--print-bin", help="Only print the folder of the built programs.")
    ] = False,
    tests: Annotated[bool, typer.Option("--tests", help="Build upstream's tests of the types, too.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Parallel compilers; 0: one a core.")] = 0,
) -> None:
    """Fetch the pinned llama.cpp, patch it and build its programs, once; then it is found in the cache.

    Set BOF4_CACHE to keep sources and builds elsewhere than in the user's cache folder, and BOF4_BIN to use
    the programs of a checkout that you patched (`bof4 patch`) and built yourself.
    """
    if print_bin:
        print(building.installed_bin())
        return
    console = Console(stderr=True)
    targets = building.PROGRAMS + (building.TESTS if tests else ())
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("looking", total=None)
        announced = ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal announced
            progress.update(task, description=what, completed=done, total=total or None)
            if what != announced:
                announced = what
                console.print(f"bof4 build: {what}")

        result = building.build(targets, jobs=jobs, report=report)
    console.print("bof4 build: the programs are in")
    print(result.bin)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(build)
