"""What every format is: a record with parameters, a count of bits, and a function from numbers to decoded numbers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch

from gguf_bof4.errors import UserError

Tensor = torch.Tensor
_Any = TypeVar("_Any", bound="Format")


def whole(default: int, low: int, high: int) -> Any:
    """A field of a format: a whole number in a range, ends included."""
    return field(default=default, metadata={"low": low, "high": high})


def fraction(default: float, low: float, high: float) -> Any:
    """A field of a format: a number in a range; the upper end is excluded."""
    return field(default=default, metadata={"low": low, "high": high, "real": True})


def choice(default: str, *others: str) -> Any:
    """A field of a format: one of some words."""
    return field(default=default, metadata={"choices": (default, *others)})


@dataclass(frozen=True)
class Quantized:
    """Numbers as a decoder gives them back, and what they take.

    Attributes:
        values: float32, the shape of the input.
        bits: that are stored, everything included.
    """

    values: Tensor
    bits: int


@dataclass(frozen=True)
class Format:
    """A number format with its parameters.

    A new format is a subclass with `family`, `summary`, `multiple`, `stored_bits` and `decoded`, and a line in
    registry.FAMILIES.
    """

    family: ClassVar[str]
    """The name without parameters."""

    summary: ClassVar[str]
    """One line for a list."""

    adaptive: ClassVar[bool] = False
    """The decoder gets tables that were fitted to the tensor: for weights only."""

    native: ClassVar[bool] = False
    """It calls the native library: for weights only."""

    uses_importance: ClassVar[bool] = False
    """Its encoder minimizes an error that `importance` can weigh."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check(self.family, f, getattr(self, f.name))

    @property
    def name(self) -> str:
        """The family and the parameters that have not their default value, like "BFP:w=4"."""
        changed = [
            f"{f.name}={_text(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default and "hidden" not in f.metadata
        ]
        return ":".join([self.family, *changed])

    @property
    def needs_samples(self) -> bool:
        """Must `fitted` be called before it quantizes?"""
        return False

    def fitted(self: _Any, samples: Tensor) -> _Any:
        """The format with tables for numbers like these samples, float32 [..., n]; itself where it has none."""
        return self

    @property
    def for_activations(self) -> bool:
        """Can it encode activations, of which it sees nothing before?"""
        return not (self.adaptive or self.native)

    @property
    def multiple(self) -> int:
        """Numbers in the largest block: rows must be a multiple of it."""
        raise NotImplementedError

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits of a tensor of this shape, all that a decoder needs; outliers are counted by `quantize`."""
        raise NotImplementedError

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        """`quantize` without its checks."""
        raise NotImplementedError

    def bits_per_number(self, shape: tuple[int, ...] = (4096, 4096)) -> float:
        """`stored_bits` divided by the numbers of the tensor."""
        return self.stored_bits(shape) / math.prod(shape)

    def quantize(self, x: Tensor, importance: Tensor | None = None, what: str = "a tensor") -> Quantized:
        """Encode and decode.

        Args:
            x: float32 [..., n]; blocks are runs of the last dimension.
            importance: float32 [n], positive: the weight of the squared error of each column. Formats that do not
                minimize an error ignore it.
            what: the tensor's name, for messages.

        Raises:
            UserError: n is no multiple of the block, or a number is NaN or infinite.
        """
        self.check_row(x.shape[-1], what)
        if not bool(torch.isfinite(x).all()):
            raise UserError(f"{what} has NaN or infinite numbers, which no format here stores: repair the model")
        return self.decoded(x, importance)

    def check_row(self, n: int, what: str) -> None:
        """Raise UserError where rows of n numbers are no multiple of the block."""
        if n % self.multiple:
            raise UserError(
                f"{what}: rows of {n} are no multiple of {self.multiple}, the block of {self.name}: give a format with "
                "a smaller block, or --flat where the command has it"
            )

    def replaced(self: _Any, **changes: Any) -> _Any:
        """The same format with other parameters."""
        return dataclasses.replace(self, **changes)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check(family: str, f: dataclasses.Field[Any], value: Any) -> None:
    meta = f.metadata
    if "choices" in meta and value not in meta["choices"]:
        raise UserError(f"format {family}: {f.name} is {value!r}, take one of {', '.join(meta['choices'])}")
    if "low" in meta:
        low, high, real = meta["low"], meta["high"], "real" in meta
        if not (low <= value < high if real else low <= value <= high):
            kind, end = ("number", " (excluded)") if real else ("whole number", "")
            raise UserError(f"format {family}: {f.name} is {_text(value)}, give a {kind} from {low} to {high}{end}")


def parse_parameter(family: str, f: dataclasses.Field[Any], text: str) -> Any:
    """The value of a field in a text.

    Raises:
        UserError: no number where one is wanted.
    """
    kind = str(f.type)
    try:
        return {"int": int, "float": float}.get(kind, str)(text)
    except ValueError:
        wanted = {"int": "a whole number", "float": "a number"}[kind]
        raise UserError(f"format {family}: {f.name} is {text!r}, give {wanted}") from None


def in_blocks(x: Tensor, block: int) -> Tensor:
    """[..., n] to [blocks, block]; a view where possible."""
    return x.reshape(-1, block)


def numbers(shape: tuple[int, ...]) -> int:
    """Numbers in a tensor of this shape."""
    return math.prod(shape)
