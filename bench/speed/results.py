"""Every single measurement of speed, in a CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.bench.csv_file import read_table, write_table
from gguf_bof4.bench.variants import NO_LISTS, OUR_TYPES, Variant

_COMMAND = "bof4 bench speed"


GPU_BACKENDS = ("cuda", "vulkan")
"""Where layers were on GPUs, the `instructions` of rows begin with one of these: "vulkan: NVIDIA H200"."""


def is_gpu(instructions: str) -> bool:
    """Do these `instructions` of a row name a GPU?"""
    return instructions.partition(":")[0] in GPU_BACKENDS


@dataclass(frozen=True)
class Setup:
    """What speeds must have in common to be compared.

    Attributes:
        model: the name of the unquantized model.
        build: eight hexadecimal digits of a hash of the library with the kernels.
        instructions: that the library was built for, or the GPUs, as `GPU_BACKENDS` says.
        threads: of llama-bench, and of reading memory.
        repack: weights are repacked at load, where there are kernels for that.
        machine: the processor, as machine.py names it; empty in rows of before there was a name.
    """

    model: str
    build: str
    instructions: str
    threads: int
    repack: bool
    machine: str = ""

    @property
    def on_gpu(self) -> bool:
        return is_gpu(self.instructions)


@dataclass(frozen=True)
class Row:
    """One file in one round and one test.

    Attributes:
        model, build, instructions, threads, repack: the setup's; repack is 0 or 1.
        round: counted within a setup, from 1; every file is measured once in each.
        type, opq: of the file; opq is the quantile of its lists, or "off".
        bits_per_weight: of the matrices of the blocks, lists included.
        bytes_per_token: of weights and lists that generating a token reads.
        test: as llama-bench names it: pp256, a prompt of 256 tokens; tg64, generating 64; and tg16x4, generating 16 of
            each of 4 sequences at once.
        tokens_per_second: median of the repetitions.
        bandwidth: GB/s that the same threads read right before this file was measured; of a GPU 0, unknown
            (bof4-bench-cuda measures it).
        time: when, in UTC.
        machine: the setup's.
    """

    model: str
    build: str
    instructions: str
    threads: int
    repack: int
    round: int
    type: str
    opq: str
    bits_per_weight: float
    bytes_per_token: int
    test: str
    tokens_per_second: float
    bandwidth: float
    time: str
    machine: str = ""

    @property
    def setup(self) -> Setup:
        return Setup(self.model, self.build, self.instructions, self.threads, bool(self.repack), self.machine)

    @property
    def variant(self) -> Variant:
        return speed_variant(self.type, self.opq)


def speed_variant(type: str, opq: str = NO_LISTS) -> Variant:
    """A way to quantize; speed does not depend on the encoder, so each type has the fastest one."""
    return Variant(type, "absmax" if type in OUR_TYPES else "none", opq)


def speed_variants(types: Sequence[str], quantiles: Sequence[str]) -> tuple[Variant, ...]:
    """Every combination that exists: types of llama.cpp have no lists."""
    found = []
    for name in types:
        found += [speed_variant(name, q) for q in (quantiles if name in OUR_TYPES else (NO_LISTS,))]
    return tuple(found)


def label(variant: Variant) -> str:
    """The type and its lists; the encoder does not affect speed."""
    return variant.type if variant.opq == NO_LISTS else f"{variant.type}, lists {variant.opq}"


def is_generation(test: str) -> bool:
    """Does this test generate tokens of one sequence, which is bandwidth bound?"""
    return test.startswith("tg") and not is_batch(test)


def is_batch(test: str) -> bool:
    """Does this test generate tokens of several sequences at once?"""
    return test.startswith("tg") and "x" in test


def batch_test(generate: int, sequences: int) -> str:
    """The name of a test that generates `generate` tokens of each of several sequences at once."""
    return f"tg{generate}x{sequences}"


def describe(test: str) -> str:
    """What a test does."""
    number = test[2:]
    if test.startswith("pp"):
        return f"a prompt of {number} tokens"
    tokens, _, sequences = number.partition("x")
    return f"generating {tokens} tokens" + (f" of each of {sequences} sequences" if sequences else "")


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; none where it does not exist.

    Raises:
        UserError: it cannot be read, or a row is malformed.
    """
    return read_table(path, Row, _COMMAND)


def add_rows(path: Path, rows: Iterable[Row]) -> None:
    """Put rows at the end of a file.

    Raises:
        UserError: the file cannot be read or written.
    """
    write_table(path, Row, [*read_rows(path), *rows])


def rounds_of(rows: Iterable[Row], setup: Setup) -> dict[int, list[Row]]:
    """All rounds of a setup, by ascending number."""
    rounds: dict[int, list[Row]] = {}
    for row in rows:
        if row.setup == setup:
            rounds.setdefault(row.round, []).append(row)
    return dict(sorted(rounds.items()))


def complete_rounds(
    rows: Iterable[Row], setup: Setup, variants: Sequence[Variant], tests: Sequence[str]
) -> list[list[Row]]:
    """The rounds in which all of these were measured, without rows of other variants and tests.

    Incomplete rounds are left out: their rows cannot be compared with others of the same time.
    """
    wanted = {(variant, test) for variant in variants for test in tests}
    found = [[row for row in r if (row.variant, row.test) in wanted] for r in rounds_of(rows, setup).values()]
    return [r for r in found if {(row.variant, row.test) for row in r} == wanted]
