"""Edit the patches: a llama.cpp tree with one commit for each patch, and the patches re-created from its commits.

The tree may be that of a newer version: what does not fit there is named and left beside the file for the developer.
Only this module needs git.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import PATCHES, SOURCES
from gguf_bof4.ggml_patch.apply import (
    HEADERS_IN_TREE,
    PUBLIC_HEADERS,
    SOURCES_IN_TREE,
    Hunk,
    Misfit,
    apply_hunks,
    parse_patch,
    patch_files,
    places,
    write_texts,
)
from gguf_bof4.ggml_patch.source import Snapshot, fetch_archive, unpack_tree
from gguf_bof4.paths import write_text

UPSTREAM = "upstream"
"""The tag of the commit with llama.cpp before any patch."""

REJECTED = ".rej"
"""Suffix of the files with hunks that did not fit."""

NAME_TRAILER = "Patch-name: "
"""Last line of a commit's message: the file name of its patch, without number and suffix."""

_SETTINGS = (
    "-c", "user.name=gguf-bof4", "-c", "user.email=gguf-bof4@localhost", "-c", "commit.gpgsign=false",
    "-c", "core.quotepath=off",
)  # fmt: skip


class EditError(UserError):
    """The tree cannot be made, or no patches can be made from it; the message names the remedy."""


def _run_git(tree: Path, *arguments: str, text: str = "") -> bytes:
    """Standard output of git, run in the tree with `text` as its standard input.

    Raises:
        EditError: git is missing or failed.
    """
    if shutil.which("git") is None:
        raise EditError("git is missing: install it, e.g. `apt install git`")
    result = subprocess.run(
        ["git", *_SETTINGS, *arguments], cwd=tree, input=text.encode(), capture_output=True, check=False
    )
    if result.returncode != 0:
        raise EditError(f"git {arguments[0]} failed in {tree}:\n{result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def _git(tree: Path, *arguments: str, text: str = "") -> str:
    """As `_run_git`, decoded."""
    return _run_git(tree, *arguments, text=text).decode()


def _file_texts(tree: Path, names: list[str]) -> list[str]:
    """The contents of files in commits; a name is COMMIT:PATH."""
    output = _run_git(tree, "cat-file", "--batch", text="".join(f"{name}\n" for name in names))
    texts = []
    at = 0
    for _ in names:
        # a line "HASH blob SIZE", the content and a line break
        start = output.index(b"\n", at) + 1
        size = int(output[at:start].split()[-1])
        texts.append(output[start : start + size].decode())
        at = start + size + 1
    return texts


def heading_of(text: str) -> str:
    """The text of a patch before its first file: its purpose."""
    return text.split("\ndiff --git ", 1)[0].strip()


def name_of(file: Path) -> str:
    """The name of a patch without number and suffix: cpu-backend of 0002-cpu-backend.patch."""
    return re.sub(r"^\d+-", "", file.stem)


def make_tree(target: Path, pin: Snapshot, folder: Path = PATCHES) -> list[Misfit]:
    """Unpack a snapshot to edit: llama.cpp in a commit tagged `upstream`, then one commit for each patch.

    Our own sources are links to the project's, so that edits of them need no copying back; git ignores them. A hunk
    that does not fit is written to the file of its name with .rej added; the commits have the rest.

    Args:
        target: a folder that does not exist yet.
        pin: the snapshot, which may be another than lock.json's.
        folder: of the patches.

    Returns:
        The hunks that do not fit.

    Raises:
        EditError: the folder exists, or git failed.
        FetchError: the snapshot could not be fetched.
    """
    if target.exists():
        raise EditError(f"{target} exists: name a new folder")
    if not target.parent.is_dir():
        raise EditError(f"{target.parent} is no folder")
    try:
        unpack_tree(fetch_archive(pin), target, pin.tree)
        _git(target, "init", "--quiet")
        _git(target, "config", "core.autocrlf", "false")
        _git(target, "add", "--all", "--force")  # upstream's .gitignore names some of its own files
        _git(target, "commit", "--quiet", "--message", pin.title)
        _git(target, "tag", UPSTREAM)
        _link_sources(target)
        return [misfit for file in patch_files(folder) for misfit in _commit_patch(target, file)]
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _link_sources(tree: Path) -> None:
    """Link our sources into the tree, where git ignores them, as it does the files of rejected hunks."""
    sources = SOURCES.resolve()
    links = {SOURCES_IN_TREE: sources}
    links |= {HEADERS_IN_TREE / header.name: header for header in sorted((sources / PUBLIC_HEADERS).iterdir())}
    for link, file in links.items():
        (tree / link).symlink_to(file, target_is_directory=file.is_dir())
    ignored = [*(f"/{link.as_posix()}" for link in links), f"*{REJECTED}", "/build*/"]
    (tree / ".git/info/exclude").write_text("\n".join(ignored) + "\n")


def _commit_patch(tree: Path, file: Path) -> list[Misfit]:
    """Apply the hunks of a patch that fit, and commit them."""
    text = file.read_text(encoding="utf-8")
    texts, misfits = apply_hunks(tree, parse_patch(file.name, text))
    write_texts(texts)
    for misfit in misfits:
        hunk = misfit.hunk
        rejected = tree / f"{hunk.path}{REJECTED}"
        rejected.parent.mkdir(parents=True, exist_ok=True)
        with rejected.open("a", encoding="utf-8") as out:
            out.write(f"{hunk.patch}: {hunk.path}\n" + "\n".join((hunk.heading, *hunk.lines)) + "\n")
    message = f"{heading_of(text)}\n\n{NAME_TRAILER}{name_of(file)}\n"
    # a commit without changes where nothing fits: its message is there to be amended
    _git(tree, "commit", "--quiet", "--all", "--allow-empty", "--cleanup=verbatim", "--file=-", text=message)
    return misfits


@dataclass
class Recreated:
    """File names of the patches that `recreate_patches` wrote, found unchanged, and removed."""

    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def recreate_patches(tree: Path, folder: Path = PATCHES) -> Recreated:
    """Write the patches again from the commits of a tree that `make_tree` made.

    Each commit after `upstream` is a patch; its place in the history is its number. A hunk has as few lines of context
    as make its old lines occur exactly once in the file, as `apply_hunks` demands. A patch that has the same effect as
    before and the same heading is written in this form, too.

    Args:
        tree: everything committed, no .rej file left.
        folder: of the patches; those without a commit are removed.

    Raises:
        EditError: not such a tree, changes are not committed, a commit adds or removes a file, or two have one name.
    """
    commits = _commits(tree)
    files: dict[str, str] = {}
    for number, commit in enumerate(commits, start=1):
        message, name = _message_and_name(tree, commit)
        if any(name_of(Path(other)) == name for other in files):
            raise EditError(f"two commits have the patch name {name}: give one of them another {NAME_TRAILER.strip()}")
        hunks = _hunks(tree, commit)
        if not hunks:
            raise EditError(f"the commit {commit[:9]} ({message.splitlines()[0]}) changes nothing: amend or drop it")
        text = patch_text(message, hunks)
        if [(h.path, h.lines) for h in parse_patch("", text)] != [(h.path, h.lines) for h in hunks]:
            raise EditError(f"the commit {commit[:9]} removes a line that a patch cannot contain (it begins with --)")
        files[f"{number:04}-{name}.patch"] = text
    before = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.patch")}
    result = Recreated(removed=sorted(before.keys() - files.keys()))
    for file_name, text in files.items():
        if before.get(file_name) == text:
            result.unchanged.append(file_name)
            continue
        result.changed.append(file_name)
        write_text(folder / file_name, text)
    for file_name in result.removed:
        (folder / file_name).unlink()
    return result


def patch_text(heading: str, hunks: list[Hunk]) -> str:
    """The text of a patch file; `parse_patch` reads it."""
    lines = [heading, ""]
    path = ""
    for hunk in hunks:
        if hunk.path != path:
            path = hunk.path
            lines += [f"diff --git a/{path} b/{path}", f"--- a/{path}", f"+++ b/{path}"]
        lines += [hunk.heading, *hunk.lines]
    return "\n".join(lines) + "\n"


def _commits(tree: Path) -> list[str]:
    """The commits after `upstream`, oldest first.

    Raises:
        EditError: as `recreate_patches`.
    """
    if not (tree / ".git").exists() or UPSTREAM not in _git(tree, "tag").split():
        raise EditError(f"{tree} is not a tree to edit: make one with `python -m gguf_bof4.ggml_patch edit`")
    if changes := _git(tree, "status", "--porcelain").rstrip():
        raise EditError(f"{tree} has changes that are not committed:\n{changes}")
    rejected = sorted(str(path.relative_to(tree)) for path in tree.rglob(f"*{REJECTED}"))
    if rejected:
        raise EditError(
            f"{tree} has hunks that did not fit: make their changes by hand, commit them with their patch and remove "
            + ", ".join(rejected)
        )
    if _git(tree, "rev-list", "--merges", f"{UPSTREAM}..HEAD"):
        raise EditError(f"{tree} has a merge commit: a patch is made from a commit with one parent; rebase it away")
    return _git(tree, "rev-list", "--reverse", f"{UPSTREAM}..HEAD").split()


def _message_and_name(tree: Path, commit: str) -> tuple[str, str]:
    """The heading of the patch and its name; a commit without a name is named by its subject.

    Raises:
        EditError: the commit waits to be squashed into another.
    """
    lines = _git(tree, "show", "--no-patch", "--format=%B", commit).strip().split("\n")
    if re.match(r"(fixup|squash|amend)! ", lines[0]):
        raise EditError(f"{commit[:9]} is a {lines[0]!r}: run `git rebase -i --autosquash {UPSTREAM}` first")
    names = [line.removeprefix(NAME_TRAILER).strip() for line in lines if line.startswith(NAME_TRAILER)]
    message = "\n".join(line for line in lines if not line.startswith(NAME_TRAILER)).strip()
    words = re.findall(r"[a-z0-9]+", lines[0].lower())
    return message, names[-1] if names else "-".join(words[:5])


def _changed_paths(tree: Path, commit: str) -> list[str]:
    """Paths that a commit changes.

    Raises:
        EditError: it adds, removes or renames a file.
    """
    paths = []
    for line in _git(tree, "diff", "--name-status", "--no-renames", f"{commit}^", commit).splitlines():
        status, path = line.split("\t", 1)
        if status != "M":
            raise EditError(
                f"{commit[:9]} adds or removes {path}: patches only change files of llama.cpp; ours are in {SOURCES}"
            )
        paths.append(path)
    return paths


@dataclass(frozen=True)
class _Change:
    """Lines [start, stop) of the old text become `new`; `section` is what git says after the second @@."""

    start: int
    stop: int
    new: tuple[str, ...]
    section: str


@dataclass
class _Group:
    """Changes that share a hunk, and the number of lines of context before and after them."""

    changes: list[_Change]
    context: int = 1

    def reach(self, n_lines: int) -> tuple[int, int]:
        """First line with the context, and the line after the last one, in an old text of `n_lines`."""
        return max(self.changes[0].start - self.context, 0), min(self.changes[-1].stop + self.context, n_lines)

    def hunk(self, path: str, old: list[str], n_lines: int, shift: int) -> Hunk:
        """The hunk; the hunks before it add `shift` lines."""
        first, last = self.reach(n_lines)
        lines: list[str] = []
        at = first
        for change in self.changes:
            lines += [f" {line}" for line in old[at : change.start]]
            lines += [f"-{line}" for line in old[change.start : change.stop]]
            lines += [f"+{line}" for line in change.new]
            at = change.stop
        lines += [f" {line}" for line in old[at:last]]
        n_new = sum(line[0] != "-" for line in lines)
        numbers = f"-{first + 1},{last - first} +{first + shift + 1},{n_new}"
        return Hunk("", path, f"@@ {numbers} @@{self.changes[0].section}", tuple(lines))


def _changes(tree: Path, commit: str) -> dict[str, list[_Change]]:
    """The changes of a commit as git finds them, without context, by path."""
    # the user's settings for diff must not change what is parsed here
    text = _git(
        tree, "diff", "--unified=0", "--no-color", "--no-ext-diff", "--no-renames", "--src-prefix=a/",
        "--dst-prefix=b/", "--diff-algorithm=myers", "--indent-heuristic", f"{commit}^", commit,
    )  # fmt: skip
    changes: dict[str, list[_Change]] = {path: [] for path in _changed_paths(tree, commit)}
    for hunk in parse_patch("", text):
        numbers = re.match(r"@@ -(\d+)(?:,(\d+))? \+\S+ @@(.*)", hunk.heading)
        assert numbers is not None
        count = int(numbers[2] or 1)
        # git counts from 1, and names the line before where nothing is removed
        start = int(numbers[1]) - (count > 0)
        changes[hunk.path].append(_Change(start, start + count, hunk.new, numbers[3]))
    return changes


def _hunks(tree: Path, commit: str) -> list[Hunk]:
    """The hunks of a commit.

    Raises:
        EditError: as `_changed_paths` and `_file_hunks`.
    """
    changes = _changes(tree, commit)
    texts = _file_texts(tree, [f"{c}:{path}" for path in changes for c in (f"{commit}^", commit)])
    try:
        return [
            hunk
            for path, old, new in zip(changes, texts[::2], texts[1::2], strict=True)
            for hunk in _file_hunks(path, old.split("\n"), new.split("\n"), changes[path])
        ]
    except EditError as error:
        raise EditError(f"the commit {commit[:9]}: {error}") from error


def _file_hunks(path: str, old: list[str], new: list[str], changes: list[_Change]) -> list[Hunk]:
    """The changes of a file, with as little context as makes each hunk fit in one place only.

    Raises:
        EditError: a change cannot be told from others by its context.
    """
    groups = [_Group([change]) for change in changes]
    n_lines = len(old) - (old[-1] == "")  # the piece after the last line break is no line
    while True:
        groups = _merged(groups, n_lines)
        lines = list(old)
        hunks: list[Hunk] = []
        ambiguous: list[_Group] = []
        for group in groups:
            shift = len(lines) - len(old)
            hunk = group.hunk(path, old, n_lines, shift)
            hunks.append(hunk)
            first = group.reach(n_lines)[0] + shift
            if places(lines, hunk.old) != [first]:
                ambiguous.append(group)
            lines[first : first + len(hunk.old)] = hunk.new
        if not ambiguous:
            break
        for group in ambiguous:
            if group.context > n_lines:
                raise EditError(f"a change of {path} cannot be found by its content")
            group.context += 1
    if lines != new:
        raise EditError(f"{path} cannot be patched: does its last line end with a line break?")
    return hunks


def _merged(groups: list[_Group], n_lines: int) -> list[_Group]:
    """Groups whose contexts touch become one."""
    merged: list[_Group] = []
    for group in groups:
        if merged and merged[-1].reach(n_lines)[1] >= group.reach(n_lines)[0]:
            merged[-1] = _Group(merged[-1].changes + group.changes, max(merged[-1].context, group.context))
        else:
            merged.append(group)
    return merged
