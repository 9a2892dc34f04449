"""Other sizes than the target: the curve of the best assignments, and single types for all matrices."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_bof4.gguf_files.model import bits_per_weight
from gguf_bof4.search.losses import Wanted
from gguf_bof4.search.run import Assignment, Measured, assign, overhead, stored_bytes
from gguf_bof4.search.targets import Target

WIDEST = 2.5
"""Bits per weight above the smallest assignment, up to which others are looked at."""


def _range(measured: Measured, target: Target) -> tuple[float, float]:
    """Bytes of the smallest and the largest assignment of what the target counts."""
    free: Sequence[Wanted] = measured.free(target)
    in_file = target.nbytes is not None
    sizes = [[stored_bytes(measured, w, c, in_file) for c in w.candidates] for w in free]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    return least, min(most, least + WIDEST / 8 * sum(w.tensor.n_weights for w in free))


def targets_around(measured: Measured, target: Target, count: int) -> list[Target]:
    """Targets of the same kind, evenly spaced over the range that is possible."""
    least, most = _range(measured, target)
    # the ends have one possible assignment only
    steps = [least + (most - least) * (i + 0.5) / count for i in range(count)]
    if target.nbytes is not None:
        return [Target(nbytes=int(step) + overhead(measured)) for step in steps]
    weights = sum(w.tensor.n_weights for w in measured.matrices)
    return [Target(bits=bits_per_weight(step, weights)) for step in steps]


def curve(measured: Measured, target: Target, count: int = 60) -> list[tuple[float, float]]:
    """Bits per weight of the matrices and predicted loss of the best assignments."""
    found = [assign(measured, t) for t in targets_around(measured, target, count)]
    return [(a.bits_per_weight, a.loss) for a in found]


def uniform(measured: Measured, chosen: Assignment) -> dict[str, tuple[float, float]]:
    """Bits per weight and predicted loss of one candidate for all matrices, where all of them can have it.

    Args:
        chosen: tables are as in it.
    """
    weights = sum(w.tensor.n_weights for w in measured.matrices)
    of_tables = sum(a.loss for a in chosen.tables)
    common = set.intersection(*({c.name for c in w.candidates} for w in measured.matrices))
    found = {}
    for c in measured.matrices[0].candidates:
        if c.name in common:
            nbytes = sum(stored_bytes(measured, w, c, False) for w in measured.matrices)
            loss = sum(measured.losses[w.tensor.name][c.name].loss for w in measured.matrices)
            found[c.name] = (bits_per_weight(nbytes, weights), loss + of_tables)
    return found
