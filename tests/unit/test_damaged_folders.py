"""Hugging Face folders whose headers and configurations say what cannot be, and how weights were quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_bof4 import native
from gguf_bof4.convert import pipeline
from gguf_bof4.convert.huggingface_folder import check_folder
from gguf_bof4.convert.opened import OpenedModel
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import Writer
from gguf_bof4.convert.quantized_folder import quantization
from gguf_bof4.convert.sources import Computed
from gguf_bof4.errors import UserError

SOUND = {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]}


def folder_of(folder: Path, header: Any, config: Any = None, data: int = 64) -> Path:
    """A folder with one safetensors file of this header and so many bytes of data."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({} if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return folder


def test_a_sound_folder(tmp_path: Path) -> None:
    for tensor in (SOUND, SOUND | {"shape": [], "data_offsets": [0, 2]}, SOUND | {"dtype": "F4", "shape": [128]}):
        folder = folder_of(tmp_path / "m", {"__metadata__": {"format": "pt"}, "a": tensor})
        assert check_folder(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "its header is no JSON object"),
        (b"{", "is damaged or no safetensors file"),
        (b"[" * 100_000, "is damaged or no safetensors file"),
        ({"a": 7}, "tensor a has no shape, type or offsets"),
        ({"a": {}}, "tensor a has no shape, type or offsets"),
        ({"a": SOUND | {"shape": None}}, "tensor a has no shape"),
        ({"a": SOUND | {"shape": [4, -8]}}, "tensor a has no shape"),
        ({"a": SOUND | {"shape": [4, 8.5]}}, "tensor a has no shape"),
        ({"a": SOUND | {"dtype": 16}}, "tensor a has no shape"),
        ({"a": SOUND | {"data_offsets": [64]}}, "tensor a has no shape"),
        ({"a": SOUND | {"data_offsets": [-1, 63]}}, "tensor a has no shape"),
        ({"a": SOUND | {"data_offsets": [64, 0]}}, "is damaged: tensor a .* has -64 bytes, not 64"),
        ({"a": SOUND | {"shape": [4, 9]}}, "is damaged: tensor a of type F16 and shape .* has 64 bytes, not 72"),
        ({"a": SOUND | {"dtype": "F32"}}, "is damaged: tensor a of type F32 .* has 64 bytes, not 128"),
        ({"a": SOUND | {"data_offsets": [1, 65]}}, "is truncated: tensor a ends at byte"),
        ({"\ud800\x1b": SOUND | {"data_offsets": [1, 65]}}, r"tensor \\ud800\\x1b ends at byte"),
    ],
)
def test_safetensors_headers_that_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"model\.safetensors .*{message}"):
        check_folder(folder_of(tmp_path / "m", header))


@pytest.mark.parametrize(
    "config", [{"num_hidden_layers": 2**31}, {"vocab_size": 10**12}, {"text_config": {"n_layer": 10**6}}]
)
def test_sizes_for_which_upstream_would_run_out_of_memory(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"config\.json is damaged: \w+ is \d+, and no model has more than"):
        check_folder(folder_of(tmp_path / "m", {"a": SOUND}, config))


def test_json_that_is_nested_too_deep(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", {"a": SOUND})
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is damaged: it is no JSON"):
        check_folder(folder)


def test_the_messages_name_a_few_missing_shards_and_escape_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", {"a": SOUND})
    names = {f"t{i}": f"model-{i:05d}.safetensors" for i in range(100)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "\ud800\n"} | names}))
    with pytest.raises(UserError, match=r"not complete: model-00000.*-00004\.safetensors and 96 more is missing"):
        check_folder(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "\ud800\n"}}))
    with pytest.raises(UserError, match=r"is not complete: \\ud800\\n is missing"):
        check_folder(folder)


GROUPS = {"group_0": {"weights": {"num_bits": 8, "strategy": "tensor"}}}
KINDS: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, 4 bits, nf4"),
    ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
    ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bits"),
    (
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": GROUPS},
        "compressed-tensors, 8 bits, float-quantized, scales per tensor",
    ),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": 3}}, "compressed-tensors"),
    ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "modelopt, FP8"),
]


@pytest.mark.parametrize(("config", "kind"), KINDS)
def test_how_weights_were_quantized(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    assert quantization(tmp_path) == kind
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"quantization_config": config}}))
    assert quantization(tmp_path) == kind
    (tmp_path / "config.json").write_text("{}")
    assert quantization(tmp_path) is None
    (tmp_path / "quantize_config.json").write_text(json.dumps(config))
    assert quantization(tmp_path) == f"{kind} (quantize_config.json)"


def test_names_of_tensors_say_that_weights_are_quantized(tmp_path: Path) -> None:
    said = "Can not map tensor 'model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4'"
    assert quantization(tmp_path, said) == "bitsandbytes"
    assert quantization(tmp_path, "Can not map tensor 'model.layers.0.mlp.down_proj.weight_x'") is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 1, 1, 1, 64), "tensor a has 5 dimensions"), ((0, 64), r"tensor a of shape \[0, 64\] has no weights")],
)
def test_shapes_that_no_gguf_file_can_have_do_not_reach_ggml(shape: tuple[int, ...], message: str) -> None:
    source = Computed("a", gguf.GGMLQuantizationType.F32, shape, Path("folder"), lambda: np.zeros(shape, np.float32))
    opened = OpenedModel(Path("folder"), [], "llama", [source], Writer(path=None, arch="llama"))
    with pytest.raises(UserError, match=f"folder: {message}"):
        pipeline.plan(opened, Options())


@pytest.mark.parametrize("shape", [(), (2, 1, 1, 1, 64)])
def test_native_rules_refuse_numbers_of_dimensions_on_which_ggml_aborts(shape: tuple[int, ...]) -> None:
    with pytest.raises(native.NativeError, match="has not 1 to 4 dimensions"):
        native.allows_quantization("llama", "blk.0.attn_q.weight", shape)
