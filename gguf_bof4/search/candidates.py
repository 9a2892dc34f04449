"""The candidates of each tensor: types, with and without outlier lists, and the bytes that each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType as TensorType

from gguf_bof4.convert.encoding import nbytes
from gguf_bof4.convert.output_lists import list_room
from gguf_bof4.convert.policy import parse_type, with_fallback
from gguf_bof4.encoders.encoder import Encoder
from gguf_bof4.errors import UserError
from gguf_bof4.lists import LISTED_TYPES
from gguf_bof4.outlier_choice import Budget

DEFAULT_TYPES = ("Q3_K", "IQ3_S", "BOF4_S", "BOF4_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Where the rows of a tensor do not divide into the blocks of one, its fallback takes its place."""

DEFAULT_LIST_BITS = 0.05
"""Bits per weight of outlier lists: those of about half as many outliers as --opq 0.95 has."""

_WITH_LIST = "+list"


@dataclass(frozen=True)
class Candidate:
    """A type, and the budget of its outlier list.

    Attributes:
        rule: None: no list.
    """

    qtype: TensorType
    rule: Budget | None = None

    @property
    def name(self) -> str:
        """As tables and stored losses have it, such as BOF4_S+list0.05."""
        return self.qtype.name + ("" if self.rule is None else f"{_WITH_LIST}{self.rule.bits:g}")

    def data_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor without its list."""
        return nbytes(shape, self.qtype)

    def list_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of its list, at most: fewer outliers are listed where no other saves anything."""
        return 0 if self.rule is None else list_room(shape, self.rule)


def parse_types(names: Sequence[str], importance: bool) -> tuple[TensorType, ...]:
    """Candidate types by their names.

    Args:
        importance: there is an importance matrix.

    Raises:
        UserError: there is no such type, or it cannot be written.
    """
    if not names:
        raise UserError(f"--types: name some types, such as {','.join(DEFAULT_TYPES)}")
    return tuple(dict.fromkeys(parse_type(name, importance) for name in names))


def parse_tables(token_embedding: str | None, output: str | None) -> dict[str, TensorType]:
    """The types of the tables that options give one, by the names of the tensors.

    Raises:
        UserError: there is no such type, or it cannot be written.
    """
    given = {"token_embd.weight": token_embedding, "output.weight": output}
    return {name: parse_type(qtype, True) for name, qtype in given.items() if qtype is not None}


def types_for(encoder: Encoder) -> tuple[TensorType, ...]:
    """The candidate types of a search whose recipe an encoder of the converter is given: those that it can encode."""
    of_all = parse_types(DEFAULT_TYPES, importance=True)
    return of_all if encoder.calibrate is None else tuple(t for t in of_all if encoder.can_encode(t))


def candidates_of(
    types: Sequence[TensorType], list_bits: float | None, columns: int, may_have_list: bool
) -> tuple[Candidate, ...]:
    """The candidates of a tensor, each once.

    Args:
        types: that are asked for; a fallback takes the place of one that rows do not divide into.
        list_bits: bits per weight of outlier lists; None: no candidate has one.
        columns: weights in a row.
        may_have_list: llama.cpp would load a list of the tensor.
    """
    fitting = dict.fromkeys(with_fallback(qtype, columns).qtype for qtype in types)
    found = []
    for qtype in fitting:
        found.append(Candidate(qtype))
        if list_bits is not None and may_have_list and qtype in LISTED_TYPES:
            found.append(Candidate(qtype, Budget(list_bits)))
    return tuple(found)
