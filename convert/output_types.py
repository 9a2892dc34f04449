"""The types that --type takes: this project's, and types that an unpatched llama.cpp runs."""

from __future__ import annotations

from dataclasses import dataclass

import gguf

from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMATS, Format


@dataclass(frozen=True)
class OutputType:
    """The type of the matrices of an output.

    Attributes:
        name: as --type and "{ftype}" in the name of an output spell it.
        qtype: of the tensors.
        file_type: general.file_type.
        format: None for a type that an unpatched llama.cpp knows; all matrices get such a type, embeddings and output,
            too, as llama-quantize has it.
    """

    name: str
    qtype: gguf.GGMLQuantizationType
    file_type: int
    format: Format | None = None


def _stock(name: str, file_type: gguf.LlamaFileType) -> OutputType:
    return OutputType(name, gguf.GGMLQuantizationType[name], int(file_type))


OUTPUT_TYPES: tuple[OutputType, ...] = (
    *(OutputType(fmt.name, gguf.GGMLQuantizationType(fmt.type_id), fmt.file_type, fmt) for fmt in FORMATS),
    _stock("F16", gguf.LlamaFileType.MOSTLY_F16),
    _stock("BF16", gguf.LlamaFileType.MOSTLY_BF16),
    _stock("F32", gguf.LlamaFileType.ALL_F32),
    _stock("Q8_0", gguf.LlamaFileType.MOSTLY_Q8_0),
)
"""In the order of --help."""


def output_type_of(name: str) -> OutputType:
    """The output type of this name, in any case.

    Raises:
        UserError: there is none.
    """
    for output_type in OUTPUT_TYPES:
        if output_type.name == name.upper():
            return output_type
    types = ", ".join(t.name for t in OUTPUT_TYPES)
    raise UserError(
        f"there is no type {name!r} to convert to; --type takes {types}. For other types of llama.cpp convert to F16 "
        "and give that file to llama-quantize"
    )
