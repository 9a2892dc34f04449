"""bof4 verify and bof4 inspect, on sound files and on damaged ones; and the patched loader on the same damage."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from program import bof4

from gguf_bof4.errors import UserError
from gguf_bof4.formats import BOF4_S, FORMAT_VERSION
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.verify import verify

TYPE = gguf.GGMLQuantizationType.BOF4_S
ROWS, COLUMNS = 24, 320


def write(path: Path, levels: tuple[int, ...] | None = BOF4_S.levels, version: int | None = FORMAT_VERSION) -> Path:
    """A small file with two BOF4_S tensors and one F32 tensor."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    if version is not None:
        writer.add_uint32("bof4.version", version)
    if levels is not None:
        writer.add_key_value(
            BOF4_S.levels_key, list(levels), gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.INT8
        )
    for name in ("a.weight", "b.weight"):
        x = generator.standard_normal((ROWS, COLUMNS), dtype=np.float32)
        writer.add_tensor(name, gguf.quantize(x, TYPE), raw_dtype=TYPE)
    writer.add_tensor("norm.weight", np.ones(COLUMNS, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "x.gguf")


def offset_of(path: Path, name: str) -> int:
    return next(t.offset for t in open_model(path).tensors if t.name == name)


def patch_bytes(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        f.write(data)


def replace_once(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def test_a_sound_file_is_verified(file: Path) -> None:
    done = bof4("verify", str(file))
    assert done.returncode == 0, done.stderr
    assert f"2 tensors, {2 * ROWS * COLUMNS:,} weights" in done.stdout


def test_inspect_prints_what_json_says(file: Path) -> None:
    found = json.loads(bof4("inspect", str(file), "--json").stdout)
    assert found["types"]["BOF4_S"] == {
        "tensors": 2, "weights": 2 * ROWS * COLUMNS, "bytes": 2 * ROWS * COLUMNS // 64 * 34, "bits_per_weight": 4.25,
        "outliers": 0,
    }  # fmt: skip
    assert found["metadata"]["bof4.levels.bof4_s"] == list(BOF4_S.levels)
    assert found["bytes"] == file.stat().st_size
    assert [(t["name"], t["type"], t["shape"]) for t in found["tensors"]] == [
        ("a.weight", "BOF4_S", [ROWS, COLUMNS]), ("b.weight", "BOF4_S", [ROWS, COLUMNS]),
        ("norm.weight", "F32", [COLUMNS]),
    ]  # fmt: skip
    text = bof4("inspect", str(file)).stdout
    for expected in ("a.weight", "BOF4_S", "4.25", "bof4.version", f"{found['weights']:,} weights"):
        assert expected in text


def damage_scale(path: Path) -> str:
    at = offset_of(path, "b.weight") + (2 * (COLUMNS // 64) + 3) * 34
    patch_bytes(path, at, np.array([np.nan], dtype=np.float16).tobytes())
    return r"b.weight.*row 2, column 192 is NaN"


def damage_levels(path: Path) -> str:
    write(path, levels=(*BOF4_S.levels[:3], -50, *BOF4_S.levels[4:]))
    return r"bof4.levels.bof4_s is .*-50"


def remove_levels(path: Path) -> str:
    write(path, levels=None)
    return r"no bof4.levels.bof4_s"


def raise_version(path: Path) -> str:
    write(path, version=FORMAT_VERSION + 1)
    return r"version 2.*update it"


def damage_shape(path: Path) -> str:
    dims = np.array([COLUMNS, ROWS], dtype=np.uint64)
    content = path.read_bytes()
    at = content.index(b"a.weight") + len(b"a.weight") + 4
    assert content[at : at + 16] == dims.tobytes()
    patch_bytes(path, at, np.array([COLUMNS, ROWS - 1], dtype=np.uint64).tobytes())
    return r"b.weight starts at byte"


def damage_row_length(path: Path) -> str:
    at = path.read_bytes().index(b"a.weight") + len(b"a.weight") + 4
    patch_bytes(path, at, np.array([COLUMNS + 1], dtype=np.uint64).tobytes())
    return r"damaged.*321"


def damage_type(path: Path) -> str:
    at = path.read_bytes().index(b"a.weight") + len(b"a.weight") + 4 + 16
    patch_bytes(path, at, np.array([100], dtype=np.uint32).tobytes())
    return r"damaged.*100"


def truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-400])
    return r"truncated"


def truncate_header(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:70])
    return r"truncated"


def wrong_magic(path: Path) -> str:
    patch_bytes(path, 0, b"GGML")
    return r"not a GGUF file"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return r"not a GGUF file"


def huge_count(path: Path) -> str:
    patch_bytes(path, 8, np.array([2**60], dtype=np.uint64).tobytes())
    return r"promises 1152921504606846976 tensors"


DAMAGES = (
    damage_scale, damage_levels, remove_levels, raise_version, damage_shape, damage_row_length, damage_type,
    truncate, truncate_header, wrong_magic, empty, huge_count,
)  # fmt: skip
each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)


@each_damage
def test_verify_refuses_and_names_the_damage(damage: Callable[[Path], str], file: Path) -> None:
    message = damage(file)
    with pytest.raises(UserError, match=message) as caught:
        list(verify(file))
    assert str(file) in str(caught.value)


def test_a_refusal_is_one_message_and_exit_code_1(file: Path) -> None:
    damage_scale(file)
    refused = bof4("verify", str(file))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("bof4: ")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_what_is_no_file_is_named(name: str, tmp_path: Path) -> None:
    for command in ("inspect", "verify"):
        refused = bof4(command, str(tmp_path / name))
        assert refused.returncode == 1
        assert str(tmp_path) in refused.stderr


@each_damage
def test_the_patched_loader_never_crashes(damage: Callable[[Path], str], file: Path) -> None:
    """llama-quantize loads the file with the patched gguf.cpp and loader; a signal would be a negative code."""
    damage(file)
    command = [installed_bin() / "llama-quantize", "--allow-requantize", file, file.with_name("out.gguf"), "Q8_0"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr[-500:]
