"""What commands with tables share: names in options, and a console that is wide where nobody looks."""

from __future__ import annotations

from rich.console import Console

from gguf_bof4.errors import UserError

_TABLE_WIDTH = 170  # where nobody looks: a file or a pipe


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
