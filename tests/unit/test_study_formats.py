"""The formats of the study against slow scalar definitions, on random and adversarial blocks."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from command_line import bof4

from gguf_bof4.bench.nf4 import levels as nf4_levels
from gguf_bof4.codebook import expected_error, theoretical_law
from gguf_bof4.errors import UserError
from gguf_bof4.study import clustered
from gguf_bof4.study.adaptive import AAAC, Any4
from gguf_bof4.study.blockwise import LevelFormat, outlier_threshold
from gguf_bof4.study.clustered import LOBCQ
from gguf_bof4.study.levels import af4_levels
from gguf_bof4.study.record import Format
from gguf_bof4.study.registry import FAMILIES, default_of, parse_format
from gguf_bof4.study.rounding import nearest_codes

AF4_64 = (
    -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0,
    0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0,
)  # fmt: skip
"""As bitsandbytes has them for blocks of 64."""

WIDTH = 64
Blocks = list[list[float]]


def adversarial() -> torch.Tensor:
    """Rows of 64: zeros, one element, equal magnitudes, powers of two, subnormals, outliers, ordinary ones."""
    generator = np.random.default_rng(1)
    ordinary = generator.standard_normal((12, WIDTH))
    rows = np.zeros((11, WIDTH))
    rows[1, 5] = 0.3
    rows[2, 40] = -1e-3
    rows[3] = 0.25
    rows[4] = np.where(np.arange(WIDTH) % 2, -0.7, 0.7)
    rows[5] = 2.0 ** -(np.arange(WIDTH) % 20) * np.where(np.arange(WIDTH) % 3, 1, -1)
    rows[6] = 1e-41 * np.arange(-32, 32)
    rows[7] = ordinary[0] * 1e-3
    rows[7, 17] = 60.0
    rows[8] = ordinary[1]
    rows[8, 0] = -900.0
    rows[9] = np.linspace(-7, 7, WIDTH)
    rows[10] = np.arange(WIDTH) / 2 - 16
    everything = np.concatenate([rows, ordinary * 0.02, ordinary[:4] * 3])
    return torch.from_numpy(everything.astype(np.float32))


def blocks_of(x: torch.Tensor, size: int) -> Blocks:
    return [[float(v) for v in block] for block in x.reshape(-1, size).to(torch.float64)]


def decoded(fmt: Format, x: torch.Tensor) -> Blocks:
    return blocks_of(fmt.quantize(x).values, fmt.multiple if fmt.multiple > 1 else x.shape[-1])


def floor_log2(x: float) -> int:
    return math.frexp(x)[1] - 1


def ceil_log2(x: float) -> int:
    mantissa, exponent = math.frexp(x)
    return exponent - 1 if mantissa == 0.5 else exponent


def fp16(x: float) -> float:
    return float(np.float16(min(max(x, -65504.0), 65504.0)))


def check_nearest(values: Sequence[float], found: Sequence[float], representable: Sequence[float]) -> None:
    """Every found number is representable, and none is nearer."""
    numbers = np.array(sorted(set(representable)))
    for value, got in zip(values, found, strict=True):
        assert float(np.float32(numbers[np.abs(numbers - got).argmin()])) == got, (value, got)
        rounding = 1e-7 * abs(got) + 1e-44  # of what is found, to float32
        assert abs(value - got) == pytest.approx(float(np.abs(numbers - value).min()), rel=1e-6, abs=rounding)


def small_floats(exponent: int, mantissa: int, bias: float, top: float = math.inf) -> list[float]:
    """All values of (-1)^s 2^(e - bias) (1 + m/2^M), subnormal where e is 0, up to a largest magnitude."""
    found = []
    for e, m in itertools.product(range(2**exponent), range(2**mantissa)):
        fraction = m / 2**mantissa
        value = 2.0 ** (e - bias) * (1 + fraction) if e else 2.0 ** (1 - bias) * fraction
        if value <= top:
            found += [value, -value]
    return found


@pytest.mark.parametrize(("e", "m"), [(4, 3), (3, 2), (5, 2), (2, 1)])
def test_minifloat(e: int, m: int) -> None:
    x = adversarial()
    grid = small_floats(e, m, 2 ** (e - 1) - 1)
    for values, found in zip(blocks_of(x, WIDTH), decoded(parse_format(f"MINIFLOAT:E={e}:M={m}"), x), strict=True):
        check_nearest(values, found, grid)


@pytest.mark.parametrize(("e", "m"), [(4, 3), (3, 3)])
def test_dmf(e: int, m: int) -> None:
    x = adversarial()
    bias = 2 ** (e - 1) - 1
    pairs = itertools.product(range(2**e), range(2**m), (1, -1))
    grid = [sign * 2.0 ** (k - bias) * mantissa / 2**m for k, mantissa, sign in pairs]
    for values, found in zip(blocks_of(x, WIDTH), decoded(parse_format(f"DMF:E={e}:M={m}"), x), strict=True):
        check_nearest(values, found, grid)


@pytest.mark.parametrize("size", [16, 64])
def test_block_minifloat(size: int) -> None:
    x = adversarial()
    for values, found in zip(blocks_of(x, size), decoded(parse_format(f"BM:I={size}"), x), strict=True):
        largest = max(map(abs, values))
        top = max(floor_log2(largest), -127) if largest else -127
        check_nearest(values, found, small_floats(4, 3, 15 - top))


MX = [("MXFP4", 2, 1, 6.0), ("MXFP6", 2, 3, 7.5), ("MXFP6:element=E3M2", 3, 2, 28.0), ("MXFP8", 4, 3, 448.0),
      ("MXFP8:element=E5M2", 5, 2, 57344.0)]  # fmt: skip


@pytest.mark.parametrize(("name", "e", "m", "top"), MX)
def test_microscaling(name: str, e: int, m: int, top: float) -> None:
    x = adversarial()
    elements = small_floats(e, m, 2 ** (e - 1) - 1, top)
    for values, found in zip(blocks_of(x, 32), decoded(parse_format(name), x), strict=True):
        largest = max(map(abs, values))
        shared = max(floor_log2(largest) - floor_log2(top), -127) if largest else -127
        check_nearest(values, found, [2.0**shared * element for element in elements])


def scalar_bfp(values: list[float], w: int) -> list[float]:
    largest = max(map(abs, values))
    e = max(ceil_log2(largest), -127) if largest else -127
    steps = 2 ** (w - 1)
    return [math.copysign(2.0**e * min(round(abs(v) / 2.0**e * steps), steps - 1) / steps, v) for v in values]


def scalar_bl(values: list[float], w: int) -> list[float]:
    largest = max(map(abs, values))
    top = max(round(math.log2(largest)), -127) if largest else -127
    low = top - 2 ** (w - 1) + 1
    exponents = [min(max(round(math.log2(abs(v))), low), top) if v else low for v in values]
    return [-(2.0**e) if v < 0 else 2.0**e for e, v in zip(exponents, values, strict=True)]


def scalar_integer(values: list[float], w: int) -> list[float]:
    top = 2 ** (w - 1) - 1
    scale = fp16(float(np.float32(max(map(abs, values)) / top)))
    return [scale * min(max(round(v / scale), -top), top) if scale else 0.0 for v in values]


def scalar_asymmetric(values: list[float], w: int) -> list[float]:
    top = 2**w - 1
    low, high = min(0.0, *values), max(0.0, *values)
    scale = fp16(float(np.float32((high - low) / top)))
    zero = min(max(round(-low / scale), 0), top) if scale else 0
    return [scale * (min(max(round(v / scale) + zero, 0), top) - zero) if scale else 0.0 for v in values]


def scalar_mx4(values: list[float], m: int) -> list[float]:
    largest = max(map(abs, values))
    e = max(floor_log2(largest) + 1, -127) if largest else -127
    found = []
    for pair in zip(values[::2], values[1::2], strict=True):
        micro = 1 if max(map(abs, pair)) < 2.0 ** (e - 1) else 0
        unit = 2.0 ** (e - micro - m)
        found += [unit * min(max(round(v / unit), 1 - 2**m), 2**m - 1) for v in pair]
    return found


SCALAR: dict[str, tuple[int, Callable[[list[float]], list[float]]]] = {
    "BFP:w=4": (16, lambda v: scalar_bfp(v, 4)),
    "BFP:w=6:I=64": (64, lambda v: scalar_bfp(v, 6)),
    "BL:w=8": (16, lambda v: scalar_bl(v, 8)),
    "BL:w=4": (16, lambda v: scalar_bl(v, 4)),
    "INT:I=64": (64, lambda v: scalar_integer(v, 4)),
    "INT:w=8:I=32": (32, lambda v: scalar_integer(v, 8)),
    "INT:I=32:kind=asymmetric": (32, lambda v: scalar_asymmetric(v, 4)),
    "MX4": (16, lambda v: scalar_mx4(v, 2)),
    "MX4:m=3": (16, lambda v: scalar_mx4(v, 3)),
}


@pytest.mark.parametrize("name", SCALAR)
def test_formula(name: str) -> None:
    x = adversarial()
    size, scalar = SCALAR[name]
    for values, found in zip(blocks_of(x, size), blocks_of(parse_format(name).quantize(x).values, size), strict=True):
        assert found == [float(np.float32(v)) for v in scalar(values)]


@pytest.mark.parametrize("w", [4, 8])
def test_fixed_point(w: int) -> None:
    x = adversarial()
    step = 2.0 ** (ceil_log2(float(x.abs().max())) - w + 1)
    wanted = [step * min(max(round(float(v) / step), -(2 ** (w - 1))), 2 ** (w - 1) - 1) for v in x.reshape(-1)]
    assert parse_format(f"FIXED:w={w}").quantize(x).values.reshape(-1).tolist() == wanted


def test_logarithm() -> None:
    x = adversarial()
    wanted = scalar_bl([float(v) for v in x.reshape(-1)], 8)
    assert parse_format("LOG").quantize(x).values.reshape(-1).tolist() == [float(np.float32(v)) for v in wanted]


def test_vsq() -> None:
    x = adversarial()
    for row, found in zip(blocks_of(x, WIDTH), blocks_of(parse_format("VSQ").quantize(x).values, WIDTH), strict=True):
        vectors = [row[i : i + 16] for i in range(0, WIDTH, 16)]
        wanted = [max(map(abs, v)) / 7 for v in vectors]
        of_row = float(np.float32(max(wanted) / 15))
        scales = [min(round(s / of_row), 15) * of_row if of_row else 0.0 for s in wanted]
        expected = [
            scale * min(max(round(v / scale), -7), 7) if scale else 0.0
            for scale, vector in zip(scales, vectors, strict=True)
            for v in vector
        ]
        assert found == [float(np.float32(v)) for v in expected]


def test_nvfp4() -> None:
    x = adversarial()
    e4m3 = np.array(small_floats(4, 3, 7, 448.0))
    of_tensor = float(np.float32(float(x.abs().max()) / (6 * 448)))
    for values, found in zip(blocks_of(x, 16), decoded(parse_format("NVFP4"), x), strict=True):
        wanted = max(map(abs, values)) / 6 / of_tensor
        scale = float(e4m3[np.abs(e4m3 - wanted).argmin()]) * of_tensor
        check_nearest(values, found, [scale * element for element in small_floats(2, 1, 1)])


LEVEL_FORMATS = (
    "NF4", "AF4", "BOF4", "BOF4-S", "BOF4:metric=mae", "BOF4-S:metric=mae", "BOF4:fixed=none", "BOF4:fixed=-1/1",
    "NF4:I=16", "BOF4-S:I=32:scale=32", "BOF4-S:scale=0", "NF4:opq=0.95", "BOF4-S:opq=0.9", "BOF4-S:I=32:opq=0.99",
)  # fmt: skip


@pytest.mark.parametrize("name", LEVEL_FORMATS)
def test_levels_under_a_scale(name: str) -> None:
    fmt = parse_format(name)
    assert isinstance(fmt, LevelFormat)
    x = adversarial()
    result = fmt.quantize(x)
    levels = [float(level) for level in fmt.levels]
    n_outliers = 0
    for values, found in zip(blocks_of(x, fmt.I), blocks_of(result.values, fmt.I), strict=True):
        limit = statistics.stdev(values) * outlier_threshold(fmt.I, fmt.opq) if fmt.opq else math.inf
        kept = [abs(v) > limit for v in values]
        n_outliers += sum(kept)
        rest = [0.0 if k else v for k, v in zip(kept, values, strict=True)]
        largest = max(rest, key=abs)
        scale = largest if fmt.signed else abs(largest)
        scale = fp16(scale) if fmt.scale == 16 else scale
        for value, keep, got in zip(values, kept, found, strict=True):
            if keep:
                assert got == float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16))
                continue
            nearest = min(abs(scale * level - value) for level in levels)
            # the codes are found in float32: in a tie of rounding errors either level may be taken
            assert abs(got - value) <= nearest * (1 + 1e-5) + 1e-6 * abs(scale) + 1e-44
            assert min(abs(got - scale * level) for level in levels) <= 1e-6 * abs(scale) + 1e-44
    pointers = 32 * (len(x) + 1) if fmt.opq else 0
    assert result.bits == 4 * x.numel() + fmt.scale * x.numel() // fmt.I + pointers + 32 * n_outliers
    assert n_outliers > 0 or not fmt.opq


def test_nearest_codes() -> None:
    """Ties go to the lower level; levels for all rows, or for each."""
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0])
    x = torch.tensor([[-9.0, -0.75, -0.7499999, -0.25, 0.125, 0.12500001], [0.625, 0.63, 9.0, -0.0, 0.0, 1e-45]])
    wanted = [[min(range(5), key=lambda k: abs(float(v) - float(levels[k]))) for v in row] for row in x]
    assert nearest_codes(x, levels).tolist() == wanted
    assert nearest_codes(x, torch.stack([levels, 2 * levels])).tolist() == [wanted[0], [3, 3, 4, 2, 2, 2]]


def test_af4_is_the_published_one() -> None:
    assert af4_levels(64) == pytest.approx(np.array(AF4_64), abs=2e-6)


def test_errors_relative_to_nf4() -> None:
    """On Gaussian weights, blocks of 64: the paper has 1.08, 0.96, 0.88 and, with OPQ, 0.84 on Llama-3.1's weights."""
    x = gaussian(512, 1024)
    nf4, af4, bof4, signed, opq = (
        float((parse_format(name + ":scale=0").quantize(x).values - x).square().mean())
        for name in ("NF4", "AF4", "BOF4", "BOF4-S", "BOF4-S:opq=0.95")
    )
    assert af4 / nf4 == pytest.approx(1.08, abs=0.01)
    law, signed_law = theoretical_law(64, "absolute"), theoretical_law(64, "signed")
    levels, signed_levels = parse_format("BOF4"), parse_format("BOF4-S")
    assert isinstance(levels, LevelFormat) and isinstance(signed_levels, LevelFormat)
    assert bof4 == pytest.approx(expected_error(levels.levels, law), rel=0.01)
    assert signed == pytest.approx(expected_error(signed_levels.levels, signed_law), rel=0.01)
    assert opq < signed < bof4 < nf4


BITS = {
    "NF4": 4.25, "NF4:scale=0": 4.0, "BOF4-S:I=128": 4.125, "BOF4-S:scale=32": 4.5, "INT": 4.125,
    "INT:kind=asymmetric": 4.15625, "MINIFLOAT": 8.0, "DMF": 8.0, "BFP": 6.5, "BFP:w=4": 4.5, "BM": 8.5, "BL": 8.5,
    "MXFP4": 4.25, "MXFP6": 6.25, "MXFP8": 8.25, "MX4": 4.0, "MX4:m=3": 5.0, "Q4_0": 4.5, "BOF4_S": 4.25,
    "BOF4_K": 4.4375, "IQ4_XS": 4.25, "FIXED": 8 + 8 / 2**24, "LOG": 8 + 8 / 2**24, "NVFP4": 4.5 + 32 / 2**24,
    "VSQ": 4.25 + 32 / 4096, "LO-BCQ": 4.5 + (32 + 8 * 96) / 2**24, "LO-BCQ:LA=128:Nc=16": 4.5625 + 1568 / 2**24,
    "LO-BCQ:Nc=2": 4.25 + (32 + 192) / 2**24, "LO-BCQ:Lb=4:Nc=4": 4.625 + (32 + 384) / 2**24,
    "AAAC": 4.25 + 512 / 2**24, "ANY4": 4.125 + 256 / 4096, "F32": 32.0, "BF16": 16.0,
}  # fmt: skip


@pytest.mark.parametrize("name", BITS)
def test_bits(name: str) -> None:
    assert parse_format(name).bits_per_number((4096, 4096)) == BITS[name]


def error_of(fmt: Format, x: torch.Tensor) -> float:
    return float((fmt.quantize(x).values - x).square().sum() / x.square().sum())


def gaussian(rows: int, n: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))


def test_block_floating_point_on_gaussian_weights() -> None:
    errors = {w: [error_of(parse_format(f"BFP:w={w}"), gaussian(256, 512) * s) for s in (1, 1.19, 1.41, 1.68)]
              for w in (4, 5, 6)}  # fmt: skip
    assert min(errors[4]) == pytest.approx(0.0124, abs=2e-4)
    assert max(errors[4]) == pytest.approx(0.0137, abs=2e-4)
    assert min(errors[5]) == pytest.approx(0.0031, abs=1e-4)
    assert max(errors[5]) == pytest.approx(0.0034, abs=1e-4)
    assert errors[6] == pytest.approx([0.0008] * 4, abs=6e-5)


@pytest.mark.parametrize(("block", "count"), [(8, 8), (4, 16), (2, 2), (1, 1)])
def test_lo_bcq_never_raises_its_error(block: int, count: int) -> None:
    blocks = gaussian(512, 64).reshape(-1, block) * 10
    solution = clustered.solve(blocks, count)
    assert len(solution.errors) > 3
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(solution.errors))
    assert solution.errors[-1] < solution.errors[0]
    books = clustered.rounded(solution.books, 31)
    assert all(list(book) == sorted(book) and max(map(abs, book)) <= 31 and len(book) == 16 for book in books)


def test_lo_bcq_on_gaussian_weights() -> None:
    fmt = LOBCQ().fitted(gaussian(512, 512, seed=9))
    assert error_of(fmt, gaussian(1024, 512)) == pytest.approx(0.0041, abs=3e-4)  # seeds: 0.0041 with (8, 64, 8)
    assert error_of(fmt.replaced(LA=128), gaussian(512, 512)) > error_of(fmt, gaussian(512, 512))


def test_lo_bcq_takes_the_best_codebook() -> None:
    """Against loops over codebooks and entries."""
    x = adversarial()[:12]
    fmt = LOBCQ(LA=32, Lb=8, Nc=4).fitted(gaussian(8, 512))
    found = fmt.quantize(x).values
    of_tensor = 31 / float(x.abs().max())
    e4m3 = np.array(small_floats(4, 3, 7, 448.0))
    for values, got in zip(blocks_of(x, 32), blocks_of(found, 32), strict=True):
        largest = max(map(abs, values))
        ratio = min(float(x.abs().max()) / largest, 448.0) if largest else 448.0
        scale = float(np.float32(e4m3[np.abs(e4m3 - ratio).argmin()] * of_tensor))
        for i in range(0, 32, 8):
            y = [v * scale for v in values[i : i + 8]]
            best = min(sum(min((v - k) ** 2 for k in book) for v in y) for book in fmt.table)
            error = sum((v - g * scale) ** 2 for v, g in zip(y, got[i : i + 8], strict=True))
            assert error == pytest.approx(best, rel=1e-4, abs=1e-6)
            assert any(all(min(abs(g * scale - k) for k in book) < 1e-4 for g in got[i : i + 8]) for book in fmt.table)


def test_aaac_finds_two_codebooks() -> None:
    """Groups whose normalized weights have one of two sets of 16 values are stored nearly without error."""
    generator = np.random.default_rng(5)
    nf4 = nf4_levels()
    books = np.stack([np.append(0.97 * nf4[:-1] + 0.01, 1.0), np.append(1.02 * nf4[:-1] - 0.01, 1.0).clip(-1, 1)])
    chosen = generator.integers(0, 2, (512, 1))
    u = np.take_along_axis(books[chosen[:, 0]], generator.integers(0, 16, (512, 64)), axis=1)
    u[:, 0] = 1.0  # the scale is the largest magnitude
    weights = torch.from_numpy((u * 2.0 ** generator.integers(-6, 0, (512, 1))).astype(np.float32)).reshape(64, 512)
    assert error_of(AAAC(), weights) < 1e-4
    assert error_of(parse_format("NF4"), weights) > 20 * error_of(AAAC(), weights)


def test_any4_finds_the_codebook_of_a_row() -> None:
    generator = np.random.default_rng(6)
    rows = []
    for _ in range(8):
        book = np.append(nf4_levels()[:-1] * generator.uniform(0.9, 1) + generator.uniform(-0.01, 0.01, 15), 1.0)
        row = book[generator.integers(0, 16, 1024)]
        row[::128] = 1.0
        rows.append(row)
    weights = torch.from_numpy(np.array(rows, np.float32))
    assert error_of(Any4(), weights) < 1e-4


def slow_lloyd(values: list[float], weights: list[float], book: list[float], rounds: int) -> list[float]:
    """Lloyd's iteration, a loop over numbers and levels; a level without numbers stays."""
    for _ in range(rounds):
        sums = [[0.0, 0.0] for _ in book]
        for v, w in zip(values, weights, strict=True):
            k = min(range(len(book)), key=lambda i: abs(v - book[i]))
            sums[k][0] += w * v
            sums[k][1] += w
        book = [total / mass if mass else level for (total, mass), level in zip(sums, book, strict=True)]
    return book


def slow_errors(values: list[float], weights: list[float], book: list[float]) -> float:
    return sum(w * min((v - k) ** 2 for k in book) for v, w in zip(values, weights, strict=True))


def slow_groups(x: torch.Tensor, size: int, importance: Sequence[float]) -> list[tuple[list[float], list[float]]]:
    """Normalized numbers of each group and the weights of their squared errors."""
    groups = []
    for i, values in enumerate(blocks_of(x, size)):
        scale = fp16(max(map(abs, values)))
        start = i * size % x.shape[1]
        weights = [h * scale**2 for h in importance[start : start + size]]
        groups.append(([v / scale if scale else 0.0 for v in values], weights))
    return groups


def weighted_error(fmt: Format, x: torch.Tensor, importance: Sequence[float]) -> float:
    h = torch.tensor(importance)
    return float((h * (fmt.quantize(x, h).values - x).square()).sum(dtype=torch.float64))


def test_any4_by_loops() -> None:
    """Against an iteration for each row by loops; rounding levels to bfloat16 changes the error by a thousandth."""
    x = adversarial()[[7, 8, 9, 10, 12, 13, 14, 15]].reshape(4, 128)
    importance = [1.0 + (i % 5) for i in range(128)]
    error = 0.0
    for row in x:
        groups = slow_groups(row[None], 64, importance)
        values, weights = ([v for group in groups for v in group[k]] for k in (0, 1))
        book = slow_lloyd(values, weights, [float(level) for level in nf4_levels()], 12)
        error += slow_errors(values, weights, [float(torch.tensor(k).to(torch.bfloat16)) for k in book])
    assert weighted_error(Any4(I=64), x, importance) == pytest.approx(error, rel=1e-3)


def test_aaac_by_loops() -> None:
    """Against k-means with two codebooks by loops."""
    x = adversarial()[3:]
    importance = [1.0 + (i % 5) for i in range(WIDTH)]
    groups = slow_groups(x, WIDTH, [h / statistics.fmean(importance) for h in importance])

    def fitted(book: list[float], chosen: list[tuple[list[float], list[float]]], rounds: int) -> list[float]:
        return slow_lloyd([v for g in chosen for v in g[0]], [w for g in chosen for w in g[1]], book, rounds)

    start = fitted([float(level) for level in nf4_levels()], groups, 12)
    books = [[0.95 * level for level in start], [1.05 * level for level in start]]
    for _ in range(12):
        is_second = [slow_errors(*group, books[1]) < slow_errors(*group, books[0]) for group in groups]
        for k in (0, 1):
            books[k] = fitted(books[k], [g for g, second in zip(groups, is_second, strict=True) if second == k], 1)
    rounded = [sorted(float(torch.tensor(level).to(torch.bfloat16)) for level in book) for book in books]
    error = sum(min(slow_errors(*group, book) for book in rounded) for group in groups)
    assert weighted_error(AAAC(), x, importance) == pytest.approx(error * statistics.fmean(importance), rel=0.01)


@pytest.mark.parametrize("fmt", [AAAC(), Any4(I=64)], ids=str)
def test_importance_moves_the_error(fmt: Format) -> None:
    """The weighted error is smaller with the weights than without, the plain error larger."""
    x = gaussian(128, 256)
    importance = torch.where(torch.arange(256) < 32, 100.0, 1.0)
    with_it, without = (fmt.quantize(x, h).values - x for h in (importance, None))
    assert (importance * with_it.square()).sum() < 0.99 * (importance * without.square()).sum()
    assert with_it.square().sum() > without.square().sum()


TORCH_FORMATS = [name for name, family in FAMILIES.items() if not family.kind.native]


@pytest.mark.parametrize("name", TORCH_FORMATS)
def test_any_shape_and_no_surprise(name: str) -> None:
    fmt = default_of(FAMILIES[name])
    fmt = fmt.fitted(gaussian(8, 512)) if fmt.needs_samples else fmt
    x = gaussian(16, 256)
    found = fmt.quantize(x)
    assert found.values.dtype == torch.float32
    assert torch.equal(fmt.quantize(x.reshape(2, 8, 256)).values.reshape(16, 256), found.values)
    assert found.bits >= 2 * x.numel()
    assert bool(torch.isfinite(fmt.quantize(torch.zeros(4, 256)).values).all())
    assert parse_format(fmt.name).name == fmt.name
    with pytest.raises(UserError, match=r"ffn has NaN"):
        fmt.quantize(torch.full((1, 256), math.nan), None, "ffn")
    if fmt.multiple > 1:
        with pytest.raises(UserError, match=rf"ffn: rows of 65 are no multiple of {fmt.multiple}"):
            fmt.quantize(torch.ones(1, 65), None, "ffn")


REFUSED = {
    "XF4": "there is no format 'XF4'",
    "BFP:k=3": "format BFP has no parameter 'k=3': it has w, I",
    "BFP:w": "no parameter 'w'",
    "BFP:w=many": "w is 'many', give a whole number",
    "BFP:w=99": "w is 99, give a whole number from 2 to 16",
    "NF4:opq=1": "opq is 1, give a number from 0.0 to 1.0",
    "NF4:scale=7": "scale is 7, take 0",
    "BOF4:metric=rmse": "metric is 'rmse', take one of mse, mae",
    "LO-BCQ:Lb=3": "arrays of LA=64 are no multiple",
    "MXFP4:element=E9": "take one of E2M1",
    "F32:w=1": "it has none",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_formats_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_format(text)
    assert REFUSED[text] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_list_of_formats() -> None:
    result = bof4("study", "formats")
    assert result.returncode == 0, result.stderr
    for name in FAMILIES:
        assert f" {name} " in result.stdout
    assert "4.4375" in result.stdout
