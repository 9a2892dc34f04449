"""What cannot be converted: a message that names the file and the remedy, an exit code, and nothing left behind."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_models import (
    SHAPES,
    llama_folder,
    sentencepiece_tokenizer,
    smollm2_tokenizer,
    sparse_gguf,
    sparse_safetensors,
    weights,
    write_gguf,
)
from gguf import GGMLQuantizationType as T
from program import bof4
from safetensors.torch import load_file, save_file

from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.packaged_models import fetch_smollm2

PROGRAM = Path(sys.executable).with_name("bof4")


def everything(folder: Path) -> dict[str, bytes | None]:
    """All paths below a folder, hidden ones too, and the content of small files."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() and p.stat().st_size < 1 << 22 else None
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refuses(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run `bof4 convert`, demand that it fails with such a message and changes nothing; returns the message."""

    def run(source: Path, *expected: str, output: Path | None = None, options: tuple[str, ...] = ()) -> str:
        before = everything(tmp_path)
        done = bof4("convert", str(source), str(output or tmp_path / "out.gguf"), *options)
        message = done.stderr.replace("\n", " ")
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        assert message.startswith("bof4: ")
        assert "Traceback" not in message
        for text in expected:
            assert text in message, message
        assert everything(tmp_path) == before
        return message

    yield run


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder in several shards, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("llama")
    sentencepiece_tokenizer(folder)
    return llama_folder(folder, 400, torch.float32, shard_size="600KB")


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def test_missing_and_unreadable_sources(tmp_path: Path, refuses: Callable[..., str]) -> None:
    refuses(tmp_path / "nothing.gguf", "nothing.gguf does not exist")
    refuses(tmp_path / "nothing", "nothing does not exist")
    # a regular file whose first bytes cannot be read, even by root
    refuses(Path("/proc/self/mem"), "/proc/self/mem cannot be read: Input/output error")


def test_no_gguf(tmp_path: Path, refuses: Callable[..., str]) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"GG", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        refuses(path, "model.gguf is not a GGUF file")


@pytest.mark.parametrize("keep", [8, 24, 100, 700, -100_000, -1])
def test_truncated_gguf(tmp_path: Path, refuses: Callable[..., str], keep: int) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    refuses(path, "model.gguf is truncated")


def test_parts(tmp_path: Path, refuses: Callable[..., str]) -> None:
    first = write_gguf(tmp_path / "m.gguf", split_max_size=500_000)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    refuses(parts[1], "is a later part", "m-00001-of")
    # the name of an output part can be that of a source part
    same = ("--token-embedding-type", "f32", "--output-tensor-type", "f32", "--tensor-type", ".=f32")
    options = ("--split-max-size", "500K", "--force", *same)
    refuses(first, "is a file of the source", output=tmp_path / "m.gguf", options=options)
    parts[2].unlink()
    refuses(first, "parts of the split model are missing", parts[2].name)


@pytest.mark.parametrize("architecture", ["nosucharch", ""])
def test_unknown_architecture_of_a_gguf(tmp_path: Path, refuses: Callable[..., str], architecture: str) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    content = path.read_bytes()
    old = (5).to_bytes(8, "little") + b"llama"
    if architecture:
        path.write_bytes(content.replace(b"llama", b"lluma"))
        refuses(path, "model.gguf: llama.cpp does not know the architecture 'lluma'")
    else:
        assert content.count(b"general.architecture") == 1 and old in content
        path.write_bytes(content.replace(b"general.architecture", b"general.architectura"))
        refuses(path, "model.gguf is no model: it has no general.architecture")


@pytest.mark.parametrize(
    ("qtype", "name", "place", "value"),
    [
        (T.F32, "blk.0.attn_q.weight", (255, 3), np.nan),
        (T.F16, "blk.0.ffn_up_exps.weight", (2, 95, 255), -np.inf),
        (T.BF16, "token_embd.weight", (0, 0), np.nan),
        # these are only copied
        (T.F32, "output_norm.weight", (17,), np.nan),
        (T.F16, "blk.0.ffn_gate_inp.weight", (1, 0), np.inf),
        (T.BF16, "blk.0.ffn_gate_inp.weight", (3, 255), np.nan),
    ],
)
def test_weights_that_are_not_finite(
    tmp_path: Path, refuses: Callable[..., str], qtype: T, name: str, place: tuple[int, ...], value: float
) -> None:
    damaged = weights(SHAPES[name], 0)
    damaged[place] = value
    source = write_gguf(tmp_path / "model.gguf", qtype, replace={name: damaged})
    refuses(source, "model.gguf", f"tensor {name}", "NaN or infinite", f"at {list(place)}")


def test_blocks_that_are_not_finite(tmp_path: Path, refuses: Callable[..., str]) -> None:
    source = write_gguf(tmp_path / "model.gguf", T.Q8_0)
    tensor = next(t for t in open_model(source).tensors if t.name == "blk.0.attn_k.weight")
    with source.open("r+b") as file:
        file.seek(tensor.offset + 5 * tensor.row_bytes + 34)  # the scale of the second block of row 5
        file.write(b"\x00\x7e")
    refuses(source, "tensor blk.0.attn_k.weight", "at [5, 32]")
    refuses(source, "tensor blk.0.attn_k.weight", "at [5, 32]", options=("--tensor-type", "attn_k=q8_0"))


@pytest.mark.parametrize(
    ("name", "qtype", "value", "options", "expected"),
    [
        ("blk.1.ffn_down.weight", T.F32, 70000, (), "F16"),
        ("blk.0.attn_q.weight", T.F32, 65520, (), "BOF4_S"),
        ("blk.0.attn_q.weight", T.BF16, 1e30, ("--type", "BOF4_K"), "BOF4_K"),
        ("blk.0.attn_q.weight", T.Q8_0, 1e5, ("--encoder", "absmax", "--opq", "off"), "BOF4_S"),
        ("token_embd.weight", T.F32, 1e30, (), "Q6_K"),
    ],
)
def test_weights_too_large_for_their_type(
    name: str, qtype: T, value: float, options: tuple[str, ...], expected: str, tmp_path: Path,
    refuses: Callable[..., str],
) -> None:  # fmt: skip
    """32 neighbours that are as large, so that none is an outlier."""
    huge = weights(SHAPES[name], 0)
    huge[7, 64:96] = np.tile(np.array([value, -value]), 16)
    source = write_gguf(tmp_path / "model.gguf", qtype, replace={name: huge})
    message = refuses(
        source, "model.gguf", name, "at [7, 64]", f"too large for {expected}", "--tensor-type", options=options
    )
    remedy = message.partition("--tensor-type '")[2].partition("'")[0]
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"), "--tensor-type", remedy, *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("type_name", ["BOF4_S", "BOF4_K"])
def test_llama_quantize_refuses_weights_that_are_too_large(type_name: str, built: Path, tmp_path: Path) -> None:
    huge = weights(SHAPES["blk.0.attn_q.weight"], 0)
    huge[7, 9] = 1e5
    source = write_gguf(tmp_path / "model.gguf", replace={"blk.0.attn_q.weight": huge})
    command = [built / "llama-quantize", source, tmp_path / "out.gguf", type_name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode != 0
    assert "a weight is beyond 65504: leave the tensor in F32 or BF16" in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--type", "BOF5"), ("'BOF5'", "BOF4_S")),
        (("--type", "IQ2_XXS"), ("'IQ2_XXS'", "BOF4_S")),
        (("--token-embedding-type", "q9_0"), ("'q9_0'", "Q8_0")),
        (("--output-tensor-type", "iq1_s"), ("importance matrix",)),
        (("--tensor-type", "attn_v"), ("PATTERN=TYPE",)),
        (("--tensor-type", "attn_v=q99"), ("'q99'",)),
        (("--tensor-type", "a[=q8_0"), ("regular expression",)),
        (("--split-max-size", "5T"), ("5T", "K, M or G")),
    ],
)
def test_wrong_options(
    tmp_path: Path, refuses: Callable[..., str], options: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    refuses(write_gguf(tmp_path / "model.gguf"), *expected, options=options)


def test_outputs_that_exist(tmp_path: Path, refuses: Callable[..., str]) -> None:
    source, output = write_gguf(tmp_path / "model.gguf"), tmp_path / "out.gguf"
    output.write_text("precious")
    refuses(source, "out.gguf exists already", "--force")
    output.unlink()
    (tmp_path / "out-00002-of-00004.gguf").write_text("precious")
    options = ("--split-max-size", "150K", "--opq", "off")
    refuses(source, "out-00002-of-00004.gguf exists already", options=options)
    refuses(source, "is a folder", output=tmp_path, options=("--force",))
    refuses(source, "does not exist", output=tmp_path / "nowhere" / "out.gguf")
    (tmp_path / "link.gguf").symlink_to("nothing")
    refuses(source, "link.gguf exists already", output=tmp_path / "link.gguf")


def test_outputs_that_are_no_files(tmp_path: Path, refuses: Callable[..., str]) -> None:
    source = write_gguf(tmp_path / "model.gguf")
    for output in (Path(), Path("/"), Path("..")):
        refuses(source, "is a folder: give the name of a file", output=output, options=("--force",))
    done = bof4("convert", str(source), "", "--force")
    assert done.returncode == 1 and "is a folder: give the name of a file" in done.stderr
    (tmp_path / "device.gguf").symlink_to("/dev/null")  # not the device: a failing test must not replace that
    refuses(source, "device.gguf is a device", output=tmp_path / "device.gguf", options=("--force",))
    os.mkfifo(tmp_path / "fifo.gguf")
    refuses(source, "fifo.gguf is a FIFO", output=tmp_path / "fifo.gguf", options=("--force",))
    os.mkfifo(tmp_path / "out-00002-of-00004.gguf")
    options = ("--split-max-size", "150K", "--opq", "off", "--force")
    refuses(source, "out-00002-of-00004.gguf is a FIFO", options=options)
    assert (tmp_path / "fifo.gguf").is_fifo() and (tmp_path / "device.gguf").is_char_device()


def test_the_output_is_the_source(tmp_path: Path, refuses: Callable[..., str], folder: Path) -> None:
    source, link, hard = write_gguf(tmp_path / "model.gguf"), tmp_path / "link.gguf", tmp_path / "hard.gguf"
    link.symlink_to(source)
    hard.hardlink_to(source)
    for output in (source, link, hard, tmp_path / "." / "model.gguf"):
        refuses(source, "is a file of the source", output=output, options=("--force",))
    refuses(folder, "is a file of the source", output=folder / "config.json", options=("--force",))


def test_folders_with_something_missing(tmp_path: Path, refuses: Callable[..., str], folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].rename(tmp_path / "away")
    refuses(folder, "model is not complete", shards[1].name, "model.safetensors.index.json", "Download")
    index = (folder / "model.safetensors.index.json").rename(tmp_path / "index")
    refuses(folder, "model is not complete", shards[1].name, "Download")
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    refuses(folder, "has no weights")
    index.rename(folder / "model.safetensors.index.json")
    (folder / "config.json").unlink()
    refuses(folder, "has no config.json")


def test_folders_with_something_damaged(tmp_path: Path, refuses: Callable[..., str], folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    for keep in (len(content) - 1, 100, 4):
        shard.write_bytes(content[:keep])
        refuses(folder, shard.name, "truncated")
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refuses(folder, shard.name, "git lfs pull")
    shard.write_bytes(content)
    index = folder / "model.safetensors.index.json"
    index.write_text("{}")
    refuses(folder, "index.json is damaged", "weight_map")
    index.unlink()
    (folder / "tokenizer.model").unlink()
    refuses(folder, "has no tokenizer", "tokenizer.json")
    (folder / "config.json").write_text("{")
    refuses(folder, "config.json is damaged")


def test_what_upstream_cannot_convert(refuses: Callable[..., str], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModelForCausalLM"]}))
    refuses(folder, "cannot convert the architecture NoSuchModelForCausalLM")
    (folder / "tokenizer.model").unlink()
    vocabulary = smollm2_tokenizer(folder)
    qwen = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(config | qwen))
    refuses(folder, "does not know the tokenizer")
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))
    (folder / "tokenizer.json").write_text("{}")
    refuses(folder, "upstream's converter failed", "--verbose")


def test_weights_of_a_folder_that_are_not_finite(refuses: Callable[..., str], folder: Path) -> None:
    shard = next(p for p in sorted(folder.glob("*.safetensors")) if any("up_proj" in n for n in load_file(p)))
    tensors = load_file(shard)
    name = next(n for n in tensors if "up_proj" in n)
    tensors[name][5, 77] = torch.nan
    save_file(tensors, shard, metadata={"format": "pt"})
    block = name.split(".")[2]
    refuses(folder, shard.name, f"tensor blk.{block}.ffn_up.weight", "at [5, 77]")


def test_a_file_size_limit(tmp_path: Path) -> None:
    """The write fails in the middle, as on a full disk."""
    source, before = fetch_smollm2(), everything(tmp_path)
    done = subprocess.run(
        [PROGRAM, "convert", source, tmp_path / "out.gguf"],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "out.gguf could not be written whole: File too large" in done.stderr
    assert "make room" in done.stderr
    assert everything(tmp_path) == before


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_a_full_disk(tmp_path: Path, folder: Path, kind: str) -> None:
    source = write_gguf(tmp_path / "model.gguf") if kind == "gguf" else folder
    disk = tmp_path / "disk"
    with small_disk(disk, 1):
        (disk / "other").write_bytes(bytes(800_000))
        done = bof4("convert", str(source), str(disk / "out.gguf"))
        assert done.returncode == 1
        assert "out.gguf needs" in done.stderr
        assert "are free there. Make room" in done.stderr
        assert [p.name for p in disk.iterdir()] == ["other"]


LARGE = {f"blk.{i}.ffn_up.weight": (8192, 8192) for i in range(40)}


def large_source(tmp_path: Path, kind: str) -> Path:
    """A source whose conversion takes some seconds: 5 GB that take no room on the disk."""
    if kind == "gguf":
        return sparse_gguf(tmp_path / "large.gguf", LARGE)
    folder = tmp_path / "large"
    folder.mkdir()
    sentencepiece_tokenizer(folder)
    llama_folder(folder, 400, torch.bfloat16, num_hidden_layers=40)
    names = {f"model.layers.{i}.mlp.up_proj.weight": (8192, 8192) for i in range(40)}
    sparse_safetensors(folder / "model.safetensors", names)
    return folder


@pytest.mark.parametrize(
    ("kind", "whom", "number", "code"),
    [
        ("gguf", "group", signal.SIGINT, 130),
        ("gguf", "program", signal.SIGTERM, 143),
        ("folder", "group", signal.SIGINT, 130),
        ("folder", "program", signal.SIGINT, 130),
        ("folder", "program", signal.SIGTERM, 143),
    ],
)
def test_interrupted(tmp_path: Path, kind: str, whom: str, number: signal.Signals, code: int) -> None:
    source = large_source(tmp_path, kind)
    before = set(tmp_path.rglob("*"))
    process = subprocess.Popen(
        [PROGRAM, "convert", source, tmp_path / "out.gguf"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # a shell that runs the tests in the background has Ctrl-C ignored, and that would be inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one thread here
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 1_000_000 for p in tmp_path.glob(".out.gguf.*/*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if whom == "group":
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert "interrupted; nothing was written" in errors
    assert set(tmp_path.rglob("*")) == before
    # and nothing goes on in the background
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
