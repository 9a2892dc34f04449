"""Unpacking llama.cpp's source distribution."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from gguf_bof4.ggml_patch.source import unpack_tree


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "package.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("package/llama.cpp/ggml/ggml.h", "package/llama.cpp/.git", "package/other.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


def test_the_tree_is_unpacked_alone(archive: Path, tmp_path: Path) -> None:
    unpack_tree(archive, tmp_path / "tree", "package/llama.cpp")
    assert [p for p in (tmp_path / "tree").rglob("*") if p.is_file()] == [tmp_path / "tree" / "ggml" / "ggml.h"]


def test_the_python_of_debian_12_unpacks_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11.2 has no extraction filters: no `data_filter`, and `extract` takes none."""

    def old(self: tarfile.TarFile, member: tarfile.TarInfo, path: Path, set_attrs: bool = True) -> None:
        content, target = self.extractfile(member), path / member.name
        assert content is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.read())

    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extract", old)
    unpack_tree(archive, tmp_path / "tree", "package/llama.cpp")
    assert (tmp_path / "tree" / "ggml" / "ggml.h").read_text() == "package/llama.cpp/ggml/ggml.h"
