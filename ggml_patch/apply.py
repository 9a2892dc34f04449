"""Apply the patches to a llama.cpp tree and copy our sources into it.

Neither git nor patch need be installed. Hunks are found by their content: the lines before a change must occur exactly
once in the file, so a tree that differs from the pinned one is patched correctly or refused, and a refused tree stays
as it was.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import PATCHES, SOURCES

SOURCES_IN_TREE = Path("ggml/src/bof4")

PUBLIC_HEADERS = "include"
"""The folder of our sources whose headers belong beside ggml.h, which includes them."""

HEADERS_IN_TREE = Path("ggml/include")


class PatchError(UserError):
    """The tree cannot be patched; the message names the patch, the file and the remedy."""


@dataclass(frozen=True)
class Hunk:
    """One change of one file.

    Attributes:
        patch: file name of the patch.
        path: of the changed file in the tree.
        heading: the line that begins with @@.
        lines: each begins with " " (context), "-" (removed) or "+" (added).
    """

    patch: str
    path: str
    heading: str
    lines: tuple[str, ...]

    @cached_property
    def old(self) -> tuple[str, ...]:
        """The lines that the file must contain once: context and removed lines."""
        return tuple(line[1:] for line in self.lines if line[0] != "+")

    @cached_property
    def new(self) -> tuple[str, ...]:
        """The lines that take their place: context and added lines."""
        return tuple(line[1:] for line in self.lines if line[0] != "-")


@dataclass(frozen=True)
class Misfit:
    """A hunk that does not fit a tree. `places` is how often its old lines occur; None: the file is missing."""

    hunk: Hunk
    places: int | None

    def __str__(self) -> str:
        what = "the file is missing" if self.places is None else f"its old lines occur {self.places} times, not once"
        return f"{self.hunk.patch}: {self.hunk.path}: {self.hunk.heading}: {what}"


def parse_patch(name: str, text: str) -> list[Hunk]:
    """The hunks of a unified diff, in order."""
    hunks: list[Hunk] = []
    path = heading = ""
    lines: list[str] = []

    def end_hunk() -> None:
        if lines:
            hunks.append(Hunk(name, path, heading, tuple(lines)))
            lines.clear()

    in_hunk = False
    for line in text.split("\n"):
        if line.startswith(("diff ", "--- ")):
            end_hunk()
            in_hunk = False
        elif not in_hunk and line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif re.match(r"@@ -\d+(,\d+)? \+\d+(,\d+)? @@", line):
            end_hunk()
            heading, in_hunk = line, True
        elif in_hunk and line[:1] in {" ", "-", "+"}:
            lines.append(line)
    end_hunk()
    return hunks


def patch_files(folder: Path = PATCHES) -> list[Path]:
    """The patches, in the order of their numbers."""
    return sorted(folder.glob("*.patch"))


def all_hunks() -> list[Hunk]:
    """Every hunk of every patch, in the order of the patches' numbers."""
    return [h for file in patch_files() for h in parse_patch(file.name, file.read_text(encoding="utf-8"))]


def places(lines: list[str], wanted: tuple[str, ...]) -> list[int]:
    """Indices at which the run of lines `wanted` starts in `lines`."""
    first = wanted[0]
    n = len(wanted)
    return [i for i, line in enumerate(lines) if line == first and tuple(lines[i : i + n]) == wanted]


def apply_hunks(tree: Path, hunks: Iterable[Hunk]) -> tuple[dict[Path, str], list[Misfit]]:
    """New text of every file that the hunks change, and the hunks that do not fit; nothing is written."""
    texts: dict[Path, list[str]] = {}
    misfits: list[Misfit] = []
    for hunk in hunks:
        path = tree / hunk.path
        if path not in texts:
            if not path.is_file():
                misfits.append(Misfit(hunk, None))
                continue
            texts[path] = path.read_text(encoding="utf-8").split("\n")
        lines = texts[path]
        found = places(lines, hunk.old)
        if len(found) == 1:
            lines[found[0] : found[0] + len(hunk.old)] = hunk.new
        else:
            misfits.append(Misfit(hunk, len(found)))
    return {path: "\n".join(lines) for path, lines in texts.items()}, misfits


def is_patched(tree: Path) -> bool:
    """Does this tree contain our sources?"""
    return (tree / SOURCES_IN_TREE).is_dir()


def patched_files(tree: Path) -> dict[Path, str]:
    """New text of every file that the patches change; nothing is written.

    Raises:
        PatchError: the folder is no llama.cpp tree, is patched already, or a hunk does not fit.
    """
    if not (tree / "ggml" / "include" / "ggml.h").is_file():
        raise PatchError(f"{tree} is not a llama.cpp tree: it has no ggml/include/ggml.h")
    if is_patched(tree):
        raise PatchError(f"{tree} is patched already (it has {SOURCES_IN_TREE}): take a clean checkout")
    changed, misfits = apply_hunks(tree, all_hunks())
    if misfits:
        first, more = misfits[0], len(misfits) - 1
        path = tree / first.hunk.path
        if first.places is None:
            raise PatchError(f"{first.hunk.patch} does not fit {tree}: {path} is missing")
        raise PatchError(
            f"{first.hunk.patch} does not fit {path}: the lines\n"
            + "\n".join(f"    {line}" for line in first.hunk.old)
            + f"\noccur there {first.places} times instead of once"
            + (f", and {more} more changes do not fit" if more else "")
            + ". This checkout differs too much from the pinned snapshot; `bof4 build` builds that one."
        )
    return changed


def write_texts(texts: dict[Path, str]) -> None:
    """Write the files that `apply_hunks` or `patched_files` returned."""
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def patch_tree(tree: Path) -> list[Path]:
    """Patch the llama.cpp tree at `tree`; returns the files changed.

    Raises:
        PatchError: as `patched_files`; the tree then stays as it was.
    """
    changed = patched_files(tree)
    write_texts(changed)
    shutil.copytree(SOURCES, tree / SOURCES_IN_TREE, ignore=shutil.ignore_patterns("__pycache__", PUBLIC_HEADERS))
    shutil.copytree(SOURCES / PUBLIC_HEADERS, tree / HEADERS_IN_TREE, dirs_exist_ok=True)
    return sorted(changed)
