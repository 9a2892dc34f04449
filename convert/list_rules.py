"""Which tensors get an outlier list, and of which weights: the values of --opq and --opq-bits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_bof4.convert.policy import split_pattern
from gguf_bof4.errors import UserError
from gguf_bof4.lists import threshold
from gguf_bof4.outlier_choice import Budget, OutlierRule, Quantile

MOST_BITS = 1.0
"""Of --opq-bits: one weight in 32."""


@dataclass(frozen=True)
class ListRules:
    """How outliers are chosen; None stands for no list.

    Attributes:
        default: the rule for tensors that no pattern is found in.
        patterns: (regular expression, rule); the first that is found in a tensor's name counts.
    """

    default: OutlierRule | None
    patterns: tuple[tuple[str, OutlierRule | None], ...] = ()

    def of(self, name: str) -> OutlierRule | None:
        """The rule for a tensor."""
        return next((rule for pattern, rule in self.patterns if re.search(pattern, name)), self.default)


def _parse_quantile(text: str, value: str) -> Quantile | None:
    if value.lower() == "off":
        return None
    try:
        quantile = float(value)
        threshold(quantile)
    except ValueError as error:
        raise UserError(f"--opq {text}: give a quantile between 0 and 1, such as 0.95, or off") from error
    return Quantile(quantile)


def parse_rules(texts: Sequence[str], default: str, bits: float | None = None) -> ListRules:
    """The values of --opq: at most one "Q" or "off", any number of PATTERN=Q and PATTERN=off.

    Args:
        default: the value where none is without a pattern.
        bits: the value of --opq-bits, which takes the place of the one without a pattern.

    Raises:
        UserError: a quantile is not between 0 and 1, a pattern is malformed, two values are without a pattern, or the
            number of bits is not one that lists can have.
    """
    bare = [text for text in texts if "=" not in text]
    if len(bare) > 1:
        raise UserError(f"--opq {bare[0]} and --opq {bare[1]}: give one value for all tensors, others with a PATTERN=")
    patterns = []
    for text in texts:
        if "=" in text:
            pattern, value = split_pattern("--opq", text, "PATTERN=Q, such as attn_v=0.99, or PATTERN=off")
            patterns.append((pattern, _parse_quantile(text, value)))
    if bits is not None:
        if bare:
            raise UserError(
                f"--opq {bare[0]} and --opq-bits {bits:g} are two rules for the same tensors: give one of them"
            )
        return ListRules(checked_budget(bits, f"--opq-bits {bits:g}"), tuple(patterns))
    chosen = bare[0] if bare else default
    return ListRules(_parse_quantile(chosen, chosen), tuple(patterns))


def parse_rule(text: str) -> OutlierRule | None:
    """The rule of one tensor, as a recipe has it: opq:0.95, opq:off or opq-bits:0.05; None: no list.

    Raises:
        UserError: it is none of these, or the number is not possible.
    """
    option, _, value = text.partition(":")
    if option == "opq":
        return _parse_quantile(value, value)
    if option == "opq-bits":
        try:
            bits = float(value)
        except ValueError as error:
            raise UserError(f"opq-bits:{value}: give bits per weight, such as opq-bits:0.05") from error
        return checked_budget(bits, f"opq-bits:{value}")
    raise UserError(f"{text} is no rule for outlier lists: write opq:0.95, opq-bits:0.05 or opq:off")


def checked_budget(bits: float, given: str) -> Budget:
    """A budget of bits per weight.

    Args:
        given: as the user wrote it, for the message.

    Raises:
        UserError: it is not above 0 and up to `MOST_BITS`.
    """
    if not 0 < bits <= MOST_BITS:
        raise UserError(
            f"{given}: give bits per weight above 0 and up to {MOST_BITS:g}, such as 0.05; --opq off writes no lists"
        )
    return Budget(bits)
