"""Models in several parts, GGUF or Hugging Face: file names (name-00001-of-00003.gguf) and what metadata says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.header import escaped

_NAME = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf|\.safetensors|\.bin)", re.ASCII | re.DOTALL
)
_MOST_NAMES = 5
"""Names of files in a message."""

_RENAMED = "llama.cpp finds the parts of a model by their names: give the files the names that they had"


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


@dataclass(frozen=True)
class Split:
    """What the metadata of a part says of the split; None where it says nothing.

    Attributes:
        count: of the parts (split.count).
        number: of this part, from 0 on (split.no).
        n_tensors: of all parts (split.tensors.count).
    """

    count: int | None
    number: int | None
    n_tensors: int | None

    @property
    def is_part(self) -> bool:
        """Are there other parts? As in llama.cpp, this is up to the metadata and not to the name."""
        return self.count is not None and self.count > 1


def parse_part_name(name: str) -> PartName | None:
    """The parts of a file name; None where it is not the name of a part."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return PartName(match["stem"], int(match["number"]), int(match["count"]), match["suffix"])


def listed(names: Sequence[str]) -> str:
    """Names for a message, escaped, not more than a reader looks at."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(escaped, names[:_MOST_NAMES])) + more


def part_paths(path: Path, split: Split) -> list[Path]:
    """All files of a GGUF model.

    Args:
        path: a model of one file, or the first of its parts.
        split: of that file.

    Raises:
        UserError: it is a later part, its name is not that of a first part, or a part is missing.
    """
    if not split.is_part:
        return [path]
    if split.number is None:
        raise UserError(f"{path} is damaged: it is one of {split.count} parts (split.count), but has no split.no")
    name = parse_part_name(path.name)
    if name is None or name.suffix != ".gguf" or (name.number, name.count) != (split.number + 1, split.count):
        raise UserError(
            f"{path} is part {split.number + 1} of {split.count} (split.no and split.count in its metadata), but its "
            f"name does not end in -{split.number + 1:05d}-of-{split.count:05d}.gguf, so it was renamed. {_RENAMED}"
        )
    if name.number != 1:
        first = path.with_name(name.of_part(1))
        raise UserError(f"{path} is a later part of a split model: give the first one, {first}")
    parts = [path.with_name(part) for part in name.all()]
    if missing := [p.name for p in parts if not p.is_file()]:
        raise UserError(f"{path}: parts of the split model are missing: {listed(missing)}")
    return parts


def check_split(parts: Sequence[Path], splits: Sequence[Split], n_tensors: int) -> None:
    """Check that the files of a model are its parts, all of them and in order.

    Args:
        parts: as `part_paths` gives them.
        splits: of each.
        n_tensors: in all of them, outlier lists included.

    Raises:
        UserError: a part is another one than its name says, or of another model.
    """
    first = splits[0]
    if not first.is_part:
        return
    for i, (path, split) in enumerate(zip(parts, splits, strict=True)):
        if split.number != i:
            said = "has no split.no" if split.number is None else f"is part {split.number + 1} (split.no)"
            raise UserError(f"{path} {said} in its metadata, but part {i + 1} by its name. {_RENAMED}")
        if split.count is not None and split.count != first.count:
            raise UserError(
                f"{path} is one of {split.count} parts (split.count in its metadata), but {parts[0].name} is one of "
                f"{first.count}: they belong to different models"
            )
    if first.n_tensors != n_tensors:
        promised = "does not say how many tensors there are" if first.n_tensors is None else f"says {first.n_tensors}"
        raise UserError(
            f"{parts[0]}: the {len(parts)} parts have {n_tensors} tensors, but split.tensors.count {promised}: a part "
            "belongs to another model, or the files are damaged"
        )
