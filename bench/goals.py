"""What this project wants of its types, as ratios of measured figures: shown by `bof4 bench ... --goals`.

Users compare types by the tables of `quality` and `speed`; goals are for those who work on the project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from gguf_bof4.bench.results import Row
from gguf_bof4.bench.speed.ratios import GENERATION_PEER, Measured, Spread
from gguf_bof4.bench.speed.results import is_batch, is_generation, is_gpu, speed_variant
from gguf_bof4.bench.variants import Variant
from gguf_bof4.convert.options import DEFAULT_OPQ

SMALL = ("smol", "gemma")
LARGE = ("qwen",)


@dataclass(frozen=True)
class QualityGoal:
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


QUALITY_GOALS = (
    QualityGoal(LARGE, Variant("BOF4_K", "search"), Variant("Q4_K", "none"), 0.80),
    QualityGoal(LARGE, Variant("BOF4_K", "search"), Variant("IQ4_NL", "none"), 0.80),
    QualityGoal(SMALL, Variant("BOF4_S", "search", DEFAULT_OPQ), Variant("IQ4_NL", "none"), 1.00, fewer_bits=True),
    QualityGoal(LARGE, Variant("BOF4_K", "random"), Variant("Q4_K", "none"), 0.80),
    QualityGoal(LARGE, Variant("BOF4_K", "random"), Variant("IQ4_NL", "none"), 0.80),
    QualityGoal(SMALL, Variant("BOF4_S", "random", DEFAULT_OPQ), Variant("IQ4_NL", "none"), 1.00, fewer_bits=True),
    QualityGoal(LARGE, Variant("BOF4_K", "imatrix"), Variant("Q4_K", "imatrix"), 0.75),
    QualityGoal(SMALL, Variant("BOF4_S", "imatrix", DEFAULT_OPQ), Variant("IQ4_NL", "imatrix"), 1.10),
    QualityGoal(LARGE, Variant("BOF4_K", "gptq"), Variant("BOF4_K", "imatrix"), 0.70),
    QualityGoal(LARGE, Variant("BOF4_K", "gptq"), Variant("Q5_0", "imatrix"), None),
    QualityGoal(SMALL, Variant("BOF4_S", "gptq", DEFAULT_OPQ), Variant("IQ4_NL", "imatrix"), 0.85),
    QualityGoal(SMALL, Variant("Q4_K", "gptq"), Variant("Q4_K", "imatrix"), 0.75),
)
"""BOF4_K on the large model only: in the small ones most rows are too short for it, and fall back to other types."""

PROMPT_LIMITS = {"BOF4_S": 1.30, "BOF4_K": 1.20}
PROMPT_LIMITS_AVX2 = {"BOF4_S": 1.15, "BOF4_K": 1.15}
"""Over the fastest 4-bit type of llama.cpp, for prompts; the second in a build that has AVX2 and no VNNI."""

BATCH_LIMIT = 1.15
"""Over the fastest 4-bit type of llama.cpp, for sequences that generate at once."""

GENERATION_LIMIT = 1.06
"""Over GENERATION_PEER."""

BANDWIDTH_LIMIT = 0.85
"""Of the tokens per second that the measured read bandwidth allows."""


@dataclass(frozen=True)
class QualityOutcome:
    """A goal and the figures that it is judged by; `ratio` is None where rows are missing.

    Attributes:
        bits: per weight of the first variant and of the second.
        missing: what would have to be measured.
    """

    goal: QualityGoal
    ratio: float | None = None
    bits: tuple[float, float] = (0.0, 0.0)
    missing: tuple[str, ...] = ()

    @property
    def met(self) -> bool | None:
        """None where it cannot be told, or there is no limit."""
        if self.ratio is None or self.goal.limit is None:
            return None
        return self.ratio <= self.goal.limit and (not self.goal.fewer_bits or self.bits[0] < self.bits[1])

    @property
    def verdict(self) -> str:
        """In words, with the percentage by which a goal is missed."""
        if self.ratio is None:
            return f"not measured: {', '.join(self.missing)}"
        if self.goal.limit is None:
            return "no limit"
        if self.met:
            return "met"
        if self.ratio <= self.goal.limit:
            return "missed, not smaller"
        return f"missed by {100 * (self.ratio / self.goal.limit - 1):.1f} %"


def judge_quality(
    rows: Iterable[Row], texts: Sequence[str], goals: Sequence[QualityGoal] = QUALITY_GOALS
) -> tuple[QualityOutcome, ...]:
    """What the rows say about each goal.

    Args:
        rows: of one number of chunks.
        texts: that the means go over; a goal is judged when the rows of all of them are there.
    """
    found = {(row.model, row.text, row.variant): row for row in rows}

    def outcome(goal: QualityGoal) -> QualityOutcome:
        means, bits, missing = [], [], []
        for variant in (goal.ours, goal.theirs):
            wanted = [(model, text, variant) for model in goal.models for text in texts]
            lacking = dict.fromkeys(model for model, text, _ in wanted if (model, text, variant) not in found)
            missing += [f"{variant} of {' and '.join(lacking)}"] if lacking else []
            there = [found[key] for key in wanted if key in found]
            means.append(fmean(row.mean_kld for row in there) if there else 0.0)
            bits.append(fmean(row.bits_per_weight for row in there) if there else 0.0)
        if missing:
            return QualityOutcome(goal, missing=tuple(missing))
        return QualityOutcome(goal, means[0] / means[1], (bits[0], bits[1]))

    return tuple(outcome(goal) for goal in goals)


def quality_table(outcomes: Sequence[QualityOutcome]) -> Table:
    """Each goal, its figure and whether it is met."""
    table = Table(title="goals: mean KLD over mean KLD, means over models and texts", title_justify="left")
    table.add_column("comparison", overflow="fold")
    for heading in ("bits", "ratio", "at most"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    for o in outcomes:
        bits = "" if o.ratio is None else f"{o.bits[0]:.2f} : {o.bits[1]:.2f}"
        ratio = "" if o.ratio is None else f"{o.ratio:.3f}"
        limit = "" if o.goal.limit is None else f"{o.goal.limit:.2f}"
        table.add_row(o.goal.title, bits, ratio, limit, o.verdict)
    return table


@dataclass(frozen=True)
class SpeedOutcome:
    """A goal and what was measured; `ratio` is None where something is missing.

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
        """In words, with the percentage by which a goal is missed."""
        if self.ratio is None:
            return f"not measured: {self.missing}"
        return "met" if self.met else f"missed by {100 * (1 - self.ratio.median / self.limit):.1f} %"


def _over_fastest(measured: Measured, test: str, name: str, limit: float) -> SpeedOutcome:
    variant, peer = speed_variant(name), measured.fastest_peer(test)
    if variant not in measured.variants or peer is None:
        missing = name if peer is not None else "types of llama.cpp"
        return SpeedOutcome(f"{test}: {name} over the fastest of llama.cpp", limit, missing=missing)
    return SpeedOutcome(f"{test}: {name} over {peer.type}, the fastest", limit, measured.ratio(variant, peer, test))


def _generation(measured: Measured, test: str, name: str) -> Iterator[SpeedOutcome]:
    variant, peer = speed_variant(name), speed_variant(GENERATION_PEER)
    missing = [v.type for v in (variant, peer) if v not in measured.variants]
    ratio = None if missing else measured.ratio(variant, peer, test)
    yield SpeedOutcome(f"{test}: {name} over {GENERATION_PEER}", GENERATION_LIMIT, ratio, " and ".join(missing))
    of_bound = measured.of_bandwidth_bound(variant, test) if variant in measured.variants else None
    yield SpeedOutcome(f"{test}: {name} over the bandwidth bound", BANDWIDTH_LIMIT, of_bound, name)


def judge_speed(measured: Measured, instructions: str) -> tuple[SpeedOutcome, ...]:
    """Every goal of every test that was run; none on a GPU, where bof4-bench-cuda measures single products.

    Args:
        instructions: that the library was built for, or the GPUs (`results.GPU_BACKENDS`).
    """
    if is_gpu(instructions):
        return ()
    limits = PROMPT_LIMITS_AVX2 if instructions == "avx2" else PROMPT_LIMITS
    found: list[SpeedOutcome] = []
    for test in measured.tests:
        for name, limit in limits.items():
            if is_generation(test):
                found += _generation(measured, test, name)
            elif is_batch(test):
                found.append(_over_fastest(measured, test, name, BATCH_LIMIT))
            else:
                found.append(_over_fastest(measured, test, name, limit))
    return tuple(found)


def speed_table(outcomes: Sequence[SpeedOutcome]) -> Table:
    """Each goal, its figure and whether it is met."""
    table = Table(title="goals: speed over speed of the same round, medians over rounds", title_justify="left")
    table.add_column("comparison", overflow="fold")
    for heading in ("ratio", "at least"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    for o in outcomes:
        table.add_row(o.title, "" if o.ratio is None else o.ratio.text(3), f"{o.limit:.2f}", o.verdict)
    return table
