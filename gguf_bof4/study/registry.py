"""All formats by name, and reading a format from a text like "BFP:w=4:I=32"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf_bof4.errors import UserError
from gguf_bof4.study import adaptive, blockwise, clustered, ggml_types, grids
from gguf_bof4.study.record import Format, parse_parameter

LISTED_SHAPE = (4096, 4096)
"""Of the matrix whose bits `bof4 study formats` prints."""


@dataclass(frozen=True)
class Family:
    """A name that a format's text begins with.

    Attributes:
        kind: the class of its records.
        presets: fields that the name fixes.
    """

    kind: type[Format]
    presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def parameters(self) -> dict[str, dataclasses.Field[Any]]:
        """Fields that a text can set."""
        fields = dataclasses.fields(self.kind)
        return {f.name: f for f in fields if f.name not in self.presets and "hidden" not in f.metadata}


_KINDS: tuple[type[Format], ...] = (
    grids.Identity, grids.BFloat16,
    blockwise.NF4, blockwise.AF4, blockwise.BOF4, blockwise.BOF4S,
    grids.Integer, grids.FixedPoint, grids.MiniFloat, grids.DMF, grids.Log, grids.BFP, grids.BM, grids.BL,
    grids.MXFP4, grids.MXFP6, grids.MXFP8, grids.NVFP4, grids.MX4, grids.VSQ,
    clustered.LOBCQ, adaptive.AAAC, adaptive.Any4,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    **{kind.family: Family(kind) for kind in _KINDS},
    **{name: Family(ggml_types.OwnType, {"type": name}) for name in ggml_types.OWN_TYPES},
    **{name: Family(ggml_types.UpstreamType, {"type": name}) for name in ggml_types.TYPES},
}
"""A new format is a class and its place in here."""

_BY_LOWER = {name.lower(): family for name, family in FAMILIES.items()}


def parse_format(text: str) -> Format:
    """A format from its name and parameters, separated by colons.

    Raises:
        UserError: no such format or parameter, or a value out of range.
    """
    name, *settings = text.strip().split(":")
    family = _BY_LOWER.get(name.lower())
    if family is None:
        raise UserError(f"there is no format {name!r}: `bof4 study formats` lists all of them")
    known, values = family.parameters(), dict(family.presets)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in known or not equals:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"format {name} has no parameter {setting!r}: {has}; write NAME:PARAMETER=VALUE")
        values[key] = parse_parameter(name, known[key], value)
    return family.kind(**values)


def default_of(family: Family) -> Format:
    """The format of a family with the default values of its parameters."""
    return family.kind(**family.presets)
