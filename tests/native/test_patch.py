"""The patches: they fit this snapshot and the previous one, and refuse what they do not fit."""

import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from llama_snapshots import PREVIOUS, patched_paths
from program import bof4

from gguf_bof4.ggml_patch import PATCHES, SOURCES
from gguf_bof4.ggml_patch.apply import PUBLIC_HEADERS, SOURCES_IN_TREE, PatchError, patch_tree
from gguf_bof4.ggml_patch.source import Snapshot, cache_root, fetch_archive, sha256_of, snapshot


@pytest.fixture(scope="module", params=[snapshot(), PREVIOUS], ids=lambda s: s.version)
def clean(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a snapshot that the patches touch; reading the archive takes seconds."""
    pin: Snapshot = request.param
    folder = tmp_path_factory.mktemp(pin.version) / "llama.cpp"
    archive = fetch_archive(pin)
    with tarfile.open(archive) as tar:
        for path in patched_paths():
            member = tar.getmember(f"{pin.tree}/{path}")
            member.name = path
            tar.extract(member, folder, filter="data")
    return folder


@pytest.fixture
def tree(clean: Path, tmp_path: Path) -> Path:
    """A copy of them to patch."""
    return Path(shutil.copytree(clean, tmp_path / "llama.cpp"))


def marked_lines(mark: str) -> dict[str, Counter[str]]:
    """Lines behind a + or - in the patch files, by the file that they change; read without the parser under test."""
    found: dict[str, Counter[str]] = {path: Counter() for path in patched_paths()}
    for file in PATCHES.glob("*.patch"):
        path = ""
        for line in file.read_text().splitlines():
            if line.startswith("+++ b/"):
                path = line.removeprefix("+++ b/")
            elif line.startswith(mark) and not line.startswith(3 * mark):
                found[path][line[1:]] += 1
    return found


def lines_of(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines())


def test_exactly_the_lines_of_the_patches_are_added_and_removed(tree: Path) -> None:
    before = {path: lines_of(tree / path) for path in patched_paths()}
    added, removed = marked_lines("+"), marked_lines("-")
    patch_tree(tree)
    for path, expected in before.items():
        assert added[path].total() > 0, path
        expected.update(added[path])
        expected.subtract(removed[path])
        assert lines_of(tree / path) == +expected, path
        assert min(expected.values()) >= 0, path


def test_all_sources_are_copied(tree: Path) -> None:
    patch_tree(tree)
    for source in SOURCES.rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts:
            path = source.relative_to(SOURCES)
            in_tree = Path("ggml/include", path.name) if path.parts[0] == PUBLIC_HEADERS else SOURCES_IN_TREE / path
            assert (tree / in_tree).read_bytes() == source.read_bytes()


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


def test_a_tree_that_has_moved_on_is_refused_and_left_alone(tree: Path) -> None:
    moved_on = tree / "CMakeLists.txt"
    moved_on.write_text(moved_on.read_text().replace("add_subdirectory(src)", "add_subdirectory(elsewhere)"))
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
    from gguf_bof4.ggml_patch import source

    real = fetch_archive()
    assert sha256_of(real) == snapshot().sha256
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    small = Snapshot("wheel", "0.45.1", "wheel-0.45.1.tar.gz", "0" * 64, "wheel-0.45.1", "")
    with pytest.raises(source.FetchError, match="not the pinned file"):
        fetch_archive(small)
    assert list(tmp_path.iterdir()) == []
