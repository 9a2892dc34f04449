"""Sources and names that users have: projectors, adapters, symbolic links, long names, other layouts of folders."""

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from convert_models import llama_folder, sentencepiece_tokenizer, smollm2_tokenizer, tensors, write_gguf
from gguf import GGMLQuantizationType as T
from gguf_writing import finish
from llama import succeed
from program import bof4

from gguf_bof4.convert import convert
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.lists import select, without

HEAVY = np.random.default_rng(0).standard_t(4, (256, 256)).astype(np.float32) * np.float32(0.05)
"""Weights with outliers."""

NO_LISTS = "the loader of multimodal projectors (libmtmd) applies no outlier lists"


def write_kind(path: Path, architecture: str | None, names: list[str], general_type: str | None = None) -> Path:
    """A file of any kind, whose tensors are all `HEAVY`."""
    writer = gguf.GGUFWriter(path, architecture or "")
    if architecture is None:
        writer.kv_data[0].clear()
    if general_type is not None:
        writer.add_type(general_type)
    for name in names:
        writer.add_tensor(name, HEAVY)
    finish(writer)
    return path


@pytest.mark.parametrize("count", [1, 20])
def test_a_projector_gets_no_lists(tmp_path: Path, count: int) -> None:
    names = [f"v.blk.{i}.ffn_up.weight" for i in range(count)]
    source = write_kind(tmp_path / "mmproj.gguf", "clip", names, "mmproj")
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"))
    assert done.returncode == 0, done.stderr
    assert f"no list:       {count} tensors" in done.stdout
    named = names[0] if count == 1 else f"{names[0]} and 19 more"
    assert f"    {named}: {NO_LISTS}\n" in done.stdout
    without_lists = convert(source, tmp_path / "off.gguf", opq=("off",)).outputs[0]
    assert open_model(tmp_path / "out.gguf").lists == {}
    assert tensors(tmp_path / "out.gguf") == tensors(without_lists)
    assert {t.qtype for t in open_model(without_lists).tensors} == {T.BOF4_S}


def test_a_projector_that_has_lists_is_not_copied(tmp_path: Path) -> None:
    """As version 0.1 wrote them; its outliers are not lost where its tensors are decoded."""
    name, found = "v.blk.0.ffn_up.weight", select(HEAVY, 0.95)
    writer = gguf.GGUFWriter(tmp_path / "listed.gguf", "clip")
    writer.add_tensor(name, np.asarray(gguf.quantize(without(HEAVY, found), T.BOF4_S)), raw_dtype=T.BOF4_S)
    writer.add_tensor(f"{name}.opq", found.packed())
    finish(writer)
    with pytest.raises(UserError, match=rf"outlier list of tensor {name} cannot be kept: the loader of multimodal"):
        convert(tmp_path / "listed.gguf", tmp_path / "out.gguf")
    out = convert(tmp_path / "listed.gguf", tmp_path / "out.gguf", tensor_types=(".=f32",)).outputs[0]
    decoded = open_model(out).tensors[0].read_rows().view(np.float32)
    assert np.abs(decoded[found.rows, found.columns] - found.values).max() < 0.05


@pytest.mark.parametrize(
    ("architecture", "general_type", "name", "message"),
    [
        ("llama", "adapter", "blk.0.attn_q.weight.lora_a", "is an adapter (general.type is adapter), no model"),
        ("controlvector", None, "direction.1", "is a control vector, no model"),
        (None, "imatrix", "blk.0.attn_q.weight.in_sum2", "is an importance matrix, no model: give it with --imatrix"),
    ],
)
def test_files_that_no_model_loader_reads(
    tmp_path: Path, architecture: str | None, general_type: str | None, name: str, message: str
) -> None:
    source = write_kind(tmp_path / "in.gguf", architecture, [name], general_type)
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.replace("\n", " ").startswith(f"bof4: {source} {message}")
    assert list(tmp_path.iterdir()) == [source]


def test_weights_whose_lists_would_have_too_long_names(tmp_path: Path) -> None:
    """llama.cpp refuses a file with a name of 64 bytes or more; letters of two bytes count twice."""
    names = ["blk.0." + "x" * (length - 13) + ".weight" for length in range(57, 64)]
    names += ["blk.0." + "é" * 23 + ".weight", "blk.0." + "é" * 24 + ".weight"]
    lengths = {name: len(name.encode()) for name in names}
    assert list(lengths.values()) == [57, 58, 59, 60, 61, 62, 63, 59, 61]
    source = write_kind(tmp_path / "in.gguf", "llama", names)
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"), "--pure")
    assert done.returncode == 0, done.stderr
    model = open_model(tmp_path / "out.gguf")
    assert model.lists.keys() == {name for name, length in lengths.items() if length < 60}
    for name, length in lengths.items():
        said = f"{name}: the name of its list would have {length + 4} bytes, and llama.cpp loads at most 63"
        assert (said in done.stdout) == (length >= 60)
    # it loads
    succeed("gguf-split", "--split", "--dry-run", tmp_path / "out.gguf", tmp_path / "parts")


@pytest.mark.parametrize("kind", ["file", "parts"])
def test_random_tokens_run_a_model_of_symbolic_links(tmp_path: Path, kind: str) -> None:
    """Names are links into a content-addressed cache, whose files have no names of parts."""
    folder, blobs, names = tmp_path / "model", tmp_path / "blobs", tmp_path / "snapshot"
    for made in (folder, blobs, names):
        made.mkdir()
    llama_folder(folder, smollm2_tokenizer(folder), torch.float32)
    split = "8M" if kind == "parts" else "0"
    plain = convert(folder, tmp_path / "m.gguf", tensor_types=(".=f16",), output_tensor_type="f16",
                    token_embedding_type="f16", split_max_size=split).outputs  # fmt: skip
    assert (len(plain) > 1) == (kind == "parts")
    for i, path in enumerate(plain):
        blob = shutil.copy(path, blobs / f"sha256-{i}")
        (names / path.name).symlink_to(Path("..") / "blobs" / Path(blob).name)
    want = convert(plain[0], tmp_path / "plain.gguf", imatrix="random", threads=2)
    got = convert(names / plain[0].name, tmp_path / "links.gguf", imatrix="random", threads=2)
    assert want.outputs[0].read_bytes() == got.outputs[0].read_bytes()
    assert open_model(got.outputs[0]).value("quantize.imatrix.file") == "random-tokens.gguf"


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_paths_that_standard_output_cannot_encode(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    source = write_gguf(folder / "in.gguf")
    done = bof4("convert", str(source), str(folder / "out.gguf"), "-v", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"    {tmp_path}/d\\udcff/out.gguf\n" in done.stdout
    assert len(open_model(folder / "out.gguf").tensors) == len(open_model(source).tensors)
    again = bof4("convert", str(source), str(folder / "out.gguf"), PYTHONIOENCODING=encoding)
    assert again.returncode == 1 and again.stderr.startswith("bof4: ") and "d\\udcff" in again.stderr
    shown = bof4("inspect", "--json", str(folder / "out.gguf"), PYTHONIOENCODING=encoding)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["file"] == str(folder / "out.gguf")


def test_metadata_of_paths_that_are_no_text(tmp_path: Path) -> None:
    source, name = write_gguf(tmp_path / "in.gguf"), os.fsdecode(b"m\xff")
    out = convert(source, tmp_path / "out.gguf", model_name=name).outputs[0]
    assert open_model(out).value("general.name") == "m\\udcff"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several shards, with the file that it converts to beside it."""
    folder = tmp_path_factory.mktemp("sharded") / "model"
    folder.mkdir()
    sentencepiece_tokenizer(folder)
    llama_folder(folder, 400, torch.float32, shard_size="600KB")
    convert(folder, folder.with_name("expected.gguf"))
    return folder


def test_shards_in_a_subfolder(tmp_path: Path, sharded: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    (folder / "shards").mkdir()
    for shard in folder.glob("*.safetensors"):
        shard.rename(folder / "shards" / shard.name)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {name: f"shards/{file}" for name, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    out = convert(folder, tmp_path / "out.gguf").outputs[0]
    assert out.read_bytes() == sharded.with_name("expected.gguf").read_bytes()
    shard = folder / content["weight_map"]["lm_head.weight"]
    before = shard.read_bytes()
    with pytest.raises(UserError, match="is a file of the source"):
        convert(folder, shard, force=True)
    assert shard.read_bytes() == before


def test_a_stale_index_of_pytorch_files(tmp_path: Path, sharded: Path) -> None:
    """What a download of *.json and *.safetensors leaves."""
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    stale = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(stale))
    out = convert(folder, tmp_path / "out.gguf").outputs[0]
    assert out.read_bytes() == sharded.with_name("expected.gguf").read_bytes()
