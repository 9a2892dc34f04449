"""The patch files: how they are parsed, what they say, and how much of upstream they touch."""

from __future__ import annotations

import re
from collections import Counter

from gguf_bof4.ggml_patch import PATCHES
from gguf_bof4.ggml_patch.apply import all_hunks, parse_patch

MOST_ADDED = 221
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


def test_the_changes_that_are_parsed_are_those_of_the_files() -> None:
    """The parser against the marks at the beginning of lines, file by file."""
    marked: dict[str, Counter[str]] = {}
    n_hunks = 0
    for file in PATCHES.glob("*.patch"):
        path = ""
        for line in file.read_text().splitlines():
            n_hunks += line.startswith("@@ ")
            if line.startswith("+++ b/"):
                path = line.removeprefix("+++ b/")
            elif line[:1] in {"+", "-"} and not line.startswith("---"):
                marked.setdefault(path, Counter())[line[1:]] += 1 if line[0] == "+" else -1
    parsed: dict[str, Counter[str]] = {}
    for hunk in all_hunks():
        changes = parsed.setdefault(hunk.path, Counter())
        changes.update(hunk.new)
        changes.subtract(hunk.old)
    assert len(all_hunks()) == n_hunks > 0
    assert parsed.keys() == marked.keys()
    for path, changes in parsed.items():
        assert {line: n for line, n in changes.items() if n} == {line: n for line, n in marked[path].items() if n}, path
