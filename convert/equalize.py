"""Equalizes the input channels of matrices, without changing what the model computes but for rounding.

A block of weights has one scale, which its largest weights decide, while errors count where inputs are large. So each
input channel of a matrix is multiplied by a factor that grows with its inputs and falls with its weights, and what
makes the channel is divided by it: the norm before queries, keys and values, and before gate and up; the rows of
values, whose mean the output matrix reads; the rows of up, which the activation multiplies before down. As of AWQ
(arXiv 2306.00978), with other factors.

With factors s the error of a block is about e sum_j (s_j w_j)^2 sum_j (x_j / s_j)^2, w_j and x_j the root mean squares
of the weights and inputs of a channel. By the inequality of Cauchy and Schwarz it is least where s_j^2 = x_j / w_j,
which makes the weights of a channel as large as its inputs. Half of that in the exponent is better (bench/NOTES.md):
mean squares exaggerate how much a channel matters that is large for few tokens.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_bof4.channel_factors import Factors

Floats = npt.NDArray[np.float32]

ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"})
"""Whose layers have the parts below, and nothing else that reads the channels."""

_READERS = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
"""Matrices that read the output of a norm."""

_KNOWN = {
    "attn": {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm", "attn_rot_embd"},
    "ffn": {"ffn_norm", "ffn_gate", "ffn_up", "ffn_down"},
}
"""All tensors of attention and of the feed-forward part of such a layer. With others, such as experts, the part is left
as it is."""

DEFAULT_STRENGTH = 0.25
"""bench/NOTES.md."""

_SMALLEST = 1e-8
"""Of the mean power: channels without inputs, or without weights."""

LARGEST = 8.0
"""Of the median of the powers of inputs. Some channels have a thousand times as much, from a few tokens such as the
first one; their factor would stretch the scales of the blocks that they are in, for all tokens."""

Powers = Callable[[str], Floats]
"""Gives the sums of the squares of the columns of a matrix by its name, float32 [n]."""


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


def channel_factors(inputs: Floats, weights: Floats, strength: float) -> Floats:
    """Factors of input channels, (E x^2 / E w^2)^(strength / 2), their geometric mean 1, float32 [n].

    Args:
        inputs: mean squares of the inputs, float32 [n]; at most LARGEST times their median counts.
        weights: mean squares of the weights of each channel, or multiples of them, float32 [n].
        strength: 0 leaves all channels as they are; with 0.5 weights and inputs become equally large.
    """
    largest = LARGEST * np.median(inputs)
    clipped = np.minimum(inputs, largest) if largest > 0 else inputs
    logarithms = (_logarithms(clipped) - _logarithms(weights)) * (strength / 2)
    return np.asarray(np.exp(logarithms - logarithms.mean()), dtype=np.float32)


class _Layer:
    """The factors of one layer, found part by part."""

    def __init__(
        self, prefix: str, shapes: Mapping[str, tuple[int, ...]], powers: Mapping[str, Floats], weights: Powers
    ) -> None:
        self._prefix, self._shapes, self._powers, self._weights = prefix, shapes, powers, weights
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


def _equalize_norms(layer: _Layer, kinds: Iterable[str], strength: float) -> None:
    for norm, readers in _READERS.items():
        if norm.partition("_")[0] in kinds and layer.has(norm, *readers):
            power = layer.power(readers[0])
            if power is not None:
                factors = channel_factors(power, layer.weights(*readers), strength)
                layer.divide(norm, factors)
                for reader in readers:
                    layer.multiply(reader, factors)


def _equalize_values(layer: _Layer, heads: Heads | None, strength: float) -> None:
    """Heads of queries that share one of values share the factors."""
    if heads is None or not layer.has("attn_v", "attn_output") or (power := layer.power("attn_output")) is None:
        return
    shared = heads.queries // heads.keys
    if power.size * heads.keys != layer.shape("attn_v")[0] * heads.queries or power.size % heads.queries:
        return
    inputs, weights = (
        p.reshape(heads.keys, shared, -1).mean(axis=1).reshape(-1) for p in (power, layer.weights("attn_output"))
    )
    factors = channel_factors(inputs, weights, strength)
    layer.divide("attn_v", factors)
    layer.multiply("attn_output", np.repeat(factors.reshape(heads.keys, 1, -1), shared, axis=1).reshape(-1))


def _equalize_up(layer: _Layer, strength: float) -> None:
    if layer.has("ffn_gate", "ffn_up", "ffn_down") and (power := layer.power("ffn_down")) is not None:
        factors = channel_factors(power, layer.weights("ffn_down"), strength)
        layer.divide("ffn_up", factors)
        layer.multiply("ffn_down", factors)


def equalizing_factors(
    architecture: str, shapes: Mapping[str, tuple[int, ...]], powers: Mapping[str, Floats], weights: Powers,
    heads: Heads | None, strength: float,
) -> dict[str, Factors]:  # fmt: skip
    """What the tensors of a model are multiplied by, by their names; none for other architectures.

    Args:
        shapes: of all tensors, rows before columns.
        powers: mean squares of the inputs of matrices, float32 [n], by name.
        weights: called once for each matrix whose columns are multiplied.
        heads: None: not known, or not the same in all layers.
        strength: of `channel_factors`.
    """
    if architecture not in ARCHITECTURES:
        return {}
    parts: dict[str, set[str]] = defaultdict(set)
    for name in shapes:
        if (match := re.fullmatch(r"(blk\.\d+\.)(.+)\.(weight|bias)", name)) is not None:
            parts[match[1]].add(match[2])
    found: dict[str, Factors] = {}
    for prefix, names in parts.items():
        layer = _Layer(prefix, shapes, powers, weights)
        kinds = [
            kind for kind, known in _KNOWN.items() if not {n for n in names if n.startswith(f"{kind}_")} - known
        ]
        _equalize_norms(layer, kinds, strength)
        if "attn" in kinds:
            _equalize_values(layer, heads, strength)
        if "ffn" in kinds:
            _equalize_up(layer, strength)
        for name in {**layer.rows, **layer.columns}:
            found[name] = Factors(layer.rows.get(name), layer.columns.get(name))
    return found
