"""Names of models on a hub, and which of a repository's files are meant; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_bof4.convert.hub_files import files_to_convert
from gguf_bof4.errors import UserError
from gguf_bof4.hub import HubName, choose_gguf, parse_hub_name, wanted

NAME = HubName("org/model")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/model", HubName("org/model")),
        ("hf://org/model", HubName("org/model")),
        ("hf:gpt2", HubName("gpt2")),
        ("hf:org/model:Q4_K_M", HubName("org/model", None, "Q4_K_M")),
        ("hf:org/model@v1.0:folder/a.gguf", HubName("org/model", "v1.0", "folder/a.gguf")),
        ("hf:org/Model-1.5B_x@refs/pr/1", HubName("org/Model-1.5B_x", "refs/pr/1")),
        ("org/model", None),
        ("model.gguf", None),
    ],
)
def test_names_with_the_prefix(text: str, expected: HubName | None) -> None:
    assert parse_hub_name(text) == expected


@pytest.mark.parametrize(
    "text", ["hf:", "hf:/x", "hf:a/b/c", "hf:../x", "hf:org/", "hf:org/model:", "hf:org/model@", "hf:a b/c"]
)
def test_malformed_names_say_the_form(text: str) -> None:
    with pytest.raises(UserError, match=r"hf:ORGANIZATION/NAME\[@REVISION\]\[:FILE\]"):
        parse_hub_name(text)


def test_a_path_that_exists_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert wanted("org/model", bare=True) == HubName("org/model", forced=False)
    assert wanted("org/model@v2", bare=True) == HubName("org/model", "v2", forced=False)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert wanted("org/model", bare=True) is None
    assert wanted("hf:org/model", bare=True) == HubName("org/model")
    (tmp_path / "hf:org").mkdir()
    (tmp_path / "hf:org" / "model").touch()
    assert wanted("hf:org/model") is None


@pytest.mark.parametrize(
    "text",
    ["model", "./org/model", "/org/model", "~/model", "org/model/", "a/b/c", "org/model.gguf", "org/x.safetensors",
     "../org/model", "org\\model", "", "there/model"],
)  # fmt: skip
def test_what_looks_like_a_path_is_one(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert wanted(text, bare=True) is None


def test_only_convert_takes_repositories_without_the_prefix() -> None:
    assert wanted("org/model") is None


FILES = (
    "README.md", "imatrix-Q4_K_M.gguf", "mmproj-F16.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-IQ4_XS.gguf",
    "big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf",
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (None, "m-Q4_K_M.gguf"), ("Q8_0", "m-Q8_0.gguf"), ("iq4_xs", "m-IQ4_XS.gguf"),
        ("m-IQ4_XS.gguf", "m-IQ4_XS.gguf"), ("F16", "big/m-F16-00001-of-00002.gguf"),
        ("m-F16-00001-of-00002.gguf", "big/m-F16-00001-of-00002.gguf"),
        ("big/m-F16-00002-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"), ("mmproj-F16.gguf", "mmproj-F16.gguf"),
    ],
)  # fmt: skip
def test_tags_and_files(file: str | None, expected: str) -> None:
    assert choose_gguf(HubName("org/model", None, file), FILES) == expected


def test_types_of_this_project_go_first_where_none_is_named() -> None:
    assert choose_gguf(NAME, (*FILES, "m-BOF4_S.gguf")) == "m-BOF4_S.gguf"
    assert choose_gguf(NAME, ("m-Q2_K.gguf", "m-IQ1_S.gguf")) == "m-IQ1_S.gguf"


@pytest.mark.parametrize("file", ["Q5_K", "Q4_K", "missing.gguf", "m-*.gguf", "Q4.K.M"])
def test_missing_files_and_tags_are_listed(file: str) -> None:
    with pytest.raises(UserError, match=r"org/model has no .*: its models are big/m-F16-00001-of-00002.gguf, m-IQ4_XS"):
        choose_gguf(HubName("org/model", None, file), FILES)


def test_without_models_convert_is_named() -> None:
    with pytest.raises(UserError, match=r"no GGUF file of a model: `bof4 convert hf:org/model OUT\.gguf`"):
        choose_gguf(NAME, ("config.json", "model.safetensors", "mmproj.gguf"))


REPOSITORY = (
    ".gitattributes", "README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "merges.txt", "chat_template.jinja", "tokenizer.model", "modules.json", "1_Pooling/config.json", "LICENSE",
)  # fmt: skip
WANTED = {*REPOSITORY} - {".gitattributes", "LICENSE"}
UNUSED = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx",
    "original/consolidated.00.pth", "original/params.json.zip", "consolidated.safetensors", "x.gguf", "figures/a.png",
    "onnx/model.safetensors", "modeling_x.py",
)  # fmt: skip


def unread(path: str) -> Path:
    raise AssertionError(f"{path} is not needed to choose")


def test_one_file_of_safetensors() -> None:
    files = [f for f in REPOSITORY if f != "tokenizer_config.json"]
    chosen = files_to_convert(NAME, (*files, *UNUSED, "model.safetensors"), unread)
    assert set(chosen) == WANTED - {"tokenizer_config.json"} | {"model.safetensors"}
    assert len(chosen) == len(set(chosen))


def repository_of(folder: Path, weights: dict[str, str], index: str) -> None:
    (folder / index).write_text(json.dumps({"weight_map": weights}))
    (folder / "tokenizer_config.json").write_text("{}")


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    repository_of(tmp_path, {"a": "model-1.safetensors", "b": "shards/model-2.safetensors"}, index)
    shards = ("model-1.safetensors", "shards/model-2.safetensors")
    chosen = files_to_convert(NAME, (*REPOSITORY, *UNUSED, index, *shards, "model.fp16.safetensors"), tmp_path.joinpath)
    assert set(chosen) == WANTED | {index, *shards}
    with pytest.raises(UserError, match=r"not complete: model\.safetensors\.index\.json names shards/model-2"):
        files_to_convert(NAME, (*REPOSITORY, index, shards[0]), tmp_path.joinpath)
    (tmp_path / index).write_text("[]")
    with pytest.raises(UserError, match="is damaged: it has no weight_map"):
        files_to_convert(NAME, (*REPOSITORY, index, *shards), tmp_path.joinpath)


def test_pytorch_files_where_there_are_no_safetensors(tmp_path: Path) -> None:
    index = "pytorch_model.bin.index.json"
    repository_of(tmp_path, {"a": "pytorch_model-1.bin"}, index)
    chosen = files_to_convert(NAME, (*REPOSITORY, index, "pytorch_model-1.bin", "training_args.bin"), tmp_path.joinpath)
    assert set(chosen) == WANTED | {index, "pytorch_model-1.bin"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("config.json", "README.md"), "has no weights"),
        (("m-Q8_0.gguf", "README.md"), "holds GGUF files: give one of them, such as hf:org/model:m-Q8_0.gguf"),
        (("adapter_config.json", "adapter_model.safetensors"), "it is a PEFT adapter"),
        (("README.md",), "it has no config.json"),
    ],
)
def test_repositories_that_are_no_model(files: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        files_to_convert(NAME, files, unread)


def test_a_tokenizer_of_python_code_is_refused(tmp_path: Path) -> None:
    files = (*REPOSITORY, "model.safetensors", "tokenization_x.py")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}}))
    with pytest.raises(UserError, match=r"is Python code in the repository.*hf download org/model --local-dir FOLDER"):
        files_to_convert(NAME, files, tmp_path.joinpath)
    config.write_text("{}")
    assert "tokenization_x.py" not in files_to_convert(NAME, files, tmp_path.joinpath)
