"""The tensor types, one record each. Everything else about a type is derived from its record.

Python reads this table; the C header is generated from it: `python -m gguf_bof4.formats` prints
ggml_patch/src/include/bof4-format.h, and a test compares the two. The levels are results of the codebook solver: tests
derive them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

LEVEL_SCALE = 127
"""A level of 1.0 is stored as this int8."""

FORMAT_VERSION = 1
"""bof4.version: a reader refuses files with a higher one."""

CODE_BITS = 4
SCALE_BYTES = 2
"""Of the fp16 scale that begins every block."""

FP16_MAX = 65504.0
"""The largest finite fp16: a scale beyond it that weights below FP16_OVERFLOW lead to is stored as this."""

FP16_OVERFLOW = 65520.0
"""The smallest magnitude that fp16 rounds to infinity: the types have no scale for weights from it on."""

FP16_NAN = 0x7E00
"""The fp16 bits of the scale of a block with a weight that is not finite: validation refuses it."""

FP16_INFINITY = 0x7C00
"""The same for a block with a weight of FP16_OVERFLOW or more."""

OPQ_BLOCK = 64
"""Weights over which the sample deviation of an outlier's neighbourhood is taken (paper, eq. 9)."""


@dataclass(frozen=True)
class Activation:
    """The ggml type that the CPU rounds activations to, to multiply them with a weight type.

    Attributes:
        name: of the ggml type.
        block_size: activations under one scale.
    """

    name: str
    block_size: int


Q8_0 = Activation("Q8_0", 32)
Q8_K = Activation("Q8_K", 256)


@dataclass(frozen=True)
class SearchGrid:
    """Scales that an encoder tries for a sub-block: those under which its largest weight lands at `first`,
    `first + step`, ... (`count` of them) times the largest level, of either sign.
    """

    first: float
    step: float
    count: int


class Kernels(Enum):
    """What may be implemented for a type beside the portable code that every type has."""

    REPACKED = "repacked"
    """Products of repacked weights on the CPU (ggml_patch/src/cpu)."""
    CUDA = "cuda"
    VULKAN = "vulkan"
    GPTQ = "gptq"
    """The encoder gptq (ggml_patch/src/bindings/bof4-gptq.cpp)."""


@dataclass(frozen=True)
class Format:
    """One ggml tensor type: blocks of an fp16 scale, scales of sub-blocks where there are several, and 4-bit codes.

    Attributes:
        name: as llama-quantize, gguf and the command line spell it.
        type_id: ggml_type and GGMLQuantizationType.
        file_type: llama_ftype and general.file_type.
        description: what llama-quantize prints behind the bits per weight.
        block_size: weights in a block; a row of a tensor is a whole number of blocks.
        sub_block_size: weights under the innermost scale; `block_size` where the fp16 scale is the only one.
        sub_scale_bits: of the scale of a sub-block, signed, stored with an offset; 0 where there is none.
        code_run: weights whose codes are the low nibbles of as many consecutive bytes; the next run is in the high
            nibbles of the same bytes.
        unit: (numerator, denominator) of what a level of 1 is worth where every scale is 1.
        levels: the 16 reconstruction levels times 127, ascending.
        activation: what activations are rounded to.
        fallback: the type of a tensor whose rows do not divide into blocks; None ends the chain at Q8_0.
        search: grid of the encoder search.
        gptq: grid of the encoder gptq.
        kernels: what is implemented for the type.
    """

    name: str
    type_id: int
    file_type: int
    description: str
    block_size: int
    sub_block_size: int
    sub_scale_bits: int
    code_run: int
    unit: tuple[int, int]
    levels: tuple[int, ...]
    activation: Activation
    fallback: Format | None
    search: SearchGrid
    gptq: SearchGrid
    kernels: frozenset[Kernels]

    @property
    def c_name(self) -> str:
        """The name as it begins C identifiers, and as ggml prints it."""
        return self.name.lower()

    @property
    def n_sub_blocks(self) -> int:
        return self.block_size // self.sub_block_size

    @property
    def sub_scale_offset(self) -> int:
        """What is added to the scale of a sub-block to store it: they lie from -offset to offset - 1."""
        return 1 << self.sub_scale_bits >> 1

    @property
    def sub_scale_bytes(self) -> int:
        """Bytes of all sub-block scales of a block."""
        return self.n_sub_blocks * self.sub_scale_bits // 8

    @property
    def codes_at(self) -> int:
        """The byte of a block at which its codes begin."""
        return SCALE_BYTES + self.sub_scale_bytes

    @property
    def block_bytes(self) -> int:
        return self.codes_at + self.block_size * CODE_BITS // 8

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    @property
    def zero_code(self) -> int:
        """The code whose level is 0."""
        return self.levels.index(0)

    @property
    def levels_key(self) -> str:
        """Metadata key of the level table, an int8 array."""
        return f"bof4.levels.{self.c_name}"


BOF4_S = Format(
    name="BOF4_S",
    type_id=176,
    file_type=176,
    description="block-wise optimal float",
    block_size=64,
    sub_block_size=64,
    sub_scale_bits=0,
    code_run=32,
    unit=(1, LEVEL_SCALE),  # the scale is the signed block maximum, and belongs to the last level
    levels=(-109, -85, -66, -51, -37, -24, -12, 0, 11, 23, 35, 48, 62, 79, 99, 127),
    activation=Q8_0,
    fallback=None,
    search=SearchGrid(0.72, 0.05, 13),
    gptq=SearchGrid(0.72, 0.06, 11),
    kernels=frozenset(Kernels),
)

BOF4_K = Format(
    name="BOF4_K",
    type_id=177,
    file_type=177,
    description="block-wise optimal float, scales of two levels",
    block_size=256,
    sub_block_size=16,
    sub_scale_bits=6,
    code_run=64,
    unit=(1, 4096),
    levels=(-99, -77, -61, -46, -33, -21, -10, 0, 11, 23, 35, 49, 65, 84, 106, 127),
    activation=Q8_K,
    fallback=BOF4_S,
    search=SearchGrid(0.50, 0.075, 12),
    gptq=SearchGrid(0.50, 0.075, 12),
    kernels=frozenset(Kernels),
)

FORMATS: tuple[Format, ...] = (BOF4_S, BOF4_K)
"""Every type. What is not in here does not exist."""

FORMAT_OF_TYPE_ID: dict[int, Format] = {fmt.type_id: fmt for fmt in FORMATS}


def _type_list(macro: str, formats: tuple[Format, ...]) -> str:
    return " \\\n    ".join([f"#define {macro}(X)", *(f"X({fmt.name}, {fmt.c_name})" for fmt in formats)])


def _constants(fmt: Format) -> list[str]:
    levels = ", ".join(str(k) for k in fmt.levels)
    midpoints = ", ".join(f"{(a + b) / 2}f" for a, b in pairwise(fmt.levels))
    fallback = "Q8_0" if fmt.fallback is None else fmt.fallback.name
    name = fmt.name
    return [
        f"#define QK_{name} {fmt.block_size}",
        f"#define {name}_BLOCK_BYTES {fmt.block_bytes}",
        f"#define {name}_TYPE_ID {fmt.type_id}",
        f"#define {name}_FILE_TYPE {fmt.file_type}",
        f'#define {name}_BPW "{fmt.bits_per_weight:.2f}"',
        f'#define {name}_DESCRIPTION "{fmt.description}"',
        f"#define {name}_SUB_BLOCK {fmt.sub_block_size}",
        f"#define {name}_SUB_BLOCKS {fmt.n_sub_blocks}",
        f"#define {name}_SUB_SCALE_OFFSET {fmt.sub_scale_offset}",
        f"#define {name}_SUB_SCALE_BYTES {fmt.sub_scale_bytes}",
        f"#define {name}_CODES_AT {fmt.codes_at}",
        f"#define {name}_CODE_RUN {fmt.code_run}",
        f"#define {name}_UNIT ({fmt.unit[0]}.0f / {fmt.unit[1]})",
        f"#define {name}_ACTIVATION GGML_TYPE_{fmt.activation.name}",
        f"#define {name}_FALLBACK GGML_TYPE_{fallback}",
        f"#define {name}_SEARCH {{ {fmt.search.first}f, {fmt.search.step}f, {fmt.search.count} }}",
        f"#define {name}_GPTQ {{ {fmt.gptq.first}f, {fmt.gptq.step}f, {fmt.gptq.count} }}",
        f"#define {name}_ZERO_CODE {fmt.zero_code}",
        f"#define {name}_LEVELS {{ {levels} }}",
        f"#define {name}_MIDPOINTS {{ {midpoints} }}",
    ]


def c_header() -> str:
    """The constants of every format as a C header, and X-macros over the types."""
    lines = [
        "// Generated by `python -m gguf_bof4.formats`. Do not edit: change gguf_bof4/formats.py.",
        "// Shaders include it, too: GLSL has no #pragma once.",
        "#ifndef BOF4_FORMAT_H",
        "#define BOF4_FORMAT_H",
        "",
        f"#define BOF4_FORMAT_VERSION {FORMAT_VERSION}",
        f"#define BOF4_LEVEL_SCALE {LEVEL_SCALE}",
        f"#define BOF4_FP16_MAX {FP16_MAX}f",
        f"#define BOF4_FP16_OVERFLOW {FP16_OVERFLOW}f",
        f"#define BOF4_FP16_NAN 0x{FP16_NAN:04x}",
        f"#define BOF4_FP16_INFINITY 0x{FP16_INFINITY:04x}",
        f"#define BOF4_OPQ_BLOCK {OPQ_BLOCK}",
        f"#define BOF4_TYPE_ID_END {max(fmt.type_id for fmt in FORMATS) + 1}",
        f"#define BOF4_MAX_BLOCK {max(fmt.block_size for fmt in FORMATS)}",
        f"#define BOF4_MAX_SUB_BLOCK {max(fmt.sub_block_size for fmt in FORMATS)}",
        "",
        "// X(NAME, name) for every type; for those whose fp16 scale is the only one; for those with scales of",
        "// sub-blocks; and for those of which more than portable code is implemented.",
        _type_list("BOF4_TYPES", FORMATS),
        _type_list("BOF4_TYPES_ONE_SCALE", tuple(fmt for fmt in FORMATS if fmt.n_sub_blocks == 1)),
        _type_list("BOF4_TYPES_SUB_SCALES", tuple(fmt for fmt in FORMATS if fmt.n_sub_blocks > 1)),
    ]
    for kernels in Kernels:
        formats = tuple(fmt for fmt in FORMATS if kernels in fmt.kernels)
        lines.append(_type_list(f"BOF4_TYPES_{kernels.name}", formats))
    lines += [
        "",
        "// BOF4_TYPES(...) in enum ggml_type and in enum llama_ftype",
        "#define BOF4_TYPE_ENUMERATOR(NAME, name) GGML_TYPE_##NAME = NAME##_TYPE_ID,",
        "#define BOF4_FILE_TYPE_ENUMERATOR(NAME, name) LLAMA_FTYPE_MOSTLY_##NAME = NAME##_FILE_TYPE,",
    ]
    for fmt in FORMATS:
        lines += ["", *_constants(fmt)]
    lines += ["", "#endif"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(c_header(), end="")
