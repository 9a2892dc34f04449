"""Registers types with the gguf package at run time: enum members, sizes and file types.

They are this project's, and those of the pinned llama.cpp that released gguf packages lack.

gguf has no hook for this, so enum members are made the way the enum module makes them.
"""

from __future__ import annotations

from enum import IntEnum

import gguf

from gguf_bof4.formats import Format

_UPSTREAM = {"Q2_0": (42, 64, 18)}
"""Number, weights and bytes of a block (gguf-py/gguf/constants.py)."""


def add_member(enum: type[IntEnum], name: str, value: int) -> None:
    """Add a member to an IntEnum that is already defined; adding the same one again does nothing.

    Raises:
        ValueError: the name or the number belongs to another member.
    """
    known = enum.__members__.get(name)
    if known is not None and known.value == value:
        return
    if known is not None or value in enum._value2member_map_:
        raise ValueError(
            f"{enum.__name__} of the installed gguf package already uses {name!r} or {value}: "
            "this gguf-bof4 is too old for it"
        )
    member = int.__new__(enum, value)
    member._name_ = name
    member._value_ = value
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[value] = member
    type.__setattr__(enum, name, member)


def register_type(fmt: Format) -> None:
    """Make `fmt` a GGMLQuantizationType, a LlamaFileType and an entry of GGML_QUANT_SIZES."""
    add_member(gguf.GGMLQuantizationType, fmt.name, fmt.type_id)
    add_member(gguf.LlamaFileType, f"MOSTLY_{fmt.name}", fmt.file_type)
    gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(fmt.type_id)] = (fmt.block_size, fmt.block_bytes)


def register_upstream_types() -> None:
    """Make the types that only the pinned llama.cpp's own gguf package has GGMLQuantizationTypes, with their sizes."""
    for name, (number, *size) in _UPSTREAM.items():
        add_member(gguf.GGMLQuantizationType, name, number)
        gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] = (size[0], size[1])
