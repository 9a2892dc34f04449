"""The type of each tensor: llama-quantize's rules, as pure functions.

Whether a tensor is quantized at all is decided by llama.cpp (`native.allows_quantization`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as TensorType

from gguf_bof4 import native
from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMATS

FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16)

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"
_NEXTN_EMBEDDINGS = r"blk\.\d+\.nextn\.embed_tokens\.weight"
_NEXTN_OUTPUT = r"blk\.\d+\.nextn\.shared_head_head\.weight"

# ggml has no encoder for the first; the second give garbage without an importance matrix, as llama-quantize says
_NOT_WRITTEN = {"Q8_1", "Q8_K", "F64", "I8", "I16", "I32", "I64"}
NEED_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}

# llama-quantize's tensor_type_fallback; every type that is not a key becomes F16
_FALLBACK = {
    **{fmt.name: "Q8_0" if fmt.fallback is None else fmt.fallback.name for fmt in FORMATS},
    **dict.fromkeys(("Q6_K", "NVFP4"), "Q8_0"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    **dict.fromkeys(("IQ3_S", "IQ4_XS"), "IQ4_NL"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
}


def parse_type(name: str, importance: bool = False) -> TensorType:
    """A type that the converter can write, by its name in any case.

    Args:
        importance: there is an importance matrix.

    Raises:
        UserError: there is no such type, or it cannot be written.
    """
    upper = name.upper()
    known = TensorType.__members__
    writable = [n for n in known if n not in _NOT_WRITTEN and (importance or n not in NEED_IMATRIX)]
    if upper in NEED_IMATRIX and not importance:
        raise UserError(f"the type {upper} needs an importance matrix: give one with --imatrix FILE")
    if upper not in writable:
        raise UserError(f"there is no tensor type {name!r} to convert to; the types are {', '.join(writable)}")
    return known[upper]


def split_pattern(option: str, text: str, example: str) -> tuple[str, str]:
    """PATTERN=VALUE as llama-quantize takes it: the pattern in lower case, and the value.

    Args:
        option: and example, for messages.

    Raises:
        UserError: not of that form, or the pattern is no regular expression.
    """
    pattern, equals, value = text.partition("=")
    pattern = pattern.lower()
    if not (pattern and equals and value):
        raise UserError(f"{option} {text}: give {example}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{option} {text}: the pattern is no regular expression: {error}") from error
    return pattern, value


def parse_pattern(text: str, importance: bool = False) -> tuple[str, TensorType]:
    """PATTERN=TYPE: the pattern in lower case, and the type.

    Args:
        importance: there is an importance matrix.

    Raises:
        UserError: not of that form, the pattern is no regular expression, or there is no such type.
    """
    pattern, name = split_pattern("--tensor-type", text, "PATTERN=TYPE, such as attn_v=q8_0")
    return pattern, parse_type(name, importance)


@dataclass(frozen=True)
class Rules:
    """Options that decide types; the fields are those of llama-quantize.

    Attributes:
        base: the type of matrices.
        token_embedding: of the token embeddings, where given.
        output_tensor: of output.weight, where given; of tied token embeddings, too.
        patterns: (regular expression, type); the first that is found in a tensor's name counts.
        pure: embeddings and output get the base type, too.
        leave_output: output.weight keeps its type.

    Embeddings and outputs of layers of multi-token prediction get the types of the model's.
    """

    base: TensorType
    token_embedding: TensorType | None = None
    output_tensor: TensorType | None = None
    patterns: tuple[tuple[str, TensorType], ...] = ()
    pure: bool = False
    leave_output: bool = False

    def matched(self, name: str) -> TensorType | None:
        """The type of the first pattern found in `name`."""
        return next((qtype for pattern, qtype in self.patterns if re.search(pattern, name)), None)

    def given(self, name: str) -> TensorType | None:
        """The type that --token-embedding-type or --output-tensor-type gives a table."""
        return self.token_embedding if is_embedding(name) else self.output_tensor if is_output(name) else None

    def named(self, name: str) -> bool:
        """Does one of these options name the tensor? Otherwise it gets the type of its kind."""
        kept = self.leave_output and is_output(name)
        return kept or self.matched(name) is not None or self.given(name) is not None


@dataclass(frozen=True)
class Decision:
    """The type of a tensor, and where it is a fallback, why."""

    qtype: TensorType
    fallback: str | None = None


def fits(qtype: TensorType, n_per_row: int) -> bool:
    """Do rows of this length divide into blocks of the type?"""
    return bool(n_per_row % gguf.GGML_QUANT_SIZES[qtype][0] == 0)


def with_fallback(wanted: TensorType, n_per_row: int) -> Decision:
    """`wanted`, or its fallback type where rows do not divide into its blocks."""
    if fits(wanted, n_per_row):
        return Decision(wanted)
    block = gguf.GGML_QUANT_SIZES[wanted][0]
    taken = wanted
    while not fits(taken, n_per_row):
        taken = TensorType[_FALLBACK.get(taken.name, "F16")]
    return Decision(taken, f"rows of {n_per_row} are no multiple of {wanted.name}'s {block}: {taken.name}")


def kept(source: TensorType) -> TensorType:
    """The type of a tensor that llama.cpp does not want quantized: its own, or F32 where it is quantized."""
    is_block_type = gguf.GGML_QUANT_SIZES[source][0] > 1
    return TensorType.F32 if is_block_type else source


def is_quantizable(architecture: str, name: str, shape: tuple[int, ...], source: TensorType) -> bool:
    """Would llama-quantize quantize the tensor? Integers and doubles are no weights.

    Raises:
        native.NativeError: llama.cpp does not know the architecture.
    """
    is_weight = not (source.name in _NOT_WRITTEN and gguf.GGML_QUANT_SIZES[source][0] == 1)
    return is_weight and native.allows_quantization(architecture, name, shape)


def is_embedding(name: str) -> bool:
    """Are rows of the tensor looked up by tokens? Layers of multi-token prediction may have embeddings of their own."""
    return name in EMBEDDINGS or re.fullmatch(_NEXTN_EMBEDDINGS, name) is not None


def is_output(name: str) -> bool:
    """Is the tensor the output of the model, or of a layer of multi-token prediction?"""
    return name == OUTPUT or re.fullmatch(_NEXTN_OUTPUT, name) is not None


def wanted_type(name: str, rules: Rules, tied: bool) -> TensorType:
    """The type of a tensor that may be quantized, without regard to its shape.

    Args:
        tied: the model has no output.weight, so its token embeddings are its output, too.
    """
    matched, given = rules.matched(name), rules.given(name)
    embedding, output = is_embedding(name), is_output(name)
    # as in llama-quantize; the tables of single layers are named by patterns
    if given is not None and (matched is None or name in (EMBEDDINGS[0], OUTPUT)):
        return given
    if matched is not None:
        return matched
    if rules.pure or not (embedding or output):
        return rules.base
    if tied and rules.output_tensor is not None:
        return rules.output_tensor
    return TensorType.Q6_K


def decide(
    architecture: str, name: str, shape: tuple[int, ...], source: TensorType, rules: Rules, tied: bool
) -> Decision:
    """The type of a tensor of the output.

    Args:
        architecture: general.architecture.
        shape: rows before columns.
        source: its type in the source.
        tied: the model has no output.weight.

    Raises:
        native.NativeError: llama.cpp does not know the architecture.
    """
    if rules.leave_output and is_output(name):
        return Decision(source)
    if not is_quantizable(architecture, name, shape, source):
        return Decision(kept(source))
    return with_fallback(wanted_type(name, rules, tied), shape[-1])
