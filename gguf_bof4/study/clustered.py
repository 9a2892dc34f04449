"""LO-BCQ, locally optimal block clustered quantization (arXiv 2502.05376): codebooks for clusters of small blocks."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from gguf_bof4.errors import UserError
from gguf_bof4.paths import cache_root, write_text
from gguf_bof4.study.record import Format, Quantized, Tensor, choice, numbers, whole
from gguf_bof4.study.rounding import round_e4m3

RECIPE = 1
"""To be raised with every change of the solver's results."""

LEVELS = 16
LARGEST_SCALE = 448.0
SOLVED_NUMBERS = 2**18
"""Numbers that the solver looks at, at most: codebooks have 16 entries each."""

SEED = 0
FLAT = 1e-3
"""Relative decrease of the error in a round below which the solver has converged."""

POINTS = 2**11
"""Of the solver's grid, on each side of 0."""

MOST_ROUNDS = 60
LLOYD_STEPS = 4
"""Steps of Lloyd's iteration in each round: the next round continues them."""

Books = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Solution:
    """Codebooks and how the solver came to them.

    Attributes:
        books: float64 [count, 16], each ascending.
        errors: mean squared error of a normalized number after every half round; never rising.
    """

    books: Tensor
    errors: tuple[float, ...]


def _nearest(grid: Tensor, books: Tensor) -> Tensor:
    """Codes of the points of a grid in each codebook, [points] and [count, 16] to [count, points]."""
    middles = (books[:, 1:] + books[:, :-1]) / 2
    return torch.searchsorted(middles, grid.expand(len(books), -1).contiguous())


def _squared_errors(index: Tensor, grid: Tensor, books: Tensor) -> Tensor:
    """Squared error of each block in each codebook: indices of the grid [n, L] to float64 [n, count]."""
    at_points = torch.square(grid - books.gather(1, _nearest(grid, books))).T.contiguous()
    return at_points[index].sum(dim=1)


def _first_centres(blocks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: centres drawn in proportion to the squared distance from those before, [count, L]."""
    centres = blocks[torch.randint(len(blocks), (1,), generator=generator)]
    distance = torch.square(blocks - centres).sum(dim=1)
    while len(centres) < count:
        chances = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        drawn = blocks[torch.multinomial(chances, 1, generator=generator)]
        centres = torch.cat([centres, drawn])
        distance = torch.minimum(distance, torch.square(blocks - drawn).sum(dim=1))
    return centres


def _lloyd_steps(counts: Tensor, grid: Tensor, books: Tensor) -> Tensor:
    """Some steps of Lloyd's iteration of every codebook; a level without numbers stays.

    Args:
        counts: float64 [count, points], the numbers of the blocks of each codebook at the points of the grid.
    """
    for _ in range(LLOYD_STEPS):
        codes = _nearest(grid, books)
        mass = torch.zeros_like(books).scatter_add_(1, codes, counts)
        total = torch.zeros_like(books).scatter_add_(1, codes, counts * grid)
        books = torch.where(mass > 0, total / mass.clamp(min=1), books)
    return books


def solve(blocks: Tensor, count: int, seed: int = SEED) -> Solution:
    """Codebooks for clusters of blocks: alternate between choosing codebooks and fitting them.

    Neither step raises the error: each block takes the codebook with the least squared error, and each codebook is
    fitted to its blocks by steps of Lloyd's iteration from its last levels. Numbers are first rounded to a grid of
    POINTS for the largest one, a hundredth of the distance of the levels, so that a codebook is fitted to a histogram.

    Args:
        blocks: float32 [n, L], normalized.
        count: of codebooks.
        seed: of the first centres.
    """
    generator = torch.Generator().manual_seed(seed)
    if blocks.numel() > SOLVED_NUMBERS:
        blocks = blocks[torch.randperm(len(blocks), generator=generator)[: SOLVED_NUMBERS // blocks.shape[1]]]
    centres = _first_centres(blocks, count, generator)
    chosen = torch.cdist(blocks, centres).argmin(dim=1)
    largest = float(blocks.abs().max())
    grid = torch.arange(-POINTS, POINTS + 1, dtype=torch.float64) * (largest / POINTS)
    index = torch.round(blocks.to(torch.float64) * (POINTS / largest)).to(torch.int64) + POINTS

    def histograms() -> Tensor:
        places = (chosen[:, None] * len(grid) + index).reshape(-1)
        return torch.bincount(places, minlength=count * len(grid)).reshape(count, -1).to(torch.float64)

    counts = histograms()
    shares = counts.cumsum(dim=1) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    middles = ((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).expand(count, -1).contiguous()
    books = grid[torch.searchsorted(shares, middles).clamp(max=len(grid) - 1)]
    errors = [float(_squared_errors(index, grid, books).gather(1, chosen[:, None]).mean()) / blocks.shape[1]]
    for _ in range(MOST_ROUNDS):
        books = _lloyd_steps(counts, grid, books)
        by_book = _squared_errors(index, grid, books)
        fitted = float(by_book.gather(1, chosen[:, None]).mean()) / blocks.shape[1]
        chosen = by_book.argmin(dim=1)
        counts = histograms()
        errors += [fitted, float(by_book.amin(dim=1).mean()) / blocks.shape[1]]
        if errors[-3] - errors[-1] <= FLAT * errors[-3]:
            break
    return Solution(books, tuple(errors))


def rounded(books: Tensor, top: int) -> Books:
    """Codebooks with their entries rounded to integers from -top to top, each ascending."""
    found = torch.round(books).clamp(-top, top).to(torch.int64).sort(dim=1).values
    return tuple(tuple(int(entry) for entry in book) for book in found)


@functools.cache
def _tables(books: Books, top: int) -> Tensor:
    """The nearest entry of each codebook for y in ((k - 1)/2, k/2], at k + 2 top + 1; float32 [4 top + 3, count].

    Entries are integers, so midpoints are multiples of 1/2, and k says on which side of each of them y lies.
    """
    twice = torch.arange(-2 * top - 1, 2 * top + 2)
    columns = []
    for entries in books:
        book = torch.tensor(entries)
        columns.append(book[torch.searchsorted(book[1:] + book[:-1], twice)])
    return torch.stack(columns, dim=1).to(torch.float32)


@dataclass(frozen=True)
class LOBCQ(Format):
    """Blocks of Lb numbers choose one of Nc codebooks of 16 integers; arrays of LA numbers share an E4M3 scale.

    Attributes:
        Lb, LA, Nc: numbers in a block and in an array, codebooks.
        b: bits of an entry.
        books: "gaussian": fitted to Gaussian numbers, once for all; "model": to samples of the model's own numbers,
            once for all weights and once for all activations; "tensor": to each tensor, for weights only.
        table: the codebooks, where they have been fitted.
    """

    family: ClassVar[str] = "LO-BCQ"
    summary: ClassVar[str] = "blocks choose one of Nc codebooks of 16 six-bit integers; E4M3 scales for LA"

    Lb: int = whole(8, 1, 64)
    LA: int = whole(64, 1, 4096)
    Nc: int = whole(8, 1, 64)
    b: int = whole(6, 3, 8)
    books: str = choice("gaussian", "model", "tensor")
    table: Books = field(default=(), repr=False, metadata={"hidden": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.LA % self.Lb:
            raise UserError(f"format {self.family}: arrays of LA={self.LA} are no multiple of blocks of Lb={self.Lb}")

    @property
    def for_activations(self) -> bool:
        return self.books != "tensor"

    @property
    def needs_samples(self) -> bool:
        return self.books == "model" and not self.table

    @property
    def multiple(self) -> int:
        return self.LA

    @property
    def top(self) -> int:
        """The largest entry."""
        return int(2 ** (self.b - 1)) - 1

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        n = numbers(shape)
        selectors = math.ceil(math.log2(self.Nc)) * n // self.Lb
        return 4 * n + selectors + 8 * n // self.LA + 32 + self.Nc * LEVELS * self.b

    def fitted(self, samples: Tensor) -> LOBCQ:
        """The same format with codebooks for these numbers, float32 [..., n], n a multiple of LA."""
        arrays = samples.reshape(-1, self.LA)
        maxima = arrays.abs().amax(dim=1, keepdim=True)
        arrays, maxima = arrays[maxima[:, 0] > 0], maxima[maxima[:, 0] > 0]
        if len(arrays) == 0:
            return self.replaced(table=rounded(torch.zeros(self.Nc, LEVELS), self.top))
        solution = solve((arrays * (self.top / maxima)).reshape(-1, self.Lb), self.Nc)
        return self.replaced(table=rounded(solution.books, self.top))

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        if not self.table:
            return self._with_books(x).decoded(x, importance)
        largest = float(x.abs().max())
        values = x.clone() if largest == 0 else self._values(x, largest)
        return Quantized(values, self.stored_bits(tuple(x.shape)))

    def _with_books(self, x: Tensor) -> LOBCQ:
        if self.books == "model":
            raise UserError(f"format {self.name}: codebooks are fitted to a model, and there is none here")
        if self.books == "tensor":
            return self.fitted(x)
        return self.replaced(table=_gaussian_books(self))

    def _values(self, x: Tensor, largest: float) -> Tensor:
        arrays = x.reshape(-1, self.LA)
        of_tensor = self.top / largest
        if not math.isfinite(float(torch.tensor(of_tensor, dtype=torch.float32))):
            return torch.zeros_like(x)  # of subnormal numbers only
        ratio = largest / arrays.abs().amax(dim=1, keepdim=True).to(torch.float64)
        scale = (round_e4m3(ratio.clamp(max=LARGEST_SCALE)) * of_tensor).to(torch.float32)
        y = arrays * scale
        index = (torch.ceil(2 * y).clamp(-2 * self.top - 1, 2 * self.top + 1) + (2 * self.top + 1)).to(torch.int64)
        rounded_by_book = _tables(self.table, self.top)[index].reshape(-1, self.Lb, self.Nc)
        errors = torch.square(y.reshape(-1, self.Lb, 1) - rounded_by_book).sum(dim=1)
        chosen = errors.argmin(dim=1)[:, None, None].expand(-1, self.Lb, 1)
        found = rounded_by_book.gather(2, chosen).reshape(arrays.shape)
        return (found / scale).reshape(x.shape)


_GAUSSIAN_SAMPLES = 2**18


@functools.cache
def _gaussian_books(fmt: LOBCQ) -> Books:
    """Codebooks for Gaussian numbers, from the cache or computed."""
    path = cache_root() / "study" / f"lo-bcq-{RECIPE}-{fmt.Lb}-{fmt.LA}-{fmt.Nc}-{fmt.b}.json"
    try:
        found = json.loads(path.read_text())
        return tuple(tuple(int(entry) for entry in book) for book in found)
    except (OSError, ValueError, TypeError):
        generator = torch.Generator().manual_seed(SEED)
        n = _GAUSSIAN_SAMPLES - _GAUSSIAN_SAMPLES % fmt.LA
        books = fmt.fitted(torch.randn(n, generator=generator)).table
        write_text(path, json.dumps(books))
        return books
