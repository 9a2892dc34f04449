"""The patches: they fit this snapshot and the previous one, and refuse what they do not fit."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from llama_snapshots import PREVIOUS, patched_paths, write_clean_files
from program import bof4

from gguf_bof4.ggml_patch import PATCHES, SOURCES
from gguf_bof4.ggml_patch.apply import (
    HEADERS_IN_TREE,
    PUBLIC_HEADERS,
    SOURCES_IN_TREE,
    PatchError,
    all_hunks,
    patch_tree,
)
from gguf_bof4.ggml_patch.source import Snapshot, cache_root, fetch_archive, sha256_of, snapshot


@pytest.fixture(params=[snapshot(), PREVIOUS], ids=lambda s: s.version)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The files of a clean snapshot that the patches change."""
    write_clean_files(request.param, tmp_path / "llama.cpp")
    return tmp_path / "llama.cpp"


def test_each_added_line_is_there_once_more_and_each_removed_line_once_less(tree: Path) -> None:
    before = {p: Counter((tree / p).read_text().split("\n")) for p in patched_paths()}
    patch_tree(tree)
    for path, expected in before.items():
        for hunk in all_hunks():
            if hunk.path == path:
                expected.update(line[1:] for line in hunk.lines if line[0] == "+")
                expected.subtract(line[1:] for line in hunk.lines if line[0] == "-")
        assert Counter((tree / path).read_text().split("\n")) == +expected
        assert "bof4" in (tree / path).read_text().lower()


def test_our_sources_are_in_the_tree_and_the_public_header_beside_ggmls(tree: Path) -> None:
    patch_tree(tree)
    ours = {path.relative_to(SOURCES) for path in SOURCES.rglob("*") if path.is_file()}
    public = {path for path in ours if path.parts[0] == PUBLIC_HEADERS}
    copied = tree / SOURCES_IN_TREE
    assert {path.relative_to(copied) for path in copied.rglob("*") if path.is_file()} == ours - public
    for header in public:
        assert (tree / HEADERS_IN_TREE / header.name).read_bytes() == (SOURCES / header).read_bytes()


def test_git_and_patch_accept_the_same_files(tree: Path) -> None:
    if shutil.which("patch") is None:
        pytest.skip("the program patch is missing: `apt install patch` to run this")
    ours = tree.with_name("ours")
    shutil.copytree(tree, ours)
    patch_tree(ours)
    for file in sorted(PATCHES.glob("*.patch")):
        subprocess.run(["patch", "-p1", "--quiet", "-i", str(file)], cwd=tree, check=True)
    for path in patched_paths():
        assert (tree / path).read_text() == (ours / path).read_text()


def test_a_patched_tree_is_refused(tree: Path) -> None:
    patch_tree(tree)
    with pytest.raises(PatchError, match="patched already"):
        patch_tree(tree)


def test_a_tree_that_has_changed_is_refused_and_stays_as_it_was(tree: Path) -> None:
    changed = tree / "CMakeLists.txt"
    changed.write_text(changed.read_text().replace("add_subdirectory(src)", "add_subdirectory(elsewhere)"))
    before = {p: (tree / p).read_bytes() for p in patched_paths()}
    with pytest.raises(PatchError, match=r"0006.* does not fit"):
        patch_tree(tree)
    assert {p: (tree / p).read_bytes() for p in patched_paths()} == before
    assert not (tree / SOURCES_IN_TREE).exists()


def test_bof4_patch_patches_a_checkout_and_names_what_is_none(tree: Path, tmp_path: Path) -> None:
    done = bof4("patch", str(tree))
    assert done.returncode == 0
    assert f"{len(patched_paths())} files" in done.stdout
    (tmp_path / "empty").mkdir()
    refused = bof4("patch", str(tmp_path / "empty"))
    assert refused.returncode == 1
    assert "not a llama.cpp tree" in refused.stderr




def test_an_archive_with_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gguf_bof4.download import FetchError

    real = fetch_archive()
    assert sha256_of(real) == snapshot().sha256
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    small = Snapshot("wheel", "0.45.1", "wheel-0.45.1.tar.gz", "0" * 64, "wheel-0.45.1", "")
    with pytest.raises(FetchError, match="not the pinned file"):
        fetch_archive(small)
    assert list(tmp_path.iterdir()) == []
