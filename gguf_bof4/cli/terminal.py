"""What commands with tables share: names in options, and a console that is wide where nobody looks."""

from __future__ import annotations

from rich.console import Console

_TABLE_WIDTH = 170  # where nobody looks: a file or a pipe


def split_names(values: list[str] | None) -> list[str]:
    """Names given as several options, or in one with commas between."""
    return [name for value in values or () for name in value.split(",") if name]


def table_console() -> Console:
    """For tables on standard output."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_TABLE_WIDTH)
