"""Single products on one thread, beside the roofline of the machine: `bof4 bench kernels`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4 import native
from gguf_bof4.bench.csv_file import read_table, write_table
from gguf_bof4.bench.speed.measure import Memory, build_id, instruction_set
from gguf_bof4.bench.speed.rounds import rotated
from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMATS

TYPES = ("Q4_0", "IQ4_NL", "IQ4_XS", "Q4_K", "MXFP4", *(fmt.name for fmt in FORMATS))
PLAIN = "plain"

_STREAMED = 2**28
"""Bytes of weights per column, more than any cache holds, so that all are read from memory."""

_RUNS, _ENOUGH_NS = 3, 1e8
"""Least number of runs, and least nanoseconds in all, in a round; the shortest run counts."""

_MOST_WARM_UP = 100
"""Runs before those that are measured: more than a choice of the prefetch distance or of the path takes."""

_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_COMMAND = "bof4 bench kernels"


@dataclass(frozen=True)
class Product:
    """What is measured.

    Attributes:
        type: of the weights.
        repacked: they are in the layout that llama.cpp gives them at load.
        columns: of the activations: 1 when a token is generated, more for prompts.
    """

    type: str
    repacked: bool
    columns: int


@dataclass(frozen=True)
class Row:
    """One product in one round.

    Attributes:
        build, instructions: of the library.
        rows, length: of the matrix.
        layout: the buffer type of repacked weights, or "plain".
        ps_per_weight: picoseconds for a weight and all columns.
        roofline_ps: the same at the roofline: with one column reading the weights at the bandwidth measured in this
            round, with more int8 dot products at the rate measured in registers; 0: not known.
        prefetch: bytes ahead that the kernel has chosen to prefetch weights for one column; -1: it chose none yet,
            -2: it makes no choice.
        path: "gemv" or "gemm", by which repacked weights were multiplied; of other layouts "".
    """

    build: str
    instructions: str
    threads: int
    rows: int
    length: int
    round: int
    type: str
    layout: str
    columns: int
    ps_per_weight: float
    roofline_ps: float
    prefetch: int
    path: str = ""


def last_cache_bytes() -> int:
    """Size of the largest cache that the operating system reports; 0 where it reports none."""
    sizes = [path.read_text().strip() for path in _CACHE.glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)


@contextlib.contextmanager
def _made(product: Product, weights: npt.NDArray[np.uint8], length: int, copies: int, threads: int) -> Iterator[object]:
    ffi, lib = native.library()
    pointer = ffi.new("bof4_timed_product **")
    number = int(gguf.GGMLQuantizationType[product.type])
    message = lib.bof4_timed_product_new(
        number, ffi.cast("void *", weights.ctypes.data), weights.shape[0], length, product.columns, copies,
        int(product.repacked), threads, pointer,
    )  # fmt: skip
    if message != ffi.NULL:
        text = ffi.string(message)
        raise UserError(text.decode() if isinstance(text, bytes) else text)
    try:
        yield pointer[0]
    finally:
        lib.bof4_timed_product_free(pointer[0])


def _shortest_ns(made: object, columns: int) -> float:
    _, lib = native.library()
    for _ in range(_MOST_WARM_UP):
        lib.bof4_timed_product_ns(made)  # finds its memory and frequency, how far ahead to prefetch, and its path
        if columns > 1 and lib.bof4_timed_product_path(made) != lib.BOF4_PATH_CHOOSING:
            break
        if columns == 1 and lib.bof4_timed_product_prefetch(made) != lib.BOF4_PREFETCH_CHOOSING:
            break
    times: list[float] = []
    while len(times) < _RUNS or sum(times) < _ENOUGH_NS:
        times.append(float(lib.bof4_timed_product_ns(made)))
        if times[-1] <= 0:
            raise UserError("the CPU backend failed to compute a product")
    return min(times)


def products(types: Sequence[str], columns: Sequence[int]) -> list[Product]:
    """Every combination; types that have no repacked layout are left out when they are measured."""
    return [Product(t, i, n) for n in columns for t in types for i in (True, False)]


class KernelBench:
    """One shape.

    Attributes:
        rows, length: of the matrix; length is a multiple of 256.
    """

    def __init__(self, types: Sequence[str], rows: int, length: int, threads: int) -> None:
        self.rows, self.length, self.threads = rows, length, threads
        self.build, self.instructions = build_id(), instruction_set()
        floats = np.random.default_rng(5).standard_normal((rows, length), dtype=np.float32)
        self._weights = {t: native.quantize(floats, gguf.GGMLQuantizationType[t]) for t in types}
        self._memory = Memory()
        self._streamed = max(_STREAMED, 4 * last_cache_bytes())

    def _roofline_ps(self, product: Product, bandwidth: float, rate: float) -> float:
        if product.columns > 1:
            return 1e3 * product.columns / (rate * self.threads) if rate else 0.0
        nbytes = self._weights[product.type].nbytes
        return 1e3 * nbytes / (self.rows * self.length) / bandwidth

    def round(self, number: int, order: Sequence[Product]) -> Iterator[Row]:
        """Measure each product once; those without a repacked layout are left out."""
        ffi, lib = native.library()
        bandwidth, rate = self._memory.bandwidth(self.threads), float(lib.bof4_int8_rate())
        for product in order:
            weights = self._weights[product.type]
            copies = max(1, self._streamed // weights.nbytes) if product.columns == 1 else 1
            with _made(product, weights, self.length, copies, self.threads) as made:
                name = ffi.string(lib.bof4_timed_product_layout(made))
                layout = name.decode() if isinstance(name, bytes) else name
                if product.repacked and layout == "CPU":
                    continue
                ns = _shortest_ns(made, product.columns)
                prefetch = int(lib.bof4_timed_product_prefetch(made))
                paths = {lib.BOF4_PATH_GEMM: "gemm", lib.BOF4_PATH_GEMV: "gemv"}
                path = paths.get(lib.bof4_timed_product_path(made), "")
            yield Row(
                build=self.build, instructions=self.instructions, threads=self.threads, rows=self.rows,
                length=self.length, round=number, type=product.type, layout=layout if product.repacked else PLAIN,
                columns=product.columns, ps_per_weight=1e3 * ns / (copies * self.rows * self.length),
                roofline_ps=self._roofline_ps(product, bandwidth, rate), prefetch=prefetch,
                path=path,
            )  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One product over all rounds, medians.

    Attributes:
        ps_per_weight: for all columns.
        of_roofline: the time at the roofline over the product's, in the same round; 0 where it is not known.
        prefetch, path: of the last round.
    """

    type: str
    layout: str
    ps_per_weight: float
    low: float
    high: float
    of_roofline: float
    prefetch: int
    path: str


def figures(rows: Sequence[Row], columns: int) -> list[Figure]:
    """The products with `columns` columns, the fastest first."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.columns == columns:
            grouped.setdefault((row.type, row.layout), []).append(row)
    found = []
    for (name, layout), of_product in grouped.items():
        times = [row.ps_per_weight for row in of_product]
        share = median(row.roofline_ps / row.ps_per_weight for row in of_product)
        last = of_product[-1]
        found.append(Figure(name, layout, median(times), min(times), max(times), share, last.prefetch, last.path))
    return sorted(found, key=lambda figure: figure.ps_per_weight)


def run(
    bench: KernelBench, chosen: Sequence[Product], n_rounds: int, output: Path | None, say: Callable[[str], None]
) -> list[Row]:
    """Rounds of all products, in another order each time; rows of earlier runs stay in `output`."""
    earlier = [] if output is None else read_table(output, Row, _COMMAND)  # before measuring: it may be malformed
    found: list[Row] = []
    for number in range(1, n_rounds + 1):
        found += bench.round(number, rotated(chosen, number))
        say(f"round {number} of {n_rounds}")
    if output is not None:
        write_table(output, Row, [*earlier, *found])
    return found
