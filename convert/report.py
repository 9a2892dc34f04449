"""The report of a conversion."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf_bof4.formats import FORMATS
from gguf_bof4.gguf_files.model import bits_per_weight
from gguf_bof4.weight_errors import GROUPS, ErrorSums, group_of


def size_text(nbytes: int) -> str:
    """A number of bytes in a decimal unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes} bytes"


@dataclass(frozen=True)
class TensorReport:
    """One tensor of a conversion.

    Attributes:
        shape: rows before columns.
        source_type: name of its ggml type in the source.
        qtype: name of its ggml type in the output.
        nbytes: without its outlier list.
        outliers: in its list, 0 where it has none; None where a dry run cannot tell.
        list_nbytes: of its list.
        no_list: why it has no list although one was asked for.
        fallback: why it did not get the type that it should have.
        decoded: it was quantized in the source, and has another type in the output.
        requantized: that type is quantized, too.
        not_compensated: why the encoder could not compensate errors in it, and how it was encoded instead.
        unweighted: it is not in the importance matrix that was given.
        errors: what encoding in blocks has cost; None where it was not encoded in blocks, and in a dry run.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    qtype: str
    nbytes: int
    outliers: int | None
    list_nbytes: int
    no_list: str | None
    fallback: str | None
    decoded: bool
    not_compensated: str | None = None
    unweighted: bool = False
    requantized: bool = False
    errors: ErrorSums | None = None

    @property
    def bits_per_weight(self) -> float:
        """With its outlier list."""
        return bits_per_weight(self.nbytes + self.list_nbytes, self.n_weights)

    @property
    def n_weights(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GroupReport:
    """The tensors of a group, such as the attention's q of all layers.

    Attributes:
        tensors: matrices.
    """

    name: str
    tensors: tuple[TensorReport, ...]

    @property
    def nbytes(self) -> int:
        """With the outlier lists."""
        return sum(t.nbytes + t.list_nbytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.nbytes, sum(t.n_weights for t in self.tensors))

    @property
    def types(self) -> dict[str, int]:
        """Types, and the number of tensors of each."""
        return dict(Counter(t.qtype for t in self.tensors))

    @property
    def errors(self) -> ErrorSums | None:
        """Of the tensors that were encoded in blocks; None where none was."""
        found = [t.errors for t in self.tensors if t.errors is not None]
        if not found:
            return None
        return ErrorSums(sum(e.squared_error for e in found), sum(e.squared_weights for e in found))


@dataclass(frozen=True)
class ConversionReport:
    """A whole conversion.

    Attributes:
        outputs: the files written, or that would be written in a dry run.
        bytes_before: of the source's weight files.
        bytes_after: of the outputs; in a dry run, of the tensors.
        seconds: from start to end, reading and writing included.
    """

    source: Path
    outputs: tuple[Path, ...]
    architecture: str
    tensors: tuple[TensorReport, ...]
    bytes_before: int
    bytes_after: int
    seconds: float
    dry_run: bool

    @property
    def n_weights(self) -> int:
        return sum(t.n_weights for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors, with their outlier lists; metadata is not counted."""
        return bits_per_weight(sum(t.nbytes + t.list_nbytes for t in self.tensors), self.n_weights)

    @property
    def listed(self) -> tuple[TensorReport, ...]:
        """Tensors that have an outlier list."""
        return tuple(t for t in self.tensors if t.outliers)

    @property
    def without_list(self) -> tuple[TensorReport, ...]:
        """Tensors that cannot have a list although one was asked for."""
        return tuple(t for t in self.tensors if t.no_list)

    @property
    def fallbacks(self) -> tuple[TensorReport, ...]:
        """Tensors whose rows did not fit the type that they should have had."""
        return tuple(t for t in self.tensors if t.fallback)

    @property
    def not_compensated(self) -> tuple[TensorReport, ...]:
        """Tensors of decoder layers in which the encoder gptq could not compensate errors."""
        return tuple(t for t in self.tensors if t.not_compensated)

    @property
    def unweighted(self) -> tuple[TensorReport, ...]:
        """Tensors that were encoded without weights on errors although an importance matrix was given."""
        return tuple(t for t in self.tensors if t.unweighted)

    @property
    def groups(self) -> tuple[GroupReport, ...]:
        """The matrices by their place in the model."""
        matrices = [t for t in self.tensors if len(t.shape) > 1]
        found = {name: tuple(t for t in matrices if group_of(t.name) == name) for name in GROUPS}
        return tuple(GroupReport(name, tensors) for name, tensors in found.items() if tensors)

    @property
    def worst(self) -> tuple[TensorReport, ...]:
        """The tensors that were encoded in blocks, largest relative error first."""
        found = [(t.errors.relative, t) for t in self.tensors if t.errors is not None]
        return tuple(t for _, t in sorted(found, key=lambda pair: pair[0], reverse=True))

    @property
    def decoded_types(self) -> dict[str, int]:
        """Block types that were decoded, and the number of tensors of each."""
        return dict(Counter(t.source_type for t in self.tensors if t.decoded))

    @property
    def requantized_types(self) -> dict[str, int]:
        """Block types that were quantized a second time, and the number of tensors of each."""
        return dict(Counter(t.source_type for t in self.tensors if t.requantized))

    @property
    def copied(self) -> dict[str, int]:
        """Types of this project that tensors had already, and the number of each: these are copied, lists too."""
        names = {f.name for f in FORMATS}
        return dict(Counter(t.qtype for t in self.tensors if t.source_type == t.qtype and t.qtype in names))

    @property
    def needs_patch(self) -> dict[str, int]:
        """Types that only a patched llama.cpp knows, and the number of tensors of each."""
        names = {f.name for f in FORMATS}
        return {name: count for name, count in self.types.items() if name in names}

    @property
    def types(self) -> dict[str, int]:
        """Types of the output, and the number of tensors of each."""
        return dict(Counter(t.qtype for t in self.tensors))
