"""What this project promises of its types' speed, as ratios within rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf_bof4.bench.speed.ratios import Measured, Spread
from gguf_bof4.bench.speed.results import ON_GPU, is_generation, speed_variant

PROMPT_LIMITS = {"BOF4_S": 1.20, "BOF4_K": 1.05}
PROMPT_LIMITS_AVX2 = {"BOF4_S": 1.10, "BOF4_K": 1.00}
"""Over the fastest four-bit type of llama.cpp, for prompts; the second in a build that has AVX2 and no dot products."""

GENERATION_PEER, GENERATION_LIMIT = "Q4_0", 1.05
SHARE_LIMIT = 0.88
"""Of what the measured bandwidth allows."""


@dataclass(frozen=True)
class Outcome:
    """A bar and what was measured; `ratio` is None where something is missing.

    Attributes:
        title: what is compared.
        limit: the median is to be at least this.
        missing: what would have to be measured.
    """

    title: str
    limit: float
    ratio: Spread | None = None
    missing: str = ""

    @property
    def met(self) -> bool | None:
        """None where it cannot be told."""
        return None if self.ratio is None else self.ratio.median >= self.limit

    @property
    def verdict(self) -> str:
        """In words, with by how much a bar is missed."""
        if self.ratio is None:
            return f"not measured: {self.missing}"
        return "met" if self.met else f"missed by {100 * (1 - self.ratio.median / self.limit):.1f} %"


def _prompt(measured: Measured, test: str, name: str, limit: float) -> Outcome:
    variant, rival = speed_variant(name), measured.fastest_rival(test)
    if variant not in measured.variants or rival is None:
        missing = name if rival is not None else "types of llama.cpp"
        return Outcome(f"{test}: {name} over the fastest of llama.cpp", limit, missing=missing)
    return Outcome(f"{test}: {name} over {rival.type}, the fastest", limit, measured.ratio(variant, rival, test))


def _generation(measured: Measured, test: str, name: str) -> Iterator[Outcome]:
    variant, peer = speed_variant(name), speed_variant(GENERATION_PEER)
    missing = [v.type for v in (variant, peer) if v not in measured.variants]
    title = f"{test}: {name} over {GENERATION_PEER}"
    ratio = None if missing else measured.ratio(variant, peer, test)
    yield Outcome(title, GENERATION_LIMIT, ratio, " and ".join(missing))
    share = measured.share(variant, test) if variant in measured.variants else None
    yield Outcome(f"{test}: {name} over what reading its weights allows", SHARE_LIMIT, share, name)


def judge(measured: Measured, instructions: str) -> tuple[Outcome, ...]:
    """Every bar of every test that was run; none on a GPU, where bof4-bench-cuda has them for single products.

    Args:
        instructions: that the library was built for, or ON_GPU.
    """
    if instructions == ON_GPU:
        return ()
    limits = PROMPT_LIMITS_AVX2 if instructions == "avx2" else PROMPT_LIMITS
    found: list[Outcome] = []
    for test in measured.tests:
        for name, limit in limits.items():
            if is_generation(test):
                found += _generation(measured, test, name)
            else:
                found.append(_prompt(measured, test, name, limit))
    return tuple(found)
