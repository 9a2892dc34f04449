"""Outputs that are no files, and folders that are no models: refused before anything is read."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from pathlib import Path
from unittest import mock

import pytest

from gguf_bof4.cli import main
from gguf_bof4.convert import convert
from gguf_bof4.convert.huggingface_folder import check_folder, weight_files
from gguf_bof4.convert.model_kinds import why_no_lists, why_no_model
from gguf_bof4.errors import UserError

MISSING = Path("no-such-source.gguf")
"""The output is looked at first, so this is never opened."""

EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"

each_way = pytest.mark.parametrize(
    "options", [{}, {"force": True}, {"split_max_size": "1G"}, {"force": True, "dry_run": True}], ids=str
)


@each_way
@pytest.mark.parametrize("output", [".", "", "/", "..", "../.."])
def test_an_output_without_a_name_is_refused(output: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        convert(MISSING, Path(output), **options)


@each_way
def test_an_output_that_is_no_regular_file_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    fifo, link, name = tmp_path / "fifo", tmp_path / "link", tmp_path / "socket"
    os.mkfifo(fifo)
    link.symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(name))
        expected = {Path("/dev/null"): "a device", link: "a device", fifo: "a FIFO", name: "a socket"}
        for output, kind in expected.items():
            with pytest.raises(UserError, match=f"{output} is {kind}, which a file must not replace"):
                convert(MISSING, output, **options)
    assert fifo.is_fifo() and link.is_symlink() and name.is_socket()


@pytest.mark.parametrize("name", ["{0", "{model}.gguf", "{1}", "{ftype:d}", "{ftype.no}", "{ftype:/<9}"])
def test_other_braces_in_the_name_of_the_output_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"only \{ftype\} may be in braces"):
        convert(MISSING, tmp_path / name)


def test_names_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        convert(MISSING, tmp_path / ("x" * 300))


KINDS: list[tuple[str | None, str | None, str]] = [
    ("adapter", "llama", "an adapter.*--lora"),
    ("imatrix", None, "an importance matrix.*--imatrix"),
    (None, "controlvector", "a control vector.*--control-vector"),
    ("model", None, "no general.architecture"),
]


@pytest.mark.parametrize(("general_type", "architecture", "message"), KINDS)
def test_files_that_are_no_models_say_what_they_are(
    general_type: str | None, architecture: str | None, message: str
) -> None:
    said = why_no_model(Path("x.gguf"), general_type, architecture)
    assert said is not None and said.startswith("x.gguf is ")
    with pytest.raises(UserError, match=message):
        raise UserError(said)


def test_models_and_projectors_are_converted() -> None:
    for general_type, architecture in ((None, "llama"), ("model", "llama"), ("mmproj", "clip"), (7, "llama")):
        assert why_no_model(Path("x.gguf"), general_type, architecture) is None
    assert why_no_lists("llama", "token_embd.weight") is None
    assert "libmtmd" in str(why_no_lists("clip", "v.blk.0.ffn_up.weight"))
    assert "embeddings" in str(why_no_lists("gemma3n", "per_layer_token_embd.weight"))


def model_folder(folder: Path, *weights: str) -> Path:
    """A folder with everything but weights; those given are empty safetensors files."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    for name in weights:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(EMPTY_SAFETENSORS)
    return folder


def write_index(folder: Path, name: str, *files: str) -> None:
    (folder / name).write_text(json.dumps({"weight_map": {f"x.{i}": file for i, file in enumerate(files)}}))


def test_an_index_of_the_other_kind_of_weights_does_not_count(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "model.safetensors")
    write_index(folder, "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin")
    assert check_folder(folder) == [folder / "model.safetensors"]
    # without safetensors it does
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model-00001-of-00002\.bin is missing, which pytorch_model"):
        check_folder(folder)


def test_an_index_may_name_files_in_a_subfolder(tmp_path: Path) -> None:
    names = ("shards/model-00001-of-00002.safetensors", "shards/model-00002-of-00002.safetensors")
    folder = model_folder(tmp_path / "model", *names)
    write_index(folder, "model.safetensors.index.json", *names)
    assert check_folder(folder) == [folder / name for name in names]
    (folder / names[1]).unlink()
    with pytest.raises(UserError, match=r"shards/model-00002-of-00002\.safetensors is missing"):
        check_folder(folder)


def test_an_index_with_names_that_no_file_can_have(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    for name in ("x" * 300, "a\0b", ""):
        write_index(folder, "model.safetensors.index.json", name)
        with pytest.raises(UserError, match="is not complete"):
            weight_files(folder)


@pytest.mark.parametrize("has_config", [False, True])
def test_a_peft_adapter_says_what_it_is(tmp_path: Path, has_config: bool) -> None:
    folder = model_folder(tmp_path / "lora", "adapter_model.safetensors")
    if not has_config:
        (folder / "config.json").unlink()
    adapter = folder / "adapter_config.json"
    adapter.write_text(json.dumps({"base_model_name_or_path": "org/base-7b"}))
    expected = r"lora is a PEFT adapter, no model.*Load its base model org/base-7b with peft.*merge_and_unload\(\)"
    with pytest.raises(UserError, match=expected):
        check_folder(folder)
    adapter.write_text("{}")
    with pytest.raises(UserError, match="Load its base model with peft"):
        check_folder(folder)


def test_a_model_with_an_adapter_config_is_a_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "model.safetensors", "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert check_folder(folder) == [folder / "model.safetensors"]


def test_other_folders_without_config_say_what_to_give(tmp_path: Path) -> None:
    files, cache, empty = tmp_path / "files", tmp_path / "models--org--name", tmp_path / "empty"
    for folder in (files, cache / "snapshots" / "1f0e", empty):
        folder.mkdir(parents=True)
    (files / "m-q8_0.gguf").touch()
    expected = {
        files: "holds GGUF files: give one of them, such as m-q8_0.gguf",
        cache: f"give a snapshot in it, such as {cache / 'snapshots' / '1f0e'}",
        empty: "it has no config.json",
    }
    for folder, message in expected.items():
        with pytest.raises(UserError, match=message):
            check_folder(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_standard_output_cannot_encode_are_escaped(encoding: str) -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding=encoding, errors="strict", write_through=True)

    def app() -> None:
        print(os.fsdecode(b"d\xff/out.gguf"))

    with (
        mock.patch.object(sys, "stdout", stdout),
        mock.patch("gguf_bof4.cli.make_app", return_value=app),
    ):
        main()
    assert written.getvalue() == b"d\\udcff/out.gguf\n"
