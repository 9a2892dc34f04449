"""Recipes: the type and the outlier list of each tensor, in a file that llama-quantize --tensor-type-file reads, too.

llama-quantize takes every word of the file as PATTERN=TYPE, a regular expression and a type, and knows no comments. So
comments are words, too: patterns that begin with "#", which no name of a tensor has. How outliers are chosen stands in
a second branch of a pattern, which finds nothing either:

    #_4.40_bits_per_weight=f32
    ^blk\\.0\\.attn_q\\.weight$|#opq-bits:0.05=bof4_s
    ^blk\\.0\\.ffn_down\\.weight$=q5_k

This reader also takes lines that begin with "#" and words behind a "#" as comments in any words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType as TensorType

from gguf_bof4.convert.list_rules import parse_rule
from gguf_bof4.convert.output_types import OUTPUT_TYPES
from gguf_bof4.convert.policy import fits, parse_type, with_fallback
from gguf_bof4.errors import UserError
from gguf_bof4.lists import LISTED_TYPES
from gguf_bof4.outlier_choice import OutlierRule, Quantile

_BRANCH = "|#"
"""Begins the branch of a pattern that says how outliers are chosen."""

_COMMENT = "#"
_COMMENT_TYPE = "f32"
"""llama-quantize wants a type behind every word; no tensor gets that of a comment."""

_LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Line:
    """One PATTERN=TYPE of a recipe.

    Attributes:
        number: of the line in the file, from 1 on.
        pattern: a regular expression in lower case, found anywhere in a name.
        qtype: of the tensors that it is found in.
        says_lists: the line says how outliers are chosen; otherwise the options of the conversion do.
        rule: of their outliers; None: they get no list.
    """

    number: int
    pattern: str
    qtype: TensorType
    says_lists: bool = False
    rule: OutlierRule | None = None

    def finds(self, name: str) -> bool:
        """Is the pattern found in a name?"""
        return re.search(self.pattern, name) is not None


@dataclass(frozen=True)
class Shape:
    """A tensor that a recipe is checked against.

    Attributes:
        columns: weights in a row.
        quantized: llama-quantize would quantize it.
    """

    name: str
    columns: int
    quantized: bool


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read."""

    path: Path
    lines: tuple[Line, ...]

    @property
    def types(self) -> tuple[tuple[str, TensorType], ...]:
        """Patterns and types, in order."""
        return tuple((line.pattern, line.qtype) for line in self.lines)

    def list_rules(self, default: OutlierRule | None) -> tuple[tuple[str, OutlierRule | None], ...]:
        """Patterns and rules of their outliers, in order.

        Args:
            default: the rule of lines that name none.
        """
        return tuple((line.pattern, line.rule if line.says_lists else default) for line in self.lines)

    @property
    def main_type(self) -> str | None:
        """The type of most lines that --type takes; None where it takes none of them."""
        known = {t.qtype: t.name for t in OUTPUT_TYPES}
        count = Counter(known[line.qtype] for line in self.lines if line.qtype in known)
        return count.most_common(1)[0][0] if count else None

    def _error(self, line: Line, why: str) -> UserError:
        return UserError(f"{self.path}, line {line.number}: {why}")

    def check(self, tensors: Sequence[Shape], decided: Callable[[str], bool]) -> None:
        """Refuse a recipe that does not fit a model.

        Args:
            tensors: of the model.
            decided: whether an option decides the type of the tensor of this name, so that the recipe does not.

        Raises:
            UserError: a line finds no tensor, or only such as are never quantized, or the rows of one do not divide
                into blocks of its type.
        """
        left = {t.name: t for t in tensors if not decided(t.name)}
        for line in self.lines:
            found = [t for t in tensors if line.finds(t.name)]
            if not found:
                raise self._error(
                    line, f"no tensor of the model has a name like {line.pattern}: the recipe is for another model, or "
                    "the name is misspelled (bof4 inspect lists the names)"
                )  # fmt: skip
            if not any(t.quantized for t in found):
                raise self._error(line, f"{found[0].name} is never quantized by llama.cpp: remove the line")
            for tensor in found:
                is_decided_here = left.pop(tensor.name, None) is not None and tensor.quantized
                if is_decided_here and not fits(line.qtype, tensor.columns):
                    taken = with_fallback(line.qtype, tensor.columns).qtype.name
                    raise self._error(
                        line, f"{tensor.name} cannot be {line.qtype.name}, because its rows of {tensor.columns} do not "
                        f"divide into its blocks: give it {taken}"
                    )  # fmt: skip


def _parse_word(path: Path, number: int, word: str, importance: bool) -> Line:
    pattern, equals, name = word.partition("=")
    where = f"{path}, line {number}"
    pattern, branch, rule = pattern.lower().partition(_BRANCH)
    if not (pattern and equals and name):
        raise UserError(f"{where}: {word} is not PATTERN=TYPE, such as attn_v=q8_0; a comment begins with #")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern} is no regular expression: {error}") from error
    try:
        qtype = parse_type(name, importance)
    except UserError as error:
        raise UserError(f"{where}, {pattern}: {error}") from error
    if not branch:
        return Line(number, pattern, qtype)
    try:
        parsed = parse_rule(rule)
    except UserError as error:
        raise UserError(f"{where}, {pattern}: {error}") from error
    if parsed is not None and qtype not in LISTED_TYPES:
        raise UserError(
            f"{where}, {pattern}: {qtype.name} has no outlier list: remove {_BRANCH}{rule}, or give it a BOF4 type"
        )
    return Line(number, pattern, qtype, True, parsed)


def read_recipe(path: Path, importance: bool = False) -> Recipe:
    """Read a recipe.

    Args:
        importance: there is an importance matrix, so that types that need one can be written.

    Raises:
        UserError: the file cannot be read or has no lines, or one is not PATTERN=TYPE, has no regular expression, or
            names a type or a rule of lists that does not exist.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"the recipe {path} is no text: give a file of lines PATTERN=TYPE, as bof4 search writes it"
        ) from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > _LONGEST_LINE:
            raise UserError(f"{path}, line {number} has {len(line)} letters: the file is no recipe")
        for word in line.split():
            if word.startswith(_COMMENT):
                break
            lines.append(_parse_word(path, number, word, importance))
    if not lines:
        raise UserError(f"the recipe {path} is empty: give a line PATTERN=TYPE for each tensor, such as attn_v=q8_0")
    return Recipe(path, tuple(lines))


def exact_pattern(name: str) -> str:
    """The regular expression, in lower case, that is found in this name only."""
    letters = (
        "." if letter.isspace() or letter in "#=" or letter != letter.lower() else re.sub(r"([\W])", r"\\\1", letter)
        for letter in name
    )
    return f"^{''.join(letters)}$"


def _rule_text(rule: OutlierRule | None) -> str:
    if rule is None:
        return "opq:off"
    return f"opq:{rule.value:g}" if isinstance(rule, Quantile) else f"opq-bits:{rule.bits:g}"


def tensor_line(name: str, qtype: TensorType, rule: OutlierRule | None) -> str:
    """The line of one tensor.

    Args:
        rule: of its outliers; None: no list.
    """
    lists = f"{_BRANCH}{_rule_text(rule)}" if qtype in LISTED_TYPES else ""
    return f"{exact_pattern(name)}{lists}={qtype.name.lower()}"


def comment_line(text: str) -> str:
    """A comment that llama-quantize reads as a pattern that finds nothing.

    Letters that would mean something in a regular expression, or end the word, are replaced.
    """
    words = re.sub(r"[^\w.,:;/%-]+", "_", text, flags=re.ASCII)
    return f"{_COMMENT}_{words}={_COMMENT_TYPE}"


def recipe_text(lines: Iterable[str]) -> str:
    """The contents of a file with these lines, of `tensor_line` and `comment_line`."""
    return "\n".join(lines) + "\n"

