"""What is measured: types, encoders, and outlier lists."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf_bof4.bench import auto_round
from gguf_bof4.bench.nf4 import NF4
from gguf_bof4.bench.peers import IMATRIX_CHUNKS, PEERS
from gguf_bof4.convert.list_rules import checked_budget
from gguf_bof4.convert.options import DEFAULT_OPQ
from gguf_bof4.encoders import DEFAULT, encoder_of
from gguf_bof4.encoders import ENCODERS as CONVERTER_ENCODERS
from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMATS

RECIPE = 2
"""To be raised with every change of how rows are measured: rows of another recipe are measured again."""

NO_LISTS = "off"
OUR_TYPES = tuple(f.name for f in FORMATS)
WEIGHTED = ("random", "imatrix")
"""The default encoder with an importance matrix, made from random tokens or from a text."""

OUR_ENCODERS = tuple(
    name for encoder in CONVERTER_ENCODERS for name in (encoder.name, *(WEIGHTED if encoder is DEFAULT else ()))
)


@dataclass(frozen=True)
class Variation:
    """An encoder with other texts or options than its row of a plain name has.

    Attributes:
        texts: to calibrate an encoder with that runs the model, by their names in the benches.
        options: of gguf_bof4.convert.
        seconds: for each weight, beside what the encoder takes without these options.
    """

    texts: tuple[str, ...] = ("calibration",)
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


VARIATIONS: Mapping[str, Variation] = {
    "imatrix:equalized": Variation(options={"equalize": True}),
    "gptq:self": Variation(("self",)),
    "gptq:kinds": Variation(("calibration", "quotations", "licences")),
    "gptq:self+text": Variation(("self", "calibration")),
    "gptq:equalized": Variation(options={"equalize": True}),
    "gptq:self+text+equalized": Variation(("self", "calibration"), {"equalize": True}),
    "gptq:token-weights": Variation(options={"token_weights": True}, seconds=1e-6),
    "gptq:refined": Variation(options={"refine": True}, seconds=1.5e-5),
    "gptq:self+text+refined": Variation(("self", "calibration"), {"refine": True}, 1.5e-5),
    "gptq:self+text+equalized+refined": Variation(
        ("self", "calibration"), {"equalize": True, "refine": True}, 1.5e-5
    ),
    "gptq:scales": Variation(options={"refine": True, "refine_parts": "scales"}, seconds=1.2e-5),
}
"""Measured where they are named. Refinement takes minutes, not seconds for each weight: those are SmolLM2's."""

CALIBRATED = tuple(encoder.name for encoder in CONVERTER_ENCODERS if encoder.calibrate is not None)
PEER_ENCODERS = ("none", "imatrix", *CALIBRATED, *auto_round.ENCODERS)
"""Of llama.cpp's own types: llama-quantize without and with an importance matrix, our encoders that encode them, and
AutoRound, which is measured where it is named."""

COMPENSATED_PEERS = ("Q4_K",)
"""Peers that our encoders that run the model are measured with: each takes an hour on the 1.5B model."""

ENCODERS = ("none", *OUR_ENCODERS)
SEARCHED = "search "
"""How the types of mixtures begin that `bof4 search` finds: the bits per weight that it was asked for follow."""

SEARCH_ENCODERS = ("imatrix", *CALIBRATED, *VARIATIONS)
"""Encoders of these mixtures: losses are predicted with an importance matrix."""

_BITS = " bits"
TYPES = (*PEERS, NF4, *OUR_TYPES)
DEFAULT_QUANTILES = (NO_LISTS, DEFAULT_OPQ)


@dataclass(frozen=True)
class Variant:
    """One way to quantize a model.

    Attributes:
        type: one of TYPES, or of a mixture "search N", N being bits per weight.
        encoder: of a peer one of PEER_ENCODERS; of this project's types one of OUR_ENCODERS or VARIATIONS.
        opq: the quantile of the outlier lists, "N bits" per weight, or "off".
    """

    type: str
    encoder: str
    opq: str = NO_LISTS

    @property
    def ours(self) -> bool:
        """Is it of one of this project's types?"""
        return self.type in OUR_TYPES

    @property
    def converted(self) -> bool:
        """Does this project's converter make it?"""
        return self.ours or self.searched_bits is not None or self.encoder in CALIBRATED

    @property
    def searched_bits(self) -> float | None:
        """Bits per weight of a mixture that `bof4 search` finds; None: it is one type for all matrices."""
        return float(self.type.removeprefix(SEARCHED)) if self.type.startswith(SEARCHED) else None

    @property
    def list_bits(self) -> float | None:
        """Bits per weight of outliers that are chosen by what they save; None: a quantile, or no lists."""
        return float(self.opq.removesuffix(_BITS)) if self.opq.endswith(_BITS) else None

    @property
    def recipe(self) -> str:
        """How its rows are measured, as far as the variant does not say so itself."""
        if self.base_encoder == "imatrix":
            return f"{RECIPE} {self.encoder}:{IMATRIX_CHUNKS}"
        if self.encoder in auto_round.ENCODERS:
            return f"{RECIPE} {auto_round.RECIPES[self.encoder]}"
        own = encoder_of(self.converter_encoder).recipe if self.converted else None
        return f"{RECIPE}" if own is None else f"{RECIPE} {self.encoder}:{own}"

    @property
    def base_encoder(self) -> str:
        """The encoder, without what it was varied by."""
        return self.encoder.partition(":")[0]

    @property
    def converter_encoder(self) -> str:
        """The name of the encoder for the converter."""
        return DEFAULT.name if self.base_encoder in WEIGHTED else self.base_encoder

    @property
    def importance(self) -> str | None:
        """Which importance matrix its file is made with, one of WEIGHTED; None: with none."""
        if self.base_encoder in WEIGHTED:
            return self.base_encoder
        return "imatrix" if self.variation.options.get("equalize") else None

    @property
    def variation(self) -> Variation:
        """Texts and options of the encoder."""
        return VARIATIONS.get(self.encoder, Variation())

    def __str__(self) -> str:
        lists = "" if self.opq == NO_LISTS else f", lists {self.opq}"
        return self.type + ("" if self.encoder == "none" else f" {self.encoder}") + lists


def _number(text: str) -> float:
    """The number that a text is; NaN, which is in no range, where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_quantile(text: str) -> str:
    """A quantile in its shortest spelling, so that 0.9 and 0.90 are one row; or "off".

    Raises:
        UserError: neither a number between 0 and 1 nor "off".
    """
    if text == NO_LISTS:
        return text
    quantile = _number(text)
    if not 0 < quantile < 1:
        raise UserError(f"--opq {text}: give a number between 0 and 1, or {NO_LISTS}")
    return f"{quantile:.12g}"


def parse_bits(text: str) -> str:
    """Bits per weight for outliers as `Variant.opq` has them.

    Raises:
        UserError: not a number of bits that outlier lists can have.
    """
    return f"{checked_budget(_number(text), f'--opq-bits {text}').bits:.12g}{_BITS}"


def parse_searched(text: str) -> str:
    """Bits per weight for `bof4 search` as `Variant.type` has them.

    Raises:
        UserError: not a number between 0 and 32.
    """
    bits = _number(text)
    if not 0 < bits <= 32:
        raise UserError(f"--search {text}: give bits per weight, such as 4.44")
    return f"{SEARCHED}{bits:.12g}"


def choose(what: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """`names` in the spelling of `known`, in its order.

    Raises:
        UserError: a name is not known.
    """
    by_name = {name.lower(): name for name in known}
    if unknown := [name for name in names if name.lower() not in by_name]:
        raise UserError(f"there is no {what} {unknown[0]!r} to measure: take some of {', '.join(known)}")
    asked = {name.lower() for name in names}
    return tuple(name for name in known if name.lower() in asked)


def _is_possible(peer: str, encoder: str) -> bool:
    """Can the matrices of this type of llama.cpp, or NF4, be made in this way?"""
    if encoder == "none":
        return True
    if encoder == "imatrix":
        return peer in PEERS and PEERS[peer].uses_imatrix
    if encoder in auto_round.ENCODERS:
        return peer in auto_round.SCHEMES
    return peer in COMPENSATED_PEERS


def variants(types: Sequence[str], encoders: Sequence[str], quantiles: Sequence[str]) -> tuple[Variant, ...]:
    """Every combination that exists: peers have no lists, and not every encoder encodes every one of them.

    Args:
        types: as `Variant.type`.
        quantiles: as `Variant.opq`; mixtures have lists where the search gives them some.
    """
    found = []
    for name in types:
        if name in OUR_TYPES:
            found += [Variant(name, e, q) for e in (*OUR_ENCODERS, *VARIATIONS) if e in encoders for q in quantiles]
        elif name.startswith(SEARCHED):
            found += [Variant(name, e) for e in SEARCH_ENCODERS if e in encoders]
        else:
            found += [Variant(name, e) for e in PEER_ENCODERS if e in encoders and _is_possible(name, e)]
    return tuple(found)
