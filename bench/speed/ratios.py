"""Medians of rounds of measurements, and of ratios within rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from gguf_bof4.bench.speed.files import FOUR_BIT_PEERS
from gguf_bof4.bench.speed.results import Row, is_generation, speed_variant
from gguf_bof4.bench.variants import Variant

GENERATION_PEER = "Q4_0"
"""The type of llama.cpp that generation is compared with, beside the fastest."""


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
        variants: in the order of the request.
        tests: likewise.
    """

    def __init__(self, rounds: Sequence[Sequence[Row]], variants: Sequence[Variant], tests: Sequence[str]) -> None:
        self.variants, self.tests, self.n_rounds = tuple(variants), tuple(tests), len(rounds)
        self._rounds = [{(row.variant, row.test): row for row in rows} for rows in rounds]
        # other processes can only lower a measured bandwidth: the highest of a round is the nearest
        self._bandwidths = [max(row.bandwidth for row in rows) for rows in rounds]

    def row(self, variant: Variant, test: str) -> Row:
        """The row of the last round, for the fields that are the same in all."""
        return self._rounds[-1][variant, test]

    def _over_rounds(self, figure: Callable[[dict[tuple[Variant, str], Row], float], float]) -> Spread:
        return Spread.of(figure(rows, gb_s) for rows, gb_s in zip(self._rounds, self._bandwidths, strict=True))

    @property
    def bandwidth(self) -> Spread:
        """Read bandwidth in GB/s."""
        return Spread.of(self._bandwidths)

    def speed(self, variant: Variant, test: str) -> Spread:
        """Tokens a second."""
        return self._over_rounds(lambda rows, _: rows[variant, test].tokens_per_second)

    def ratio(self, variant: Variant, over: Variant, test: str) -> Spread:
        """Speed over speed of the same round."""
        return self._over_rounds(
            lambda rows, _: rows[variant, test].tokens_per_second / rows[over, test].tokens_per_second
        )

    def bandwidth_bound(self, variant: Variant, test: str) -> Spread:
        """The bandwidth bound: tokens a second if generating took no longer than reading the weights."""
        return self._over_rounds(lambda rows, gb_s: 1e9 * gb_s / rows[variant, test].bytes_per_token)

    def of_bandwidth_bound(self, variant: Variant, test: str) -> Spread:
        """Speed of generation over that bound in the same round."""

        def of_round(rows: dict[tuple[Variant, str], Row], gb_s: float) -> float:
            row = rows[variant, test]
            return row.tokens_per_second * row.bytes_per_token / (1e9 * gb_s)

        return self._over_rounds(of_round)

    def fastest_peer(self, test: str) -> Variant | None:
        """The 4-bit type of llama.cpp with the highest median; None where none was measured."""
        peers = [v for v in map(speed_variant, FOUR_BIT_PEERS) if v in self.variants]
        return max(peers, key=lambda v: self.speed(v, test).median, default=None)

    def sorted_variants(self, test: str) -> list[Variant]:
        """The fastest first."""
        return sorted(self.variants, key=lambda v: -self.speed(v, test).median)

    @property
    def generation(self) -> str | None:
        """The test that generates, if any."""
        return next(filter(is_generation, self.tests), None)
