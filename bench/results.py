"""The table of all measured rows: a CSV file that is complete at any moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.bench.csv_file import read_table, write_table
from gguf_bof4.bench.variants import Variant

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
        fallback: how many of them have which other type, like "180 Q5_0"; more than one with " + " between them. Of a
            mixture: all types.
        seconds: to make the file from the unquantized one, without what is made once for a model (importance matrices,
            losses of a search); 0 in rows of older versions, which did not measure it.
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
    seconds: float = 0.0

    @property
    def variant(self) -> Variant:
        return Variant(self.type, self.encoder, self.opq)

    @property
    def key(self) -> Key:
        """What was measured: a second row with this key replaces the first."""
        return (self.model, self.text, self.variant, self.chunks, self.recipe)

    @property
    def label(self) -> str:
        """The type, and the fallback types of matrices whose rows do not divide into its blocks; types of a mixture."""
        if not self.fallback:
            return self.type
        if self.variant.searched_bits is not None:
            return f"{self.type} ({self.fallback})"
        counts = [f"{part.split()[0]} of {self.matrices} matrices fell back to {part.split()[1]}"
                  for part in self.fallback.split(" + ")]  # fmt: skip
        return f"{self.type} ({', '.join(counts)})"


_COMMAND = "bof4 bench quality"


def read_rows(path: Path) -> dict[Key, Row]:
    """All rows of a file, in its order; none where it does not exist.

    Raises:
        UserError: it cannot be read, or a row is malformed.
    """
    return {row.key: row for row in read_table(path, Row, _COMMAND)}


def add_row(path: Path, row: Row) -> None:
    """Put a row into a file, at the end or in the place of the one of the same key.

    Raises:
        UserError: the file cannot be read or written.
    """
    write_table(path, Row, (read_rows(path) | {row.key: row}).values())
