"""Which tensors get an outlier list: the values of --opq."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_bof4.convert.policy import split_pattern
from gguf_bof4.errors import UserError
from gguf_bof4.lists import threshold


@dataclass(frozen=True)
class ListRules:
    """Quantiles of outliers; None stands for no list.

    Attributes:
        default: the quantile for tensors that no pattern is found in.
        patterns: (regular expression, quantile); the first that is found in a tensor's name counts.
    """

    default: float | None
    patterns: tuple[tuple[str, float | None], ...] = ()

    def quantile(self, name: str) -> float | None:
        """The quantile of the outliers of a tensor."""
        return next((q for pattern, q in self.patterns if re.search(pattern, name)), self.default)


def _parse_quantile(text: str, value: str) -> float | None:
    if value.lower() == "off":
        return None
    try:
        quantile = float(value)
        threshold(quantile)
    except ValueError as error:
        raise UserError(f"--opq {text}: give a quantile between 0 and 1, such as 0.95, or off") from error
    return quantile


def parse_rules(texts: Sequence[str], default: str) -> ListRules:
    """The values of --opq: at most one "Q" or "off", any number of PATTERN=Q and PATTERN=off.

    Args:
        default: the value where none is without a pattern.

    Raises:
        UserError: a quantile is not between 0 and 1, a pattern is malformed, or two values are without a pattern.
    """
    bare = [text for text in texts if "=" not in text]
    if len(bare) > 1:
        raise UserError(f"--opq {bare[0]} and --opq {bare[1]}: give one value for all tensors, others with a PATTERN=")
    patterns = []
    for text in texts:
        if "=" in text:
            pattern, value = split_pattern("--opq", text, "PATTERN=Q, such as attn_v=0.99, or PATTERN=off")
            patterns.append((pattern, _parse_quantile(text, value)))
    chosen = bare[0] if bare else default
    return ListRules(_parse_quantile(chosen, chosen), tuple(patterns))
