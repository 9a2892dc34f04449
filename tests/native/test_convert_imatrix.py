"""Importance matrices: read in both forms as llama-quantize reads them, and refused where they are wrong."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from convert_models import SHAPES, llama_folder, sentencepiece_tokenizer, tensors, types, write_gguf
from gguf import GGMLQuantizationType as T
from gguf_writing import write_imatrix
from llama import THREADS, succeed
from program import bof4

from gguf_bof4.convert import convert, encoding
from gguf_bof4.convert.imatrix import load
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model

Floats = npt.NDArray[np.float32]

EXPERTS = {name: shape for name, shape in SHAPES.items() if "exps" in name}
MATRICES = {n: shape for n, shape in SHAPES.items() if len(shape) > 1 and "inp" not in n and "embd" not in n}


def sums_and_counts(shapes: Mapping[str, tuple[int, ...]] = MATRICES) -> dict[str, tuple[Floats, Floats]]:
    """Sums of squares [matrices, n] and counts [matrices]; the last expert of each tensor was never called."""
    generator = np.random.default_rng(0)
    found = {}
    for name, shape in shapes.items():
        matrices = int(np.prod(shape[:-2]))
        counts = generator.integers(1, 600, matrices).astype(np.float32)
        sums = (generator.gamma(0.5, size=(matrices, shape[-1])) * counts[:, None]).astype(np.float32)
        if matrices > 1:
            counts[-1], sums[-1] = 0, 0
        found[name] = (sums, counts)
    return found


def write_dat(path: Path, entries: Mapping[str, tuple[Floats, Floats]]) -> Path:
    """The same in the older form."""
    content = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        calls = int(-(-counts.max() // 512))
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.float32(1)) * np.float32(calls)
        content += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, means.size)
        content += means.astype("<f4").tobytes()
    path.write_bytes(content + struct.pack("<ii", 3, 8) + b"some.txt")
    return path


def quantized(
    source: Path, output: Path, imatrix: Path, *options: str
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What llama-quantize makes; it drops dimensions of 1."""
    succeed("quantize", "--imatrix", imatrix, *options[:-1], source, output, options[-1])
    found = tensors(output)
    one_row = "blk.1.ffn_up.weight"
    if found[one_row][1] == (256,):
        found[one_row] = (found[one_row][0], SHAPES[one_row], found[one_row][2])
    return found


@pytest.mark.parametrize("write", [write_imatrix, write_dat])
@pytest.mark.parametrize("type_", ["BOF4_S", "BOF4_K"])
def test_same_as_llama_quantize_with_experts(
    tmp_path: Path, write: Callable[[Path, Mapping[str, tuple[Floats, Floats]]], Path], type_: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = write_gguf(tmp_path / "in.gguf")
    imatrix = write(tmp_path / "imatrix", sums_and_counts())
    theirs = quantized(source, tmp_path / "theirs.gguf", imatrix, "--tensor-type", "attn_v=iq3_xxs", type_)
    monkeypatch.setattr(encoding, "RUN_WEIGHTS", 7 * 256)  # runs that do not divide the rows of an expert
    report = convert(
        source, tmp_path / "ours.gguf", type=type_, opq=("off",), imatrix=str(imatrix), tensor_types=("attn_v=iq3_xxs",)
    )
    assert tensors(report.outputs[0]) == theirs
    assert types(report.outputs[0])["blk.0.attn_v.weight"] == "IQ3_XXS"
    plain = tensors(convert(source, tmp_path / "plain.gguf", type=type_, opq=("off",)).outputs[0])
    changed = {name for name in theirs if plain[name] != theirs[name]}
    assert {"blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight", "output.weight"} <= changed
    assert [t.name for t in report.unweighted] == ["token_embd.weight"]
    model, other = open_model(report.outputs[0]), open_model(tmp_path / "theirs.gguf")
    assert model.value("bof4.encoder") == "search"
    for key in ("file", "dataset", "entries_count", "chunks_count"):
        assert model.value(f"quantize.imatrix.{key}") == other.value(f"quantize.imatrix.{key}") is not None
        assert model.fields[f"quantize.imatrix.{key}"].types == other.fields[f"quantize.imatrix.{key}"].types


def test_same_as_llama_quantize_with_llama_imatrix(smol: Path, evaluation: Path, tmp_path: Path) -> None:
    """Both forms, as llama-imatrix writes them."""
    for form, type_ in (("gguf", "BOF4_K"), ("dat", "BOF4_S")):
        imatrix, theirs, ours = (tmp_path / f"{name}.{form}" for name in ("imatrix", "theirs", "ours"))
        succeed(
            "imatrix", "-m", smol, "-f", evaluation, "--chunks", "2", "-c", "64", "--output-format", form,
            "-o", imatrix, *THREADS,
        )  # fmt: skip
        expected = quantized(smol, theirs, imatrix, "--token-embedding-type", "f16", type_)
        report = convert(smol, ours, type=type_, token_embedding_type="f16", opq=("off",), imatrix=str(imatrix))
        assert tensors(ours) == expected
        assert report.unweighted == ()
        theirs.unlink()
        ours.unlink()


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    entries = sums_and_counts(EXPERTS)
    new, old = load(write_imatrix(tmp_path / "x.gguf", entries)), load(write_dat(tmp_path / "x.dat", entries))
    assert (new.dataset, new.chunks) == (old.dataset, old.chunks) == ("some.txt", 3)
    for name, shape in EXPERTS.items():
        importance = new.of(name, shape)
        assert importance is not None
        assert importance.shape == (4, shape[-1])
        assert (importance[-1] == 1).all()  # of an expert that was never called
        assert np.allclose(importance, old.of(name, shape), rtol=1e-6)


def test_lists_and_the_command_line(tmp_path: Path) -> None:
    source, imatrix = write_gguf(tmp_path / "in.gguf"), write_imatrix(tmp_path / "x.gguf", sums_and_counts())
    output = tmp_path / "out.gguf"
    done = bof4("convert", str(source), str(output), "--type", "BOF4_K", "--imatrix", str(imatrix), "--opq", "0.9")
    assert done.returncode == 0, done.stderr
    assert "unweighted:    1 tensors" in done.stdout
    assert open_model(output).lists
    assert bof4("verify", str(output)).returncode == 0
    refused = bof4("convert", str(source), str(output), "-f", "--imatrix", str(imatrix), "--encoder", "absmax")
    assert refused.returncode == 1
    assert "absmax uses no importance matrix" in refused.stderr


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    sentencepiece_tokenizer(folder)
    llama_folder(folder, 400, torch.bfloat16)
    whole = convert(folder, tmp_path / "f32.gguf", tensor_types=(".=f32",), output_tensor_type="f32").outputs[0]
    shapes = {t.name: t.shape for t in open_model(whole).tensors if t.name.startswith("blk.") and len(t.shape) > 1}
    imatrix = write_imatrix(tmp_path / "x.gguf", sums_and_counts(shapes))
    options = {"imatrix": str(imatrix), "token_embedding_type": "f16"}
    direct = convert(folder, tmp_path / "direct.gguf", **options)
    via = convert(whole, tmp_path / "via.gguf", **options)
    ours, theirs = tensors(direct.outputs[0]), tensors(via.outputs[0])
    assert {n: ours[n] for n in shapes} == {n: theirs[n] for n in shapes}
    plain = tensors(convert(whole, tmp_path / "plain.gguf").outputs[0])
    assert {ours[n][0] for n in shapes if plain[n] == ours[n]} == {"Q8_0"}  # whose encoder weighs nothing
    assert open_model(direct.outputs[0]).value("quantize.imatrix.entries_count") == len(shapes)
    assert [t.name for t in direct.unweighted] == [t.name for t in via.unweighted] == ["output.weight"]


def other_size(path: Path) -> str:
    entries = sums_and_counts()
    entries["blk.0.attn_q.weight"] = (np.ones((1, 128), np.float32), np.ones(1, np.float32))
    write_imatrix(path, entries)
    return r"blk.0.attn_q.weight is of 128 columns, but the tensor has 256.*another model.*llama-imatrix"


def with_value(value: float, form: Callable[..., Path]) -> Callable[[Path], str]:
    def damage(path: Path) -> str:
        entries = sums_and_counts()
        entries["blk.0.attn_q.weight"][0][0, 5] = value
        form(path, entries)
        return r"blk.0.attn_q.weight is .* at column 5.*damaged.*llama-imatrix"

    return damage


def with_bytes(
    change: Callable[[bytes], bytes], message: str, form: Callable[..., Path] = write_dat
) -> Callable[[Path], str]:
    def damage(path: Path) -> str:
        path.write_bytes(change(form(path, sums_and_counts()).read_bytes()))
        return message

    return damage


def without_key(path: Path) -> str:
    write_imatrix(path, sums_and_counts(), chunk_size=False)
    return r"does not say what it was made from"


def a_model(path: Path) -> str:
    write_gguf(path)
    return r"no importance matrix: give one that llama-imatrix made"


def counts_that_do_not_divide(path: Path) -> str:
    write_imatrix(path, {"x": (np.ones((1, 64), np.float32), np.ones(3, np.float32))})
    return r"64 sums and 3 counts of tensor x do not match"


def missing(path: Path) -> str:
    return r"does not exist"


DAMAGES: dict[str, Callable[[Path], str]] = {
    "other size": other_size,
    "nan": with_value(np.nan, write_imatrix),
    "negative": with_value(-1.0, write_imatrix),
    "infinite": with_value(np.inf, write_imatrix),
    "nan in dat": with_value(np.nan, write_dat),
    "negative in dat": with_value(-1.0, write_dat),
    "truncated": with_bytes(lambda b: b[:-100], "truncated", write_imatrix),
    "dat truncated in values": with_bytes(lambda b: b[:200], r"truncated: it ends in entry 1 of"),
    "dat truncated at the end": with_bytes(lambda b: b[:-3], r"truncated: it ends in the dataset"),
    "no entries": with_bytes(lambda b: struct.pack("<i", 0) + b[4:], r"it has 0 entries"),
    "negative length": with_bytes(lambda b: b[:4] + struct.pack("<i", -5) + b[8:], "entry 1 of"),
    "text": with_bytes(lambda b: b"This is a text, and no importance matrix at all.", "no importance matrix"),
    "empty": with_bytes(lambda b: b"", "no importance matrix"),
    "no key": without_key,
    "a model": a_model,
    "counts": counts_that_do_not_divide,
    "missing": missing,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_wrong_is_refused_and_named(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    source, imatrix = write_gguf(tmp_path / "in.gguf"), tmp_path / "imatrix"
    message = damage(imatrix)
    with pytest.raises(UserError, match=message) as caught:
        convert(source, tmp_path / "out.gguf", imatrix=str(imatrix))
    assert str(imatrix) in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def test_an_older_dat_ends_with_its_entries(tmp_path: Path) -> None:
    path = write_dat(tmp_path / "x.dat", sums_and_counts(EXPERTS))
    path.write_bytes(path.read_bytes()[: -8 - len("some.txt")])
    found = load(path)
    assert (found.dataset, found.chunks, len(found.entries)) == (None, 0, len(EXPERTS))


def test_types_that_are_garbage_without_importance(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "in.gguf", T.F16)
    imatrix = write_imatrix(tmp_path / "x.gguf", sums_and_counts(EXPERTS))
    with pytest.raises(UserError, match=r"nothing about the tensor blk.0.attn_q.weight.*IQ3_XXS.*another type"):
        convert(source, tmp_path / "out.gguf", imatrix=str(imatrix), tensor_types=("attn_q=iq3_xxs",))
    with pytest.raises(UserError, match=r"IQ3_XXS needs an importance matrix: give one with --imatrix"):
        convert(source, tmp_path / "out.gguf", tensor_types=("attn_q=iq3_xxs",))


def test_an_impossible_number_of_chunks(tmp_path: Path) -> None:
    """It could not be written as quantize.imatrix.chunks_count."""
    writer = gguf.GGUFWriter(tmp_path / "imatrix", "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["some.txt"])
    writer.add_uint64("imatrix.chunk_count", 1 << 32)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 64), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"damaged: it was made from 4294967296 chunks"):
        load(tmp_path / "imatrix")
