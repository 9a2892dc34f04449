"""The table of all measured rows: a CSV file that is whole at any moment."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.bench.variants import Variant
from gguf_bof4.errors import UserError

Key = tuple[str, str, Variant, int, str]


@dataclass(frozen=True)
class Row:
    """One variant of one model, measured on one text.

    Attributes:
        model: of the reference models.
        text: "test" or "held-out".
        type, encoder, opq: the variant's.
        chunks: of 512 tokens.
        recipe: the variant's.
        bits_per_weight: of the blocks' matrices, lists included.
        mean_kld and the rest: as in measure.Distance.
        matrices: of the blocks.
        fallback: how many of them have which other type, like "180 Q5_0"; more than one with " + " between them.
    """

    model: str
    text: str
    type: str
    encoder: str
    opq: str
    chunks: int
    recipe: str
    bits_per_weight: float
    mean_kld: float
    mean_kld_error: float
    kld_99_9: float
    same_top: float
    ppl_ratio: float
    matrices: int
    fallback: str

    @property
    def variant(self) -> Variant:
        return Variant(self.type, self.encoder, self.opq)

    @property
    def key(self) -> Key:
        """What it is a measurement of."""
        return (self.model, self.text, self.variant, self.chunks, self.recipe)

    @property
    def label(self) -> str:
        """The type, and what became of rows that are too short for it."""
        if not self.fallback:
            return self.type
        counts = [f"{part.split()[0]} of {self.matrices} matrices fell back to {part.split()[1]}"
                  for part in self.fallback.split(" + ")]  # fmt: skip
        return f"{self.type} ({', '.join(counts)})"


_FIELDS = dataclasses.fields(Row)
_NUMBERS = {"int": int, "float": float}


def _row(path: Path, line: int, values: dict[str, str]) -> Row:
    try:
        return Row(**{f.name: _NUMBERS.get(str(f.type), str)(values[f.name]) for f in _FIELDS})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}, line {line}: not a row of `bof4 bench quality`: mend or remove it, or give another --output"
        ) from error


def read_rows(path: Path) -> dict[Key, Row]:
    """All rows of a file, in its order; none where it does not exist.

    Raises:
        UserError: it cannot be read, or a row is malformed.
    """
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [_row(path, reader.line_num, values) for values in reader]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return {row.key: row for row in rows}


def add_row(path: Path, row: Row) -> None:
    """Put a row into a file, at the end or in the place of the one of the same key.

    The file is replaced by a whole new one: there is none at any moment that lacks a row or holds half of one.

    Raises:
        UserError: the file cannot be read or written.
    """
    rows = read_rows(path) | {row.key: row}
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([f.name for f in _FIELDS])
            writer.writerows([_text(getattr(r, f.name)) for f in _FIELDS] for r in rows.values())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give another --output.") from error


def _text(value: str | float) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)
