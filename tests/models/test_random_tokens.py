"""An importance matrix from random tokens: needs no text, and gives the same bytes every time."""

from pathlib import Path

import pytest

from gguf_bof4.convert import convert, random_tokens
from gguf_bof4.gguf_files.model import open_model


def test_words_are_printable_tokens_of_the_vocabulary(smol: Path) -> None:
    words = random_tokens.words(open_model(smol))
    assert len(words) > 10000
    assert " the" in words
    assert all(word.isprintable() and word.strip() for word in words)


def test_same_bytes_twice_and_other_codes_than_without(
    smol: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_tokens, "CHUNKS", 2)
    files = [tmp_path / f"{i}.gguf" for i in range(2)]
    for path in files:
        report = convert(smol, path, imatrix="random", opq=("off",))
        assert report.outputs == (path,)
    assert files[0].read_bytes() == files[1].read_bytes()
    model = open_model(files[0])
    assert model.value("quantize.imatrix.dataset") == "random tokens"
    assert model.value("quantize.imatrix.file") == "random-tokens.gguf"
    plain = tmp_path / "plain.gguf"
    convert(smol, plain, opq=("off",))
    name = "blk.3.ffn_down.weight"
    weighted, unweighted = (
        next(t for t in open_model(p).tensors if t.name == name).read_rows().tobytes() for p in (files[0], plain)
    )
    assert weighted != unweighted
