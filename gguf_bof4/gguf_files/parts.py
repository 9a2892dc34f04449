"""File names of models in several parts, GGUF or Hugging Face: name-00001-of-00003.gguf."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError

_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf|\.safetensors|\.bin)$")


@dataclass(frozen=True)
class PartName:
    """A name like stem-00001-of-00003.suffix.

    Attributes:
        number: of the part, from 1 on.
        count: of the parts.
        suffix: with its dot.
    """

    stem: str
    number: int
    count: int
    suffix: str

    def of_part(self, number: int) -> str:
        """The name of another part."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}"

    def all(self) -> list[str]:
        """The names of all parts."""
        return [self.of_part(i + 1) for i in range(self.count)]


def parse_part_name(name: str) -> PartName | None:
    """The parts of a file name; None where it is not the name of a part."""
    match = _NAME.match(name)
    if match is None:
        return None
    return PartName(match["stem"], int(match["number"]), int(match["count"]), match["suffix"])


def part_paths(path: Path) -> list[Path]:
    """All parts of a GGUF model.

    Args:
        path: a file of one part, or the first of several.

    Raises:
        UserError: `path` is a later part, or a part is missing.
    """
    name = parse_part_name(path.name)
    if name is None or name.suffix != ".gguf":
        return [path]
    if name.number != 1:
        first = path.with_name(name.of_part(1))
        raise UserError(f"{path} is a later part of a split model: give the first one, {first}")
    parts = [path.with_name(part) for part in name.all()]
    if missing := [p.name for p in parts if not p.is_file()]:
        raise UserError(f"{path}: parts of the split model are missing: {', '.join(missing)}")
    return parts
