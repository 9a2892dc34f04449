"""Apply the patches and copy our sources into a llama.cpp tree.

Neither git nor patch need be installed, and hunks are found by their content: each must match in exactly
one place, so a tree that has moved on is patched right or refused, and a refused tree is left as it was.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import PATCHES, SOURCES

SOURCES_IN_TREE = Path("ggml/src/bof4")

PUBLIC_HEADERS = "include"
"""Of our sources, the folder whose headers belong beside ggml.h, which includes them."""


class PatchError(UserError):
    """The tree cannot be patched; the message names the patch, the file and the remedy."""


@dataclass(frozen=True)
class Hunk:
    """One change: these lines (context and removed) become those (context and added)."""

    patch: str
    path: str
    old: tuple[str, ...]
    new: tuple[str, ...]


def parse_patch(name: str, text: str) -> list[Hunk]:
    """The hunks of a unified diff, in order."""
    hunks: list[Hunk] = []
    path = ""
    old: list[str] = []
    new: list[str] = []

    def flush() -> None:
        if old or new:
            hunks.append(Hunk(name, path, tuple(old), tuple(new)))
            old.clear()
            new.clear()

    in_hunk = False
    for line in text.splitlines():
        if line.startswith(("diff ", "--- ")):
            flush()
            in_hunk = False
        elif not in_hunk and line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif re.match(r"@@ -\d+(,\d+)? \+\d+(,\d+)? @@", line):
            flush()
            in_hunk = True
        elif in_hunk and line[:1] in {" ", "-", "+"}:
            if line[0] != "+":
                old.append(line[1:])
            if line[0] != "-":
                new.append(line[1:])
    flush()
    return hunks


def all_hunks() -> list[Hunk]:
    """Every hunk of every patch, in the order of the patches' numbers."""
    return [h for p in sorted(PATCHES.glob("*.patch")) for h in parse_patch(p.name, p.read_text())]


def places(lines: list[str], wanted: tuple[str, ...]) -> list[int]:
    """Indices at which the run of lines `wanted` starts in `lines`."""
    first = wanted[0]
    n = len(wanted)
    return [i for i, line in enumerate(lines) if line == first and tuple(lines[i : i + n]) == wanted]


def is_patched(tree: Path) -> bool:
    """Do our sources stand in this tree?"""
    return (tree / SOURCES_IN_TREE).is_dir()


def patched_files(tree: Path) -> dict[Path, str]:
    """New text of every file that the patches change; nothing is written.

    Raises:
        PatchError: the folder is no llama.cpp tree, is patched already, or has moved on too far.
    """
    if not (tree / "ggml" / "include" / "ggml.h").is_file():
        raise PatchError(f"{tree} is not a llama.cpp tree: it has no ggml/include/ggml.h")
    if is_patched(tree):
        raise PatchError(f"{tree} is patched already ({SOURCES_IN_TREE} stands there): take a clean checkout")
    texts: dict[Path, list[str]] = {}
    for hunk in all_hunks():
        path = tree / hunk.path
        if path not in texts:
            if not path.is_file():
                raise PatchError(f"{hunk.patch}: {path} is missing")
            texts[path] = path.read_text(encoding="utf-8").split("\n")
        lines = texts[path]
        found = places(lines, hunk.old)
        if len(found) != 1:
            raise PatchError(
                f"{hunk.patch} does not fit {path}: the lines\n"
                + "\n".join(f"    {line}" for line in hunk.old)
                + f"\nstand there {len(found)} times instead of once. This checkout is too far from the pinned "
                "snapshot; `bof4 build` makes a build of that one."
            )
        lines[found[0] : found[0] + len(hunk.old)] = hunk.new
    return {path: "\n".join(lines) for path, lines in texts.items()}


def patch_tree(tree: Path) -> list[Path]:
    """Patch the llama.cpp tree at `tree`; returns the files changed.

    Raises:
        PatchError: as `patched_files`; the tree is then untouched.
    """
    changed = patched_files(tree)
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    shutil.copytree(SOURCES, tree / SOURCES_IN_TREE, ignore=shutil.ignore_patterns("__pycache__", PUBLIC_HEADERS))
    shutil.copytree(SOURCES / PUBLIC_HEADERS, tree / "ggml/include", dirs_exist_ok=True)
    return sorted(changed)
