"""Measured KL divergence of assignments: files are made by bof4 convert and judged by llama-perplexity."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from gguf_bof4.convert import convert
from gguf_bof4.divergence import distance, write_logits
from gguf_bof4.paths import write_text
from gguf_bof4.search.report import Point, recipe_of
from gguf_bof4.search.run import Assignment, Measured


class Judge:
    """Makes files of assignments in a temporary folder, and measures how far they are from the unquantized model."""

    def __init__(self, measured: Measured, text: Path, chunks: int, folder: Path) -> None:
        """Run the unquantized model.

        Args:
            text: to judge on.
            chunks: of 512 tokens.
            folder: for the distributions and files, empty.

        Raises:
            UserError: llama-perplexity failed, or the text is too short.
        """
        self._measured, self._chunks, self._folder = measured, chunks, folder
        self._logits = folder / "logits"
        write_logits(measured.model.path, text, chunks, self._logits, measured.settings.threads)

    def measure(self, assignment: Assignment) -> Point:
        """The divergence of one assignment, encoded by the encoder search with the importance matrix.

        Raises:
            UserError: the file cannot be made, or llama-perplexity failed.
        """
        threads = self._measured.settings.threads
        recipe, made = self._folder / "recipe.txt", self._folder / "made.gguf"
        write_text(recipe, recipe_of(self._measured, assignment))
        report = convert(
            self._measured.model.path, made, recipe=str(recipe), imatrix=str(self._measured.imatrix), opq=("off",),
            threads=threads, force=True,
        )  # fmt: skip
        found = distance(made, self._logits, self._chunks, threads)
        made.unlink()
        return Point(
            assignment.bits_per_weight, report.bytes_after, assignment.loss, found.mean_kld, found.mean_kld_error
        )


def measure_all(
    measured: Measured, assignments: Sequence[Assignment], text: Path, chunks: int
) -> list[Point]:
    """The divergences of assignments, in their order.

    Raises:
        UserError: as `Judge`.
    """
    with tempfile.TemporaryDirectory(prefix="bof4-search-") as folder:
        judge = Judge(measured, text, chunks, Path(folder))
        return [judge.measure(assignment) for assignment in assignments]
