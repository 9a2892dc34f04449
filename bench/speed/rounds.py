"""Plan and run the speed bench: every file once per round, so that other load on the machine affects all equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gguf_bof4.bench.speed.files import Files
from gguf_bof4.bench.speed.measure import BATCH_TOKENS, Memory, Speed, batched_bench, llama_bench
from gguf_bof4.bench.speed.results import Row, Setup, add_rows, batch_test, complete_rounds, label, rounds_of
from gguf_bof4.bench.variants import Variant

Say = Callable[[str], None]
_Item = TypeVar("_Item")

_PROMPT_SECONDS, _BATCH_SECONDS, _GENERATION_SECONDS = 3.1e-12, 6e-12, 1.5e-11
"""Seconds for each weight and token, on two cores of a server."""

_LOADING_SECONDS, _MAKING_SECONDS = 1.5e-9, 2.5e-8
"""Seconds for each weight."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        prompts: tokens of each prompt.
        generate: tokens to generate; 0: none.
        batches: numbers of sequences that generate BATCH_TOKENS tokens each, at once.
        repetitions: of a test within a round.
        gpu_layers: that go to a GPU.
        n_rounds: complete rounds wanted in all.
        there: complete rounds in the CSV file.
        first: the number of the first new round.
    """

    setup: Setup
    variants: tuple[Variant, ...]
    prompts: tuple[int, ...]
    generate: int
    batches: tuple[int, ...]
    repetitions: int
    gpu_layers: int
    n_rounds: int
    there: int
    first: int

    @property
    def numbers(self) -> range:
        """Of the rounds to measure."""
        return range(self.first, self.first + max(0, self.n_rounds - self.there))

    @property
    def tests(self) -> tuple[str, ...]:
        return names_of_tests(self.prompts, self.generate, self.batches)

    def round_seconds(self, n_weights: float) -> float:
        """An estimate of one round of a model of `n_weights` weights."""
        prompt_tokens = sum(self.prompts) * (self.repetitions + 1)
        generated = (self.generate + BATCH_TOKENS * len(self.batches)) * self.repetitions
        together = _BATCH_SECONDS * BATCH_TOKENS * sum(self.batches) * self.repetitions
        loading = _LOADING_SECONDS * (2 if self.batches else 1)
        of_file = _PROMPT_SECONDS * prompt_tokens + _GENERATION_SECONDS * generated + together + loading
        return len(self.variants) * (n_weights * of_file + 1)

    def making_seconds(self, n_weights: float) -> float:
        """An estimate for all files."""
        return len(self.variants) * _MAKING_SECONDS * n_weights


def names_of_tests(prompts: Sequence[int], generate: int, batches: Sequence[int] = ()) -> tuple[str, ...]:
    """The tests as llama-bench names them, and those of batches."""
    one = (f"tg{generate}",) if generate else ()
    return (*(f"pp{n}" for n in prompts), *one, *(batch_test(BATCH_TOKENS, n) for n in batches))


def make_plan(
    setup: Setup,
    variants: Sequence[Variant],
    prompts: Sequence[int],
    generate: int,
    batches: Sequence[int],
    repetitions: int,
    gpu_layers: int,
    n_rounds: int,
    rows: Sequence[Row],
    again: bool = False,
) -> Plan:
    """As many rounds as are missing.

    Args:
        rows: of the CSV file.
        again: ignore the rounds in it.
    """
    there = 0 if again else len(complete_rounds(rows, setup, variants, names_of_tests(prompts, generate, batches)))
    first = max(rounds_of(rows, setup), default=0) + 1
    return Plan(
        setup, tuple(variants), tuple(prompts), generate, tuple(batches), repetitions, gpu_layers, n_rounds, there,
        first,
    )  # fmt: skip


def rotated(items: Sequence[_Item], number: int) -> list[_Item]:
    """The items in the order of a round: another first one every two rounds, the second of them backwards, so that none
    always follows the same."""
    at = number // 2 % len(items)
    order = [*items[at:], *items[:at]]
    return order[::-1] if number % 2 else order


def _measure(plan: Plan, model: Path) -> list[Speed]:
    s = plan.setup
    speeds = []
    if plan.prompts or plan.generate:
        speeds += llama_bench(
            model, plan.prompts, plan.generate, s.threads, s.repack, plan.repetitions, plan.gpu_layers
        )
    if plan.batches:
        speeds += batched_bench(model, plan.batches, s.threads, s.repack, plan.repetitions, plan.gpu_layers)
    return speeds


def run(plan: Plan, files: Files, output: Path, say: Say) -> None:
    """Make the files and run the rounds; every measurement is written to `output` at once.

    Args:
        say: called with lines that report progress.

    Raises:
        UserError: a file cannot be made or run, or the disk is too small.
    """
    files.check_disk(plan.variants)
    made = {}
    for variant in plan.variants:
        if files.missing([variant]):
            say(f"quantizing {plan.setup.model} to {label(variant)}")
        made[variant] = files.get(variant)
        if others := made[variant].others:
            counts = ", ".join(f"{count} of its matrices are {name}" for name, count in others.items())
            say(f"{label(variant)}: {counts}, whose rows are too short for it")
    memory = None if plan.setup.on_gpu else Memory()
    started = time.monotonic()
    for done, number in enumerate(plan.numbers):
        for variant in rotated(plan.variants, number):
            file = made[variant]
            bandwidth = 0.0 if memory is None else memory.bandwidth(plan.setup.threads)
            speeds = _measure(plan, file.path)
            s = plan.setup
            add_rows(
                output,
                [
                    Row(
                        model=s.model, build=s.build, instructions=s.instructions, threads=s.threads,
                        repack=int(s.repack), round=number, type=variant.type, opq=variant.opq,
                        bits_per_weight=file.bits_per_weight, bytes_per_token=file.bytes_per_token,
                        test=speed.test, tokens_per_second=speed.tokens_per_second, bandwidth=bandwidth,
                        time=speed.time, machine=s.machine,
                    )
                    for speed in speeds
                ],
            )  # fmt: skip
            figures = ", ".join(f"{speed.test} {speed.tokens_per_second:.1f}" for speed in speeds)
            what = f"round {plan.there + done + 1} of {plan.n_rounds}  {label(variant)}"
            say(f"{what}: {figures} tokens/s" + (f"; {bandwidth:.1f} GB/s read" if bandwidth else ""))
        left = (time.monotonic() - started) / (done + 1) * (len(plan.numbers) - done - 1)
        if left:
            say(f"about {left / 60:.0f} min left")
