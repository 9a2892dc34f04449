"""The scale search in numpy: every operation of ggml_patch/src/format/bof4-search.c, in the same order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_bof4.formats import FP16_MAX, LEVEL_SCALE, Format, SearchGrid
from gguf_bof4.quants import BOF4_K, midpoints, nearest_codes, signed_maximum, stored_scale

Floats = npt.NDArray[np.float32]

F = np.float32
_ORDINARY = F(2.0**-40), F(2.0**40)


@dataclass
class Fit:
    """Of each sub-block: by how much the error falls with the best scale, that scale, and sum(w k^2)."""

    gain: Floats
    scale: Floats
    weight: Floats

    def better(self, other: Fit, where: npt.NDArray[np.bool_]) -> Fit:
        pairs = ((self.gain, other.gain), (self.scale, other.scale), (self.weight, other.weight))
        return Fit(*(np.where(where, new, old) for old, new in pairs))


def prepared_importance(x: Floats, w: Floats, fmt: Format) -> tuple[Floats, Floats]:
    """Importances as the search calculates with them.

    Args:
        x, w: float32 [blocks, sub-blocks, weights].

    Returns:
        The importances, and what each sub-block counts in its superblock, float32 [blocks, sub-blocks].
    """
    counted = np.where(x != 0, w, F(0))
    largest = counted.max(axis=2)
    ordinary = (largest >= _ORDINARY[0]) & (largest <= _ORDINARY[1]) | ~x.any(axis=2)
    exponents = np.frexp(largest)[1]
    has = largest > 0
    least = np.where(has, exponents, 999).min(axis=1, keepdims=True)
    most = np.where(has, exponents, -999).max(axis=1, keepdims=True)
    below = np.where(has.any(axis=1, keepdims=True), np.where(has, exponents, least) - most, 0)
    scaled = np.where(has[:, :, None], np.ldexp(counted, -exponents[:, :, None]), F(1))
    plain = ordinary.all(axis=1)[:, None]
    return np.where(plain[:, :, None], w, scaled), np.where(plain, F(1), np.ldexp(F(1), below))


def correlate(x: Floats, w: Floats, inverse: Floats, fmt: Format) -> tuple[Floats, Floats]:
    """sum(w x k) and sum(w k^2) of each sub-block, in eight partial sums."""
    y = x * inverse[..., None]
    level = np.array(fmt.levels, dtype=np.float32)[sum((y > m).astype(int) for m in midpoints(fmt))]
    wk = w * level
    sums = []
    for products in (wk * x, wk * level):
        part = np.zeros((*x.shape[:-1], 8), dtype=np.float32)
        for j in range(0, x.shape[-1], 8):
            part += products[..., j : j + 8]
        p = np.moveaxis(part, -1, 0)
        sums.append(((p[0] + p[4]) + (p[1] + p[5])) + ((p[2] + p[6]) + (p[3] + p[7])))
    return sums[0], sums[1]


def _fit(x: Floats, w: Floats, scale: Floats, fmt: Format) -> Fit:
    xk, kk = correlate(x, w, F(1) / scale, fmt)
    good = kk > 0
    return Fit(*(np.where(good, value, F(0)) for value in (xk * (xk / kk), xk / kk, kk)))


def _gain(x: Floats, w: Floats, scale: Floats, fmt: Format) -> Floats:
    """By how much the error of each sub-block falls with exactly this scale."""
    xk, kk = correlate(x, w, F(1) / scale, fmt)
    return np.asarray(scale * (F(2) * xk - scale * kk))


def search_fits(x: Floats, w: Floats, fmt: Format) -> list[Fit]:
    """The best fits of each sub-block, the better sign first."""
    m = np.abs(x).max(axis=-1)
    best = []
    grid: SearchGrid = fmt.search
    zero = np.zeros_like(m)
    for sign in (m, -m):
        found = Fit(zero, zero, zero)
        for i in range(grid.count):
            new = _fit(x, w, sign / (F(LEVEL_SCALE) * (F(grid.first) + F(grid.step) * F(i))), fmt)
            found = found.better(new, new.gain > found.gain)
        again = _fit(x, w, found.scale, fmt)
        best.append(found.better(again, (found.gain > 0) & (again.gain > found.gain)))
    swap = best[1].gain > best[0].gain
    return [best[0].better(best[1], swap), best[1].better(best[0], swap)]


def best_step(x: Floats, w: Floats, unit: Floats, fits: list[Fit], fmt: Format) -> Floats:
    """The best scale of each sub-block in units of `unit`, float32 [blocks, sub-blocks]."""
    offset = fmt.sub_scale_offset
    best, best_gain = np.zeros_like(fits[0].gain), np.zeros_like(fits[0].gain)
    for fit in fits:
        at = fit.scale / unit
        tried = (np.abs(at) > 0) & (np.abs(at) < F(1e6))
        middle = np.clip(np.floor(np.where(tried, at, F(0))), -offset, offset - 1)
        for step in range(-1, 3):
            s = middle + F(step)
            scale = unit * s
            gain = _gain(x, w, scale, fmt)
            better = tried & (s != 0) & (s >= -offset) & (s <= offset - 1) & (gain > best_gain)
            best, best_gain = np.where(better, s, best), np.where(better, gain, best_gain)
    return best


def _expected_gain(fits: list[Fit], factor: Floats, unit: Floats, fmt: Format) -> Floats:
    total = np.zeros(len(factor), dtype=np.float32)
    best = np.zeros_like(factor)
    for fit in fits:
        s = np.clip(np.rint(fit.scale / unit), -fmt.sub_scale_offset, fmt.sub_scale_offset - 1)
        off = fit.scale - s * unit
        best = np.fmax(best, fit.gain - off * off * fit.weight)
    for b in range(factor.shape[1]):
        total += factor[:, b] * best[:, b]
    return total


def search_superscale(x: Floats, w: Floats, factor: Floats, fits: list[Fit], fmt: Format) -> npt.NDArray[np.float16]:
    """The scales of superblocks as they are stored, fp16 [blocks, 1]."""
    type_unit = F(fmt.unit[0]) / F(fmt.unit[1])
    largest = np.abs(fits[0].scale).max(axis=1, keepdims=True)
    best_unit, best_gain = largest, np.full(len(x), -np.inf, dtype=np.float32)
    for i in range(20, 37):
        for sign in (-1, 1):
            unit = F(sign) * largest / F(i * fmt.sub_scale_offset // 32)
            gain = _expected_gain(fits, factor, unit, fmt)
            best_unit = np.where((gain > best_gain)[:, None], unit, best_unit)
            best_gain = np.fmax(gain, best_gain)
    steps = best_step(x, w, best_unit, fits, fmt)
    xk, kk = correlate(x, w, F(1) / (best_unit * steps), fmt)
    sum_xk, sum_kk = np.zeros((len(x), 1), np.float32), np.zeros((len(x), 1), np.float32)
    for b in range(x.shape[1]):
        s, f, used = steps[:, b : b + 1], factor[:, b : b + 1], steps[:, b : b + 1] != 0
        sum_xk = np.where(used, sum_xk + f * (s * xk[:, b : b + 1]), sum_xk)
        sum_kk = np.where(used, sum_kk + f * (s * s * kk[:, b : b + 1]), sum_kk)
    unit = np.where((sum_kk > 0) & (sum_xk / sum_kk * best_unit > 0), sum_xk / sum_kk, best_unit)
    return np.where(largest > 0, stored_scale(unit / type_unit), np.float16(0))


def quantize(rows: Floats, importance: Floats | None, fmt: Format) -> npt.NDArray[np.uint8]:
    """Encode float32 [rows, n] by search, weighted by float32 [n]: uint8 [rows, bytes of a row].

    Weights are finite and below 65520.
    """
    with np.errstate(all="ignore"):
        shape = (-1, fmt.block_size // fmt.sub_block_size, fmt.sub_block_size)
        x = rows.reshape(shape)
        w = np.broadcast_to(F(1) if importance is None else importance, rows.shape).reshape(shape)
        w, factor = prepared_importance(x, w, fmt)
        fits = search_fits(x, w, fmt)
        if fmt.sub_scale_offset == 0:
            m = np.abs(signed_maximum(x[:, 0]))
            scale = np.where(fits[0].gain > 0, fits[0].scale, m / F(LEVEL_SCALE))
            most = np.full_like(scale, F(FP16_MAX) / F(LEVEL_SCALE))
            sign = np.where(_gain(x, w, -most, fmt) > _gain(x, w, most, fmt), F(-1), F(1))
            d = stored_scale(np.where(np.abs(scale) > most, sign * most, scale) * F(LEVEL_SCALE))
            codes = nearest_codes(x[:, 0], d.astype(np.float32) / F(LEVEL_SCALE), fmt)
            packed = [d.view(np.uint8)]
        else:
            d = search_superscale(x, w, factor, fits, fmt)
            unit = d.astype(np.float32) * (F(fmt.unit[0]) / F(fmt.unit[1]))
            steps = best_step(x, w, unit, fits, fmt)
            codes = nearest_codes(x.reshape(-1, fmt.sub_block_size), (unit * steps).reshape(-1, 1), fmt)
            packed = [d.view(np.uint8), BOF4_K.pack_scales(steps.astype(np.int8))]
        codes = codes.reshape(len(x), -1, 2, fmt.code_run)
        qs = (codes[:, :, 0] | codes[:, :, 1] << np.uint8(4)).reshape(len(x), -1)
        return np.concatenate([*packed, qs], axis=1).reshape(len(rows), -1)
