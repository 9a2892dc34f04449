"""Tables of measurements: CSV files, one dataclass per row, complete at any moment."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from gguf_bof4.errors import UserError
from gguf_bof4.paths import atomic_path

_Row = TypeVar("_Row")
_NUMBERS = {"int": int, "float": float}


def _row(path: Path, line: int, values: dict[str, str], kind: type[_Row], command: str) -> _Row:
    try:
        given = [f for f in _fields(kind) if f.name in values or f.default is dataclasses.MISSING]
        return kind(**{f.name: _NUMBERS.get(str(f.type), str)(values[f.name]) for f in given})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}, line {line}: not a row of `{command}`: correct or remove it, or give another --output"
        ) from error


def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def read_table(path: Path, kind: type[_Row], command: str) -> list[_Row]:
    """All rows of a file, in its order; none where it does not exist.

    Args:
        kind: a dataclass of strings, ints and floats, whose module postpones annotations. Fields with a default may
            be missing: columns that older files do not have.
        command: that writes such files, for the message.

    Raises:
        UserError: it cannot be read, or a row is malformed.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return [_row(path, reader.line_num, values, kind, command) for values in reader]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def write_table(path: Path, kind: type[_Row], rows: Iterable[_Row]) -> None:
    """Replace a file by one of these rows. The new file is renamed over the old one, so no reader sees half of it.

    Raises:
        UserError: the file cannot be written.
    """
    names = [f.name for f in _fields(kind)]
    try:
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows([_text(getattr(row, name)) for name in names] for row in rows)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give another --output.") from error


def _text(value: str | float) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)
