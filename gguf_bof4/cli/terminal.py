"""Names in options, a wide console for tables, and interruption."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

import typer
from rich.console import Console

from gguf_bof4.errors import UserError

_TABLE_WIDTH = 170  # in a file or a pipe


def split_names(values: list[str] | None) -> list[str]:
    """Names given as several options, or in one with commas between."""
    return [name for value in values or () for name in value.split(",") if name]


def split_numbers(option: str, values: list[str] | None) -> tuple[int, ...]:
    """Positive whole numbers given like names; zeros are left out.

    Raises:
        UserError: something else was given; `option` is named.
    """
    names = split_names(values)
    if bad := [name for name in names if not name.isdecimal()]:
        raise UserError(f"{option} {bad[0]}: give whole numbers")
    return tuple(dict.fromkeys(int(name) for name in names if int(name)))


def table_console() -> Console:
    """For tables on standard output."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_TABLE_WIDTH)


@contextlib.contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """Make SIGTERM raise as Ctrl-C does, so that temporary folders are removed, and print what is kept.

    Args:
        kept: what was measured, and where it is.

    Raises:
        typer.Exit: after Ctrl-C.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except KeyboardInterrupt:
        print(f"bof4: interrupted; {kept}, run again to resume", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
