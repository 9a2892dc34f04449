"""Equalizes the input channels of matrices, without changing what the model computes but for rounding.

A block of weights has one scale, which its largest weights decide, while errors count where inputs are large. So each
input channel of a matrix is multiplied by a factor that grows with its inputs and falls with its weights, and what
makes the channel is divided by it: the norm before queries, keys and values, and before gate and up; the rows of
values, whose mean the output matrix reads; the rows of up, which the activation multiplies before down. As of AWQ
(arXiv 2306.00978), with other factors.

With factors s the error of a block is about e sum_j (s_j w_j)^2 sum_j (x_j / s_j)^2, w_j and x_j the root mean squares
of the weights and inputs of a channel, if its scale follows the mean square of its weights. By the inequality of Cauchy
and Schwarz that is least where s_j^2 = x_j / w_j, which makes the weights of a channel as large as its inputs. Scales
follow large weights more than small ones, so how far to go that way is measured for each group of matrices that read
the same channels.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_bof4.channel_factors import Factors

Floats = npt.NDArray[np.float32]

ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"})
"""Whose layers have the parts below, and nothing else that reads the channels."""

READERS = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
"""Matrices that read the output of a norm."""

_KNOWN = {
    "attn": {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm", "attn_rot_embd"},
    "ffn": {"ffn_norm", "ffn_gate", "ffn_up", "ffn_down"},
}
"""All tensors of attention and of the feed-forward part of such a layer. With others, such as experts, the part is left
as it is."""

LARGEST = 8.0
"""Of the median of the powers of inputs. Some channels have a thousand times as much, from a few tokens such as the
first one; their factor would stretch the scales of the blocks that they are in, for all tokens."""

CANDIDATES = ((0.125, LARGEST), (0.25, LARGEST), (0.5, LARGEST), (0.125, math.inf), (0.25, math.inf))
"""Strengths, and how much of the powers counts: what is tried beside no factors (bench/NOTES.md)."""

_SMALLEST = 1e-8
"""Of the mean power: channels without inputs, or without weights."""

Powers = Callable[[str], Floats]
"""Gives the sums of the squares of the columns of a matrix by its name, float32 [n]."""

Loss = Callable[[Sequence[str], Floats], float]
"""What encoding matrices costs, by their names, whose columns are multiplied by factors, float32 [n]."""


@dataclass(frozen=True)
class Heads:
    """Attention of a model.

    Attributes:
        queries: number of heads.
        keys: number of heads of keys and values, each of which several heads of queries share.
    """

    queries: int
    keys: int


def _logarithms(power: Floats) -> npt.NDArray[np.float64]:
    """Of powers, zeros raised to a small value; all zero where all powers are, or where they are not finite."""
    mean = float(power.mean(dtype=np.float64))
    if not 0 < mean < np.inf:
        return np.zeros(power.shape)
    return np.log(np.maximum(power.astype(np.float64), _SMALLEST * mean))


def channel_factors(inputs: Floats, weights: Floats, strength: float, largest: float = LARGEST) -> Floats:
    """Factors of input channels, (E x^2 / E w^2)^(strength / 2), their geometric mean 1, float32 [n].

    Args:
        inputs: mean squares of the inputs, float32 [n].
        weights: mean squares of the weights of each channel, or multiples of them, float32 [n].
        strength: 0 leaves all channels as they are; with 0.5 weights and inputs become equally large.
        largest: how many times the median of `inputs` counts at most.
    """
    limit = largest * float(np.median(inputs))
    clipped = np.minimum(inputs, np.float32(limit)) if 0 < limit < math.inf else inputs
    logarithms = (_logarithms(clipped) - _logarithms(weights)) * (strength / 2)
    return np.asarray(np.exp(logarithms - logarithms.mean()), dtype=np.float32)


class _Layer:
    """The factors of one layer, found part by part."""

    def __init__(
        self, prefix: str, shapes: Mapping[str, tuple[int, ...]], powers: Mapping[str, Floats], weights: Powers,
        how: float | Loss,
    ) -> None:  # fmt: skip
        self._prefix, self._shapes, self._powers, self._weights, self._how = prefix, shapes, powers, weights, how
        self.rows: dict[str, Floats] = {}
        self.columns: dict[str, Floats] = {}

    def has(self, *parts: str) -> bool:
        return all(f"{self._prefix}{part}.weight" in self._shapes for part in parts)

    def shape(self, part: str) -> tuple[int, ...]:
        return self._shapes[f"{self._prefix}{part}.weight"]

    def power(self, part: str) -> Floats | None:
        """Mean squares of the inputs of a matrix; None where they are not known."""
        power = self._powers.get(f"{self._prefix}{part}.weight")
        return power if power is not None and power.shape == self.shape(part)[-1:] else None

    def weights(self, *parts: str) -> Floats:
        """Sums of the squares of the weights of each input channel, of all these matrices."""
        found = [self._weights(f"{self._prefix}{part}.weight") for part in parts]
        return np.asarray(np.sum(found, axis=0), dtype=np.float32)

    def factors(
        self, parts: Sequence[str], inputs: Floats, weights: Floats, columns_of: Callable[[Floats], Floats]
    ) -> Floats:
        """Of channels that these matrices read, where they are multiplied by `columns_of` the factors."""
        if not callable(self._how):
            return channel_factors(inputs, weights, self._how)
        names, loss = [f"{self._prefix}{part}.weight" for part in parts], self._how
        tried = [np.ones_like(inputs), *(channel_factors(inputs, weights, *candidate) for candidate in CANDIDATES)]
        return min(tried, key=lambda factors: loss(names, columns_of(factors)))

    def multiply(self, part: str, columns: Floats) -> None:
        """Multiply the input channels of a matrix."""
        self.columns[f"{self._prefix}{part}.weight"] = columns

    def divide(self, part: str, channels: Floats) -> None:
        """Divide what makes the channels: rows of a matrix and its bias, or the vectors of a norm."""
        name = f"{self._prefix}{part}"
        target = self.columns if len(self.shape(part)) == 1 else self.rows
        inverse = np.reciprocal(channels)
        target[f"{name}.weight"] = inverse
        if f"{name}.bias" in self._shapes:
            self.columns[f"{name}.bias"] = inverse


def _equalize_norms(layer: _Layer, kinds: Iterable[str]) -> None:
    for norm, readers in READERS.items():
        if norm.partition("_")[0] in kinds and layer.has(norm, *readers):
            power = layer.power(readers[0])
            if power is not None:
                factors = layer.factors(readers, power, layer.weights(*readers), lambda channels: channels)
                layer.divide(norm, factors)
                for reader in readers:
                    layer.multiply(reader, factors)


def _equalize_values(layer: _Layer, heads: Heads | None) -> None:
    """Heads of queries that share one of values share the factors."""
    if heads is None or not layer.has("attn_v", "attn_output") or (power := layer.power("attn_output")) is None:
        return
    keys, shared = heads.keys, heads.queries // heads.keys
    if power.size * keys != layer.shape("attn_v")[0] * heads.queries or power.size % heads.queries:
        return

    def columns_of(channels: Floats) -> Floats:
        return np.repeat(channels.reshape(keys, 1, -1), shared, axis=1).reshape(-1)

    inputs, weights = (
        p.reshape(keys, shared, -1).mean(axis=1).reshape(-1) for p in (power, layer.weights("attn_output"))
    )
    factors = layer.factors(("attn_output",), inputs, weights, columns_of)
    layer.divide("attn_v", factors)
    layer.multiply("attn_output", columns_of(factors))


def _equalize_up(layer: _Layer) -> None:
    if layer.has("ffn_gate", "ffn_up", "ffn_down") and (power := layer.power("ffn_down")) is not None:
        factors = layer.factors(("ffn_down",), power, layer.weights("ffn_down"), lambda channels: channels)
        layer.divide("ffn_up", factors)
        layer.multiply("ffn_down", factors)


def equalizing_factors(
    architecture: str, shapes: Mapping[str, tuple[int, ...]], powers: Mapping[str, Floats], weights: Powers,
    heads: Heads | None, how: float | Loss,
) -> dict[str, Factors]:  # fmt: skip
    """What the tensors of a model are multiplied by, by their names; none for other architectures.

    Args:
        shapes: of all tensors, rows before columns.
        powers: mean squares of the inputs of matrices, float32 [n], by name.
        weights: called once for each matrix whose columns are multiplied.
        heads: None: not known, or not the same in all layers.
        how: the strength, of `channel_factors`; or the loss, by which the best of CANDIDATES is found for each group.
    """
    if architecture not in ARCHITECTURES:
        return {}
    parts: dict[str, set[str]] = defaultdict(set)
    for name in shapes:
        if (match := re.fullmatch(r"(blk\.\d+\.)(.+)\.(weight|bias)", name)) is not None:
            parts[match[1]].add(match[2])
    found: dict[str, Factors] = {}
    for prefix, names in parts.items():
        layer = _Layer(prefix, shapes, powers, weights, how)
        kinds = [
            kind for kind, known in _KNOWN.items() if not {n for n in names if n.startswith(f"{kind}_")} - known
        ]
        _equalize_norms(layer, kinds)
        if "attn" in kinds:
            _equalize_values(layer, heads)
        if "ffn" in kinds:
            _equalize_up(layer)
        for name in {**layer.rows, **layer.columns}:
            found[name] = Factors(layer.rows.get(name), layer.columns.get(name))
    return found
