"""Patches are re-created from an edited tree, for this snapshot and another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_snapshots import PREVIOUS, patched_paths, write_clean_files

from gguf_bof4.ggml_patch import PATCHES, SOURCES, apply, edit, source
from gguf_bof4.ggml_patch.apply import HEADERS_IN_TREE, SOURCES_IN_TREE, Misfit, parse_patch, patch_files, patch_tree
from gguf_bof4.ggml_patch.edit import EditError, make_tree, recreate_patches
from gguf_bof4.ggml_patch.source import Snapshot, fetch_archive, find_snapshot, snapshot, write_lock

PINS = {pin.tree: pin for pin in (snapshot(), PREVIOUS)}

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is missing: `apt install git` to run this")


def git(tree: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=tree, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def small_trees() -> Iterator[None]:
    """`make_tree` then has only the files that the patches change, and takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edit, "unpack_tree", lambda archive, target, tree: write_clean_files(PINS[tree], target))
        yield


@pytest.fixture(scope="module")
def unedited(small_trees: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree as `edit` makes it of the pinned snapshot."""
    tree = tmp_path_factory.mktemp("edit") / "llama.cpp"
    assert make_tree(tree, snapshot()) == []
    return tree


@pytest.fixture
def tree(unedited: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    copy = tmp_path / "tree"
    git(tmp_path, "clone", "--quiet", "--shared", str(unedited), str(copy))
    return copy


def recreated(tree: Path, folder: Path) -> dict[str, str]:
    """The text of each patch, by file name."""
    folder.mkdir(exist_ok=True)
    recreate_patches(tree, folder)
    return {file.name: file.read_text() for file in patch_files(folder)}


def patched_by(patches: Path, pin: Snapshot, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The text of each file that the patches of a folder change."""
    write_clean_files(pin, folder)
    monkeypatch.setattr(apply, "patch_files", lambda: patch_files(patches))
    changed = patch_tree(folder)
    monkeypatch.undo()
    return {path.relative_to(folder).as_posix(): path.read_text() for path in changed}


def test_each_patch_is_a_commit_and_our_sources_are_links(unedited: Path) -> None:
    subjects = git(unedited, "log", "--reverse", "--format=%s", "upstream..").splitlines()
    assert subjects == [file.read_text().splitlines()[0] for file in patch_files()]
    assert (unedited / SOURCES_IN_TREE).resolve() == SOURCES.resolve()
    assert (unedited / HEADERS_IN_TREE / "bof4-format.h").resolve() == (SOURCES / "include/bof4-format.h").resolve()
    assert git(unedited, "status", "--porcelain") == ""


def test_recreated_patches_have_the_effect_of_the_present_ones(
    unedited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = recreated(unedited, tmp_path / "patches")
    assert list(texts) == [file.name for file in patch_files()]
    for file in patch_files():
        assert texts[file.name].split("\ndiff ")[0] == file.read_text().split("\ndiff ")[0]
    ours = patched_by(tmp_path / "patches", snapshot(), tmp_path / "ours", monkeypatch)
    assert ours.keys() == patched_paths()
    for path, text in ours.items():
        assert text == (unedited / path).read_text()
    # and git agrees that they are patches
    git(tmp_path, "clone", "--quiet", "--branch", "upstream", str(unedited), "clean")
    for name in texts:
        git(tmp_path / "clean", "apply", "--unidiff-zero", str(tmp_path / "patches" / name))
    for path, text in ours.items():
        assert text == (tmp_path / "clean" / path).read_text()


def test_once_recreated_patches_stay_as_they_are(unedited: Path, tmp_path: Path) -> None:
    texts = recreated(unedited, tmp_path / "patches")
    again = recreate_patches(unedited, tmp_path / "patches")
    assert (again.changed, again.removed, again.unchanged) == ([], [], list(texts))


def test_to_the_previous_version_and_back(tmp_path: Path, unedited: Path) -> None:
    older, back = tmp_path / "older", tmp_path / "back"
    assert make_tree(older, PREVIOUS) == []
    patches = tmp_path / "patches"
    recreated(older, patches)
    assert make_tree(back, snapshot(), patches) == []
    for path in patched_paths():
        assert (back / path).read_text() == (unedited / path).read_text()


def test_an_edited_commit_changes_its_patch_alone(tree: Path, tmp_path: Path) -> None:
    before = recreated(tree, tmp_path / "patches")
    file = tree / "CMakeLists.txt"
    file.write_text(file.read_text().replace("add_subdirectory(ggml/src/bof4/bench)", "add_subdirectory(elsewhere)"))
    git(tree, "commit", "--quiet", "--all", "--message", "bench: Somewhere else, for a reason\n\nThe reason.")
    after = recreated(tree, tmp_path / "patches")
    (new,) = after.keys() - before.keys()
    assert new == f"{len(before) + 1:04}-bench-somewhere-else-for-a.patch"
    assert after[new].startswith("bench: Somewhere else, for a reason\n\nThe reason.\n\ndiff --git a/CMakeLists.txt ")
    assert "\n-add_subdirectory(ggml/src/bof4/bench)\n+add_subdirectory(elsewhere)\n" in after[new]
    assert {name: after[name] for name in before} == before
    git(tree, "reset", "--quiet", "--hard", "HEAD~2")
    assert recreate_patches(tree, tmp_path / "patches").removed == sorted({*after} - {*list(before)[:-1]})


def test_context_grows_until_a_hunk_fits_in_one_place(tree: Path, tmp_path: Path) -> None:
    file = tree / "CMakeLists.txt"
    file.write_text("\n".join("abcXbcabcYbc") + "\n")
    git(tree, "commit", "--quiet", "--all", "--message", "letters\n\nPatch-name: letters")
    file.write_text("\n".join("abcXbNcabcYbcM") + "\n")
    git(tree, "commit", "--quiet", "--all", "--message", "new ones\n\nPatch-name: new-ones")
    texts = recreated(tree, tmp_path / "patches")
    first, second = parse_patch("", texts[f"{len(patch_files()) + 2:04}-new-ones.patch"])
    assert first.lines == (" X", " b", "+N", " c", " a")
    assert first.heading.startswith("@@ -4,4 +4,5 @@")
    assert second.lines == (" Y", " b", " c", "+M")
    assert second.heading.startswith("@@ -10,3 +11,4 @@")


def test_what_is_no_set_of_patches_is_refused(tree: Path, tmp_path: Path) -> None:
    file = tree / "CMakeLists.txt"
    file.write_text(file.read_text() + "more\n")
    with pytest.raises(EditError, match=r"not committed[\s\S]*CMakeLists"):
        recreate_patches(tree, tmp_path)
    git(tree, "commit", "--quiet", "--all", "--message", "fixup! something")
    with pytest.raises(EditError, match="autosquash"):
        recreate_patches(tree, tmp_path)
    (tree / "NEW").write_text("")
    git(tree, "add", "NEW")
    git(tree, "commit", "--quiet", "--amend", "--message", "a new file")
    with pytest.raises(EditError, match="adds or removes NEW"):
        recreate_patches(tree, tmp_path)
    with pytest.raises(EditError, match="not a tree to edit"):
        recreate_patches(tmp_path, tmp_path)
    with pytest.raises(EditError, match="exists"):
        make_tree(tree, snapshot())
    assert list(tmp_path.glob("*.patch")) == []


def test_what_does_not_fit_is_named_and_left_for_the_developer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = tmp_path / "patches"
    patches.mkdir()
    for file in patch_files()[:2]:
        text = file.read_text()
        (patches / file.name).write_text(text.replace(' #include "ggml-quants.h"\n', ' #include "moved-away.h"\n'))
    tree = tmp_path / "tree"
    first, second = make_tree(tree, snapshot(), patches)
    assert isinstance(first, Misfit)
    assert {first.hunk.path, second.hunk.path} == {"ggml/src/ggml-quants.c", "ggml/src/ggml.c"}
    assert str(first).startswith(f"{patch_files()[0].name}: {first.hunk.path}: @@ ")
    rejected = (tree / f"{first.hunk.path}.rej").read_text()
    assert '\n #include "moved-away.h"\n+#include "bof4/' in rejected
    assert "BOF4_TYPES(" in (tree / "ggml/include/ggml.h").read_text()  # the rest is applied
    with pytest.raises(EditError, match=r"did not fit.*ggml-quants\.c\.rej"):
        recreate_patches(tree, patches)


def test_the_commands_make_a_whole_tree_and_write_its_patches(unedited: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gguf_bof4.ggml_patch"]
    tree, patches = tmp_path / "tree", tmp_path / "patches"
    done = subprocess.run([*command, "edit", str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert snapshot().version in done.stdout
    assert (tree / "convert_hf_to_gguf.py").is_file()
    done = subprocess.run(
        [*command, "recreate", str(tree), "--output", str(patches)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == len(patch_files())
    assert {file.name: file.read_text() for file in patch_files(patches)} == recreated(unedited, tmp_path / "small")
    refused = subprocess.run([*command, "edit", str(tree)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "exists: name a new folder" in refused.stderr


def test_a_pin_is_read_from_the_source_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock.json"
    monkeypatch.setattr(source, "LOCK", lock)
    pinned = source.Snapshot(**json.loads((PATCHES.parent / "lock.json").read_text()))
    lock.write_text((PATCHES.parent / "lock.json").read_text())
    assert source.read_archive(pinned.package, pinned.version, fetch_archive(pinned)) == pinned
    fetch_archive(PREVIOUS)
    write_lock(find_snapshot(PREVIOUS.version))
    assert snapshot() == PREVIOUS
    write_lock(pinned)
    assert lock.read_text() == (PATCHES.parent / "lock.json").read_text()
