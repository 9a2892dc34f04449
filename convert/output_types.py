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
        format: None for a type that an unpatched llama.cpp knows.
        for_all: all matrices get it, embeddings and output, too.
    """

    name: str
    qtype: gguf.GGMLQuantizationType
    file_type: int
    format: Format | None = None
    for_all: bool = False


def _stock(name: str, file_type: gguf.LlamaFileType, for_all: bool = False) -> OutputType:
    return OutputType(name, gguf.GGMLQuantizationType[name], int(file_type), for_all=for_all)


OUTPUT_TYPES: tuple[OutputType, ...] = (
    *(OutputType(fmt.name, gguf.GGMLQuantizationType(fmt.type_id), fmt.file_type, fmt) for fmt in FORMATS),
    _stock("F16", gguf.LlamaFileType.MOSTLY_F16, for_all=True),
    _stock("BF16", gguf.LlamaFileType.MOSTLY_BF16, for_all=True),
    _stock("F32", gguf.LlamaFileType.ALL_F32, for_all=True),
    _stock("Q8_0", gguf.LlamaFileType.MOSTLY_Q8_0, for_all=True),
    _stock("Q6_K", gguf.LlamaFileType.MOSTLY_Q6_K),
    _stock("Q5_K", gguf.LlamaFileType.MOSTLY_Q5_K_S),
    _stock("Q5_1", gguf.LlamaFileType.MOSTLY_Q5_1),
    _stock("Q5_0", gguf.LlamaFileType.MOSTLY_Q5_0),
    _stock("Q4_K", gguf.LlamaFileType.MOSTLY_Q4_K_S),
    _stock("Q4_1", gguf.LlamaFileType.MOSTLY_Q4_1),
    _stock("Q4_0", gguf.LlamaFileType.MOSTLY_Q4_0),
    _stock("IQ4_NL", gguf.LlamaFileType.MOSTLY_IQ4_NL),
    _stock("IQ4_XS", gguf.LlamaFileType.MOSTLY_IQ4_XS),
    _stock("Q3_K", gguf.LlamaFileType.MOSTLY_Q3_K_S),
    _stock("Q2_K", gguf.LlamaFileType.MOSTLY_Q2_K_S),
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
