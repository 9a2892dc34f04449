"""The measured rows as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from gguf_bof4.bench.results import Row


@dataclass(frozen=True)
class Mean:
    """The rows of one variant of one model, one for each text, and their means.

    Attributes:
        rows: by text.
    """

    rows: dict[str, Row]

    @property
    def first(self) -> Row:
        """A row, for the fields that are the same on every text."""
        return next(iter(self.rows.values()))

    @property
    def mean_kld(self) -> float:
        return fmean(row.mean_kld for row in self.rows.values())

    @property
    def kld_99_9(self) -> float:
        return fmean(row.kld_99_9 for row in self.rows.values())

    @property
    def same_top(self) -> float:
        return fmean(row.same_top for row in self.rows.values())

    @property
    def ppl_ratio(self) -> float:
        return fmean(row.ppl_ratio for row in self.rows.values())

    @property
    def minutes(self) -> float:
        """To make the file; 0: not measured."""
        return max(row.seconds for row in self.rows.values()) / 60


def means(rows: Iterable[Row], model: str) -> list[Mean]:
    """The variants of a model, by ascending size, then by ascending divergence."""
    grouped: dict[object, dict[str, Row]] = {}
    for row in rows:
        if row.model == model:
            grouped.setdefault(row.variant, {})[row.text] = row
    found = [Mean(by_text) for by_text in grouped.values()]
    return sorted(found, key=lambda mean: (round(mean.first.bits_per_weight, 3), mean.mean_kld))


def model_table(model: str, found: Sequence[Mean], texts: Sequence[str], chunks: int) -> Table:
    """One model: divergence on each text, and the means of everything over the texts."""
    table = Table(
        title=f"{model}: distance from the unquantized model, {chunks} chunks of 512 tokens a text; "
        f"means over {' and '.join(texts)}",
        title_justify="left",
    )
    for heading in ("type", "encoder"):
        table.add_column(heading, overflow="fold")
    on_texts = [f"KLD {text}" for text in texts]
    for heading in ("lists", "bits", *on_texts, "mean KLD", "99.9 % KLD", "same top", "PPL ratio", "minutes"):
        table.add_column(heading, justify="right")
    for mean in found:
        divergences = [
            f"{row.mean_kld:.4f} ± {row.mean_kld_error:.4f}" if (row := mean.rows.get(text)) else "" for text in texts
        ]
        complete = all(text in mean.rows for text in texts)
        averages = (
            [f"{mean.mean_kld:.4f}", f"{mean.kld_99_9:.3f}", f"{mean.same_top:.1f} %", f"{mean.ppl_ratio:.4f}"]
            if complete
            else [""] * 4
        )
        row = mean.first
        minutes = f"{mean.minutes:.1f}" if mean.minutes else ""
        table.add_row(row.label, row.encoder, row.opq, f"{row.bits_per_weight:.3f}", *divergences, *averages, minutes)
    return table
