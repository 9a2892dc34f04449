"""Text that the model itself writes: sampling, its use for calibration and importance matrices, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from calibration_models import family_folder
from convert_models import sentencepiece_tokenizer
from tiny_models import VOCABULARY, write_llama

from gguf_bof4.convert import convert, own_text
from gguf_bof4.encoders.gptq import precision
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.native import NativeError, Writer
from gguf_bof4.progress import NOTE

START, END = 1, 2
"""Tokens of the tiny model."""

SHORT: dict[str, Any] = {"encoder": "gptq", "type": "BOF4_S", "samples": 4, "sample_length": 48}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a vocabulary of 400 tokens."""
    return family_folder(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    convert(folder, path, type="F32")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of texts for each test."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(own_text, "cache_root", lambda: path)
    return path


def written(model: Path, steps: int, sequences: int = 3, length: int = 40, seed: int = 7, threads: int = 1) -> Any:
    with Writer(model, sequences, length, seed, threads) as writer:
        made = [writer.next() for _ in range(steps)]
    return np.array([tokens for tokens, _ in made]), np.array([ended for _, ended in made])


def test_the_seed_alone_decides(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, ended = written(tiny, 60)
    assert capfd.readouterr() == ("", "")  # llama.cpp's log
    assert one.min() >= 0 and one.max() < VOCABULARY
    assert (one != one[:, :1]).any()  # sequences differ
    for other in (written(tiny, 60)[0], written(tiny, 60, threads=3)[0]):
        assert (one == other).all()
    assert (one != written(tiny, 60, seed=8)[0]).any()
    # with the start token a text has 40 tokens at most
    assert ended.any()
    for tokens, ends in zip(one.T, ended.T, strict=True):
        lengths = np.diff([-1, *np.flatnonzero(ends)])
        assert lengths.max() <= 39
        assert all(tokens[i] in {START, END} or n == 39 for i, n in zip(np.flatnonzero(ends), lengths, strict=True))


def test_first_tokens_have_the_probabilities_of_the_model(tmp_path: Path) -> None:
    """Texts of two tokens: the start token, and one that is drawn."""
    sentencepiece_tokenizer(tmp_path)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=400,
        bos_token_id=START, eos_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    start = torch.tensor([[START]])
    with torch.no_grad():
        state = model.model(start).last_hidden_state[0, 0]
        logits = torch.full((400, 1), -20.0)  # forty tokens count
        logits[:40] = torch.randn(40, 1)
        model.lm_head.weight[:] = logits * state / state.square().sum()
        expected = model(start).logits[0, 0].softmax(0).numpy()[:40]
    model.save_pretrained(tmp_path)
    convert(tmp_path, tmp_path / "model.gguf", type="F32")
    tokens, _ = written(tmp_path / "model.gguf", 50, sequences=200, length=2)
    counts = np.bincount(tokens.ravel(), minlength=40)
    assert counts.sum() == counts[:40].sum() == 10000
    deviation = (counts - 10000 * expected) / np.sqrt(10000 * expected * (1 - expected))
    assert np.abs(deviation).max() < 5
    assert np.square(deviation).sum() < 40 + 5 * np.sqrt(2 * 40)


def test_texts_are_kept_in_the_cache_and_are_the_default_of_gptq(
    file: Path, folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int, int]] = []
    convert(file, tmp_path / "a.gguf", progress=lambda *step: steps.append(step), **SHORT)
    (kept,) = (cache / "own-texts").iterdir()
    texts = [json.loads(line)["text"] for line in kept.read_text().splitlines()]
    assert len(texts) >= 5
    total = max(total for step, _, total in steps if step.startswith("the model writes"))
    assert ("the model writes its calibration text", total, total) in steps
    notes = [step for step, _, total in steps if total == NOTE]
    assert re.fullmatch(r"about \d+ s: the model writes 5 runs of 48 tokens to calibrate with", notes[0])
    auto = precision.chosen("auto", torch.device("cpu"))  # the default: bf16 where the processor multiplies it
    assert re.fullmatch(rf"about \d+ s: 2 layers, 4 samples of 48 tokens, {auto}", notes[1])
    monkeypatch.setattr(own_text, "write_texts", None)
    convert(file, tmp_path / "b.gguf", calibration="self", **SHORT)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    convert(file, tmp_path / "c.gguf", calibration=str(Path(__file__)), **SHORT)
    assert (tmp_path / "a.gguf").read_bytes() != (tmp_path / "c.gguf").read_bytes()


def test_a_folder_writes_the_text_of_its_file(folder: Path, file: Path, tmp_path: Path, cache: Path) -> None:
    convert(folder, tmp_path / "a.gguf", **SHORT)
    convert(file, tmp_path / "b.gguf", **SHORT)
    one, other = (path.read_text() for path in (cache / "own-texts").iterdir())
    assert one == other


def test_mixed_with_other_texts(file: Path, tmp_path: Path, cache: Path) -> None:
    convert(file, tmp_path / "a.gguf", calibration=("self", str(Path(__file__))), **SHORT)
    (kept,) = (cache / "own-texts").iterdir()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokens = sum(len(tokenizer(json.loads(line)["text"]).input_ids) for line in kept.read_text().splitlines())
    assert 2 * 48 <= tokens <= 6 * 48  # two of the four samples, a margin, and what spelling takes more
    with pytest.raises(UserError, match=r"missing\.txt cannot be read"):
        convert(file, tmp_path / "b.gguf", calibration=("self", "missing.txt"), **SHORT)
    (tmp_path / "tiny.txt").write_text("too short")
    with pytest.raises(UserError, match=r"tiny\.txt has \d tokens, less than one sample of 48"):
        convert(file, tmp_path / "b.gguf", calibration=("self", str(tmp_path / "tiny.txt")), **SHORT)
    assert not (tmp_path / "b.gguf").exists()


def test_importance_matrices(folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder, too, which is converted for it; without a matrix its file has the same weights, and is faster."""
    monkeypatch.setattr("gguf_bof4.convert.preparation.IMATRIX_SAMPLES", 2)
    monkeypatch.setattr("gguf_bof4.convert.random_tokens.CHUNKS", 2)
    written = {}
    for kind in (None, "self", "random"):
        path = tmp_path / f"{kind}.gguf"
        notes: list[str] = []
        convert(file if kind is None else folder, path, imatrix=kind, opq=("off",),
                progress=lambda step, _, total, notes=notes: notes.append(step) if total == NOTE else None)  # fmt: skip
        model = open_model(path)
        written[kind] = model.tensors[3].read_rows().tobytes()
        if kind is not None:
            assert any(re.fullmatch(r"about \d+ s: importance matrix, 2 chunks of 512 tokens", n) for n in notes)
    assert len(set(written.values())) == 3
    assert open_model(tmp_path / "self.gguf").value("quantize.imatrix.dataset") == "own text"


def changed(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    content = source.read_bytes()
    assert old in content and len(old) == len(new)
    target.write_bytes(content.replace(old, new))
    return target


def test_models_that_cannot_write_are_named(tiny: Path, minilm_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bytes.gguf"  # byte-level BPE, for which llama.cpp's own start token is wrong
    convert(family_folder(tmp_path, "smollm"), file, type="F32")
    no_end = changed(file, tmp_path / "no-end.gguf", b"ggml.eos_token_id", b"ggml.eos_token_xx")
    with Writer(no_end, 1, 8, 0) as writer:
        assert writer.visible_start() == START
        assert writer.text([START, 9690, START]) == "<|im_start|>system<|im_start|>"
    no_start = changed(no_end, tmp_path / "no-start.gguf", b"ggml.bos_token_id", b"ggml.bos_token_xx")
    message = r"no-start\.gguf cannot write a calibration text of its own: .*start token.*--calibration FILE"
    with pytest.raises(UserError, match=message) as refused:
        convert(no_start, tmp_path / "x.gguf", **SHORT)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="is no stack of 6 decoder layers"):  # gptq says so, as with any text
        convert(minilm_folder, tmp_path / "x.gguf", **SHORT)
    with pytest.raises(NativeError, match="cannot load the model"):
        Writer(tmp_path / "missing.gguf", 1, 8, 0)
    with pytest.raises(NativeError, match="two tokens or more"):
        Writer(tiny, 1, 1, 0)
    assert not (tmp_path / "x.gguf").exists()


def test_a_model_that_ends_at_once_is_named(tiny: Path, tmp_path: Path, cache: Path) -> None:
    """All hidden states are equal, and only the end has a large logit."""
    path = tmp_path / "silent.gguf"
    path.write_bytes(tiny.read_bytes())
    with path.open("r+b") as stream:
        for tensor in open_model(path).tensors:
            values = np.zeros(tensor.shape, dtype=np.float32)
            if tensor.name == "token_embd.weight" or "norm" in tensor.name:
                values[:] = 1
            elif tensor.name == "output.weight":
                values[END] = 1
            stream.seek(tensor.offset)
            stream.write(values.tobytes())
    with pytest.raises(UserError, match=r"silent\.gguf cannot write .*: it ends its texts after 1\.\d tokens on avera"):
        convert(path, tmp_path / "x.gguf", **SHORT)
    assert not list((cache / "own-texts").glob("self-*"))


def test_logits_that_are_no_numbers_are_named(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    path.write_bytes(tiny.read_bytes())
    (norm,) = (t for t in open_model(path).tensors if t.name == "output_norm.weight")
    with path.open("r+b") as stream:
        stream.seek(norm.offset)
        stream.write(np.full(norm.shape, np.nan, dtype=np.float32).tobytes())
    with Writer(path, 2, 8, 0) as writer, pytest.raises(NativeError, match="NaN or infinite logits"):
        writer.next()
