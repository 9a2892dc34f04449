"""Hugging Face folders, as names and contents of files, mutated."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

Folder = dict[str, bytes | None]
"""Contents by name; None stands for a folder of that name."""

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 64, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../x", "/etc/hostname", "\ud800", "ü", "a" * 10000, "float16", "F64", "BF16", "I64", "F8_E4M3"),
    *([], {}, [[]], [1], ["x"], [None], {"a": 1}, {"rope_type": "yarn"}, [0, 0], [0, -1], [0, 2**62]),
    *(["LlamaForCausalLM"], ["NoSuchModel"], ["BertModel"], ["MixtralForCausalLM"], ["T5ForConditionalGeneration"]),
]
KEYS = [
    "quantization_config", "rope_scaling", "architectures", "model_type", "text_config", "vision_config", "auto_map",
    "num_local_experts", "head_dim", "weight_map", "__metadata__", "dtype", "shape", "data_offsets", "_name_or_path",
    "bos_token_id", "added_tokens_decoder", "chat_template", "tokenizer_class",
]  # fmt: skip
BROKEN = [
    *(b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100000, b"NaN"),
    b'{"a":1,"a":2}',
    *(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", b"<html>404</html>", bytes(64)),
]
CARDS = [
    *(b"---\nlicense: mit\n---\n", b"---\n: : :\n---", b"---\nbase_model: [1, {}]\n---\n", b"---\n- x\n---\n"),
    b"\xff---\n",
]
MORE_FILES = ("adapter_config.json", "model.safetensors", "pytorch_model.bin", "params.json")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value, and every key or index in it."""
    found = []
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, i) for i in range(min(len(value), 20))]
    return found + [place for container, key in found for place in _places(container[key])]


def mutate_json(raw: bytes, rng: random.Random) -> bytes:
    """Replace, delete or add a value, or break the text."""
    if rng.random() < 0.15:
        return rng.choice([*BROKEN, raw[: rng.randrange(len(raw) + 1)]])
    value = json.loads(raw)
    for _ in range(rng.choice([1, 1, 2])):
        places = _places(value)
        if not places:
            break
        container, key = rng.choice(places)
        what = rng.randrange(4)
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[rng.choice(KEYS)] = rng.choice(VALUES)
        else:
            container[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def mutate_safetensors(raw: bytes, rng: random.Random) -> bytes:
    """Change the header, its length, or the data."""
    length = struct.unpack_from("<Q", raw)[0]
    header, data = raw[8 : 8 + length], raw[8 + length :]
    what = rng.randrange(6) if len(data) > 1 else 1  # a length that is wrong already leaves no data
    if what == 0:
        return struct.pack("<Q", rng.choice([0, 1, 7, length - 1, length + 1, 2**31, 2**62, 2**64 - 1])) + raw[8:]
    if what == 1:
        return raw[: rng.randrange(len(raw) + 1)]
    if what == 2:
        return rng.choice(BROKEN)
    if what == 3:
        at = 8 + length + 2 * rng.randrange(len(data) // 2)
        return raw[:at] + rng.choice([b"\xc0\x7f", b"\x80\x7f", b"\x7f\x7f"]) + raw[at + 2 :]  # NaN, infinity, 3e38
    header = mutate_json(header, rng)
    return struct.pack("<Q", len(header)) + header + data


def mutate_folder(folder: Folder, rng: random.Random) -> None:
    """One or two mutations, in place."""
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(sorted(folder))
        content = folder[name]
        what = rng.randrange(10)
        if what == 0:
            del folder[name]
        elif what == 1:
            other = rng.choice(sorted(folder))
            folder[name], folder[other] = folder[other], folder[name]
        elif what == 2:
            folder[rng.choice([*folder, *MORE_FILES])] = rng.choice([content, rng.choice(BROKEN)])
        elif what == 3:
            folder[rng.choice(["README.md", "generation_config.json", "hf_quant_config.json", "added_tokens.json"])] = (
                rng.choice([*CARDS, *BROKEN, json.dumps(rng.choice(VALUES)).encode()])
            )
        elif what == 4:
            folder[name] = None
        elif content is None or len(content) < 8:
            continue
        elif name.endswith(".safetensors"):
            folder[name] = mutate_safetensors(content, rng)
        elif name.endswith(".json") and content.startswith(b"{"):
            try:
                folder[name] = mutate_json(content, rng)
            except ValueError:
                continue
        else:
            at = rng.randrange(len(content))
            folder[name] = rng.choice([content[:at], content[:at] + rng.randbytes(3) + content[at + 3 :], b""])
