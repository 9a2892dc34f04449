"""The patch files: how they are parsed, what they say, and how much of upstream they touch."""

from __future__ import annotations

import re

from gguf_bof4.ggml_patch import PATCHES
from gguf_bof4.ggml_patch.apply import all_hunks, parse_patch

MOST_ADDED = 206
"""Lines that the patches add in all. More code belongs in ggml_patch/src, called from one line."""


def test_parser_keeps_blank_context_and_counts() -> None:
    hunks = parse_patch("x", "why\n\ndiff --git a/f b/f\n--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@ int f\n a\n \n-b\n+c\n")
    (hunk,) = hunks
    assert (hunk.path, hunk.old, hunk.new) == ("f", ("a", "", "b"), ("a", "", "c"))


def test_each_patch_states_its_purpose() -> None:
    files = sorted(PATCHES.glob("*.patch"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    purposes = set()
    for file in files:
        purpose, _, rest = file.read_text().partition("\n")
        assert len(purpose.split()) >= 3 and not purpose.startswith("diff "), f"{file.name} does not state its purpose"
        assert rest.startswith("\n"), file.name
        purposes.add(purpose)
    assert len(purposes) == len(files)


def test_patches_add_few_lines() -> None:
    pattern = re.compile(r"^\+(?!\+\+ )", re.MULTILINE)
    added = {file.name: len(pattern.findall(file.read_text())) for file in PATCHES.glob("*.patch")}
    assert sum(added.values()) <= MOST_ADDED, added
    assert all(0 < lines < 70 for lines in added.values()), added


def test_every_changed_line_of_the_files_is_parsed() -> None:
    """The parser against a count of the marks at the beginning of lines."""
    text = "".join(file.read_text() for file in PATCHES.glob("*.patch"))
    marked = {mark: len(re.findall(rf"^\{mark}(?!\{mark}\{mark} )", text, re.MULTILINE)) for mark in "+-"}
    hunks = all_hunks()
    assert sum(len(h.new) - len(h.old) for h in hunks) == marked["+"] - marked["-"]
    assert {h.path for h in hunks} == set(re.findall(r"^\+\+\+ b/(.*)$", text, re.MULTILINE))
    assert len(hunks) == len(re.findall(r"^@@ ", text, re.MULTILINE))
