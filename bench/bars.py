"""What this project promises of its types' fidelity, as ratios of measured rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from gguf_bof4.bench.results import Row
from gguf_bof4.bench.variants import Variant
from gguf_bof4.convert.options import DEFAULT_OPQ

SMALL = ("smol", "gemma")
LARGE = ("qwen",)


@dataclass(frozen=True)
class Bar:
    """The mean KL divergence of one variant over that of another, means over models and texts.

    Attributes:
        limit: the ratio is to be at most this; None: it is only shown.
        fewer_bits: the first must also be smaller.
    """

    models: tuple[str, ...]
    ours: Variant
    theirs: Variant
    limit: float | None
    fewer_bits: bool = False

    @property
    def title(self) -> str:
        smaller = ", at fewer bits" if self.fewer_bits else ""
        return f"{' + '.join(self.models)}: {self.ours} over {self.theirs}{smaller}"


BARS = (
    Bar(LARGE, Variant("BOF4_K", "search"), Variant("Q4_K", "none"), 0.80),
    Bar(LARGE, Variant("BOF4_K", "search"), Variant("IQ4_NL", "none"), 0.80),
    Bar(SMALL, Variant("BOF4_S", "search", DEFAULT_OPQ), Variant("IQ4_NL", "none"), 1.00, fewer_bits=True),
    Bar(LARGE, Variant("BOF4_K", "random"), Variant("Q4_K", "none"), 0.80),
    Bar(LARGE, Variant("BOF4_K", "random"), Variant("IQ4_NL", "none"), 0.80),
    Bar(SMALL, Variant("BOF4_S", "random", DEFAULT_OPQ), Variant("IQ4_NL", "none"), 1.00, fewer_bits=True),
    Bar(LARGE, Variant("BOF4_K", "imatrix"), Variant("Q4_K", "imatrix"), 0.75),
    Bar(SMALL, Variant("BOF4_S", "imatrix", DEFAULT_OPQ), Variant("IQ4_NL", "imatrix"), 1.10),
    Bar(LARGE, Variant("BOF4_K", "gptq"), Variant("BOF4_K", "imatrix"), 0.70),
    Bar(LARGE, Variant("BOF4_K", "gptq"), Variant("Q5_0", "imatrix"), None),
    Bar(SMALL, Variant("BOF4_S", "gptq", DEFAULT_OPQ), Variant("IQ4_NL", "imatrix"), 0.85),
)
"""A model's rows that fall back are no measurement of the type: hence BOF4_K on the large model only."""


@dataclass(frozen=True)
class Outcome:
    """A bar and the figures that it is judged by; `ratio` is None where rows are missing.

    Attributes:
        bits: per weight of the first variant and of the second.
        missing: what would have to be measured.
    """

    bar: Bar
    ratio: float | None = None
    bits: tuple[float, float] = (0.0, 0.0)
    missing: tuple[str, ...] = ()

    @property
    def met(self) -> bool | None:
        """None where it cannot be told, or there is no limit."""
        if self.ratio is None or self.bar.limit is None:
            return None
        return self.ratio <= self.bar.limit and (not self.bar.fewer_bits or self.bits[0] < self.bits[1])

    @property
    def verdict(self) -> str:
        """In words, with by how much a bar is missed."""
        if self.ratio is None:
            return f"not measured: {', '.join(self.missing)}"
        if self.bar.limit is None:
            return "no bar, as low as can be had"
        if self.met:
            return "met"
        by = f" by {100 * (self.ratio / self.bar.limit - 1):.1f} %" if self.ratio > self.bar.limit else ", not smaller"
        return f"missed{by}"


def judge(rows: Iterable[Row], texts: Sequence[str], bars: Sequence[Bar] = BARS) -> tuple[Outcome, ...]:
    """What the rows say about each bar.

    Args:
        rows: of one number of chunks.
        texts: that the means go over; a bar is judged when the rows of all of them are there.
    """
    found = {(row.model, row.text, row.variant): row for row in rows}

    def outcome(bar: Bar) -> Outcome:
        means, bits, missing = [], [], []
        for variant in (bar.ours, bar.theirs):
            wanted = [(model, text, variant) for model in bar.models for text in texts]
            lacking = dict.fromkeys(model for model, text, _ in wanted if (model, text, variant) not in found)
            missing += [f"{variant} of {' and '.join(lacking)}"] if lacking else []
            there = [found[key] for key in wanted if key in found]
            means.append(fmean(row.mean_kld for row in there) if there else 0.0)
            bits.append(fmean(row.bits_per_weight for row in there) if there else 0.0)
        if missing:
            return Outcome(bar, missing=tuple(missing))
        return Outcome(bar, means[0] / means[1], (bits[0], bits[1]))

    return tuple(outcome(bar) for bar in bars)
