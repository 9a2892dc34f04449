"""What rounds of measurements say: medians, and ratios within rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from gguf_bof4.bench.speed.files import RIVALS
from gguf_bof4.bench.speed.results import Row, is_generation, speed_variant
from gguf_bof4.bench.variants import Variant


@dataclass(frozen=True)
class Spread:
    """Figures of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises ValueError where there are none."""
        found = sorted(values)
        return cls(float(median(found)), found[0], found[-1])

    def text(self, digits: int) -> str:
        """Like 1.21 (1.18 to 1.24)."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


class Measured:
    """Complete rounds of one setup.

    Attributes:
        variants: in the order in which they were asked for.
        tests: likewise.
    """

    def __init__(self, rounds: Sequence[Sequence[Row]], variants: Sequence[Variant], tests: Sequence[str]) -> None:
        self.variants, self.tests, self.n_rounds = tuple(variants), tuple(tests), len(rounds)
        self._rounds = [{(row.variant, row.test): row for row in rows} for rows in rounds]
        # what the machine could do in a round is the most that it ever did in it
        self._bandwidths = [max(row.bandwidth for row in rows) for rows in rounds]

    def row(self, variant: Variant, test: str) -> Row:
        """Of the last round, for what is the same in all."""
        return self._rounds[-1][variant, test]

    def _over_rounds(self, figure: Callable[[dict[tuple[Variant, str], Row], float], float]) -> Spread:
        return Spread.of(figure(rows, gb_s) for rows, gb_s in zip(self._rounds, self._bandwidths, strict=True))

    @property
    def bandwidth(self) -> Spread:
        """GB/s read."""
        return Spread.of(self._bandwidths)

    def speed(self, variant: Variant, test: str) -> Spread:
        """Tokens a second."""
        return self._over_rounds(lambda rows, _: rows[variant, test].tokens_per_second)

    def ratio(self, variant: Variant, over: Variant, test: str) -> Spread:
        """Speed over speed of the same round."""
        return self._over_rounds(
            lambda rows, _: rows[variant, test].tokens_per_second / rows[over, test].tokens_per_second
        )

    def limit(self, variant: Variant, test: str) -> Spread:
        """Tokens a second if generating were nothing but reading the weights."""
        return self._over_rounds(lambda rows, gb_s: 1e9 * gb_s / rows[variant, test].bytes_per_token)

    def share(self, variant: Variant, test: str) -> Spread:
        """Speed of generation over that limit in the same round."""

        def of_round(rows: dict[tuple[Variant, str], Row], gb_s: float) -> float:
            row = rows[variant, test]
            return row.tokens_per_second * row.bytes_per_token / (1e9 * gb_s)

        return self._over_rounds(of_round)

    def fastest_rival(self, test: str) -> Variant | None:
        """The four-bit type of llama.cpp with the highest median; None where none was measured."""
        rivals = [v for v in map(speed_variant, RIVALS) if v in self.variants]
        return max(rivals, key=lambda v: self.speed(v, test).median, default=None)

    def sorted_variants(self, test: str) -> list[Variant]:
        """The fastest first."""
        return sorted(self.variants, key=lambda v: -self.speed(v, test).median)

    @property
    def generation(self) -> str | None:
        """The test that generates, if any."""
        return next(filter(is_generation, self.tests), None)
