"""Downloads from a model hub: a server on this machine that speaks its protocol, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command_line
import pytest
from convert_models import tensors, write_gguf
from hub_server import Content, Hub, folder_files, running_hub
from huggingface_hub import constants
from llama import THREADS

from gguf_bof4.convert import convert

BOF4 = str(Path(sys.executable).with_name("bof4"))
TIMEOUT = 240  # seconds
CHUNK = constants.DOWNLOAD_CHUNK_SIZE

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """HF_HOME of the programs."""
    return tmp_path / "cache"


@pytest.fixture
def run(hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`bof4` in this process with that hub, an empty cache and an empty current folder; starting it takes seconds."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # huggingface_hub has read the variables when it was imported
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "")
    return command_line.bof4


@pytest.fixture
def program(hub: Hub, cache: Path, tmp_path: Path) -> Run:
    """The program `bof4` in the same way, in a process of its own, with other variables where they are given."""

    def started(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **hub.environment(cache), **options.pop("environment", {})}
        return subprocess.run([BOF4, *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT,
                              cwd=tmp_path, env=environment, **options)  # fmt: skip

    return started


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of some megabytes, of random weights."""
    return write_gguf(tmp_path_factory.mktemp("small") / "m-F32.gguf")


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command that fails prints."""
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("bof4: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return lines[-1]


def partial_files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.endswith(".incomplete")]


JUNK: dict[str, Content] = {
    "pytorch_model.bin": b"x" * 5000, "onnx/model.onnx": b"x" * 5000, "original/consolidated.00.pth": b"x" * 5000,
    "tf_model.h5": b"x" * 5000, "openvino/model.bin": b"x" * 5000,
}  # fmt: skip


def test_a_real_model_is_converted_as_from_its_folder(hub: Hub, run: Run, minilm_folder: Path, tmp_path: Path) -> None:
    hub.repositories["org/all-MiniLM-L6-v2"] = {**folder_files(minilm_folder), **JUNK}
    output = tmp_path / "out.gguf"
    first = run("convert", "org/all-MiniLM-L6-v2", str(output))
    assert first.returncode == 0, first.stderr
    asked = hub.downloads()
    assert not set(asked) & {*JUNK, ".gitattributes"}
    assert {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"} <= set(asked)
    assert len(asked) == len(set(asked))
    convert(minilm_folder, tmp_path / "local.gguf")
    assert tensors(output) == tensors(tmp_path / "local.gguf")


def test_a_real_model_answers_after_a_broken_connection(hub: Hub, program: Run, smol_bof4: Path) -> None:
    hub.repositories["org/smol"] = {"m-Q8_0.gguf": b"x" * 9999, "README.md": b"smol", smol_bof4.name: smol_bof4}
    hub.broken[smol_bof4.name] = (30_000_000, 2)
    question = ("-p", "What is the capital of France?", "--temp", "0", "-n", "24", *THREADS)
    answered = program("run", "hf:org/smol:bof4_s", *question)
    assert answered.returncode == 0, answered.stderr
    assert "The capital of France is Paris" in answered.stdout
    # it writes chunks of 10 MiB: what is lost is less than one
    assert hub.ranges() == [f"bytes={2 * CHUNK}-", f"bytes={4 * CHUNK}-"]
    assert hub.downloads() == [smol_bof4.name] * 3
    verified = program("verify", f"hf:org/smol:{smol_bof4.name}")
    assert verified.returncode == 0, verified.stderr
    assert "Python and C decode the same bits" in verified.stdout
    assert hub.downloads() == [smol_bof4.name] * 3


def test_split_files_come_whole(hub: Hub, run: Run, tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "s.gguf", split_max_size=400_000)
    parts = sorted(tmp_path.glob("s-*.gguf"))
    assert len(parts) > 2
    hub.repositories["org/split"] = {f"F32/{path.name}": path for path in parts}
    shown = run("inspect", f"hf:org/split:{first.name}", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["parts"] == len(parts)
    assert sorted(hub.downloads()) == [f"F32/{path.name}" for path in parts]
    hub.repositories["org/part"] = {path.name: path for path in parts[:-1]}
    assert f"there is no {parts[-1].name}" in refused(run("inspect", f"hf:org/part:{first.name}"))
    assert refused(run("inspect", f"hf:org/split:F32/{parts[1].name}")).endswith(f"/{first.name}")


def test_a_connection_that_is_reset_is_made_again(
    hub: Hub, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_gguf(tmp_path / "s.gguf", split_max_size=400_000)
    parts = sorted(tmp_path.glob("s-*.gguf"))
    hub.repositories["org/split"] = {path.name: path for path in parts}
    hub.reset[parts[-1].name] = 1
    shown = run("inspect", f"hf:org/split:{first.name}")
    assert shown.returncode == 0, shown.stderr
    assert f"the connection to {hub.address} broke: it is made again" in caplog.messages
    asked = hub.downloads()
    assert asked.count(parts[-1].name) == 2
    assert all(asked.count(path.name) == 1 for path in parts[:-1])


def test_after_a_failure_complete_files_are_kept(hub: Hub, run: Run, cache: Path, tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "s.gguf", split_max_size=400_000)
    parts = sorted(tmp_path.glob("s-*.gguf"))
    hub.repositories["org/split"] = {path.name: path for path in parts}
    hub.broken[parts[1].name] = (0, 100)
    line = refused(run("inspect", f"hf:org/split:{first.name}"))
    assert re.match(r"bof4: org/split could not be downloaded from http://127\.0\.0\.1:\d+: ", line)
    assert line.endswith("Complete files are kept: run the same command again when there is a network")
    assert partial_files(cache) == []
    hub.broken.clear()
    hub.requests.clear()
    assert run("inspect", f"hf:org/split:{first.name}").returncode == 0
    assert hub.downloads() == [parts[1].name]


def test_a_wrong_checksum_is_refused_and_the_file_removed(hub: Hub, run: Run, small: Path, cache: Path) -> None:
    hub.repositories["org/small"] = {small.name: small}
    data = bytearray(small.read_bytes())
    data[-1] ^= 1
    hub.sent_instead[small.name] = bytes(data)
    line = refused(run("inspect", "hf:org/small"))
    wrong, right = hashlib.sha256(data).hexdigest(), hashlib.sha256(small.read_bytes()).hexdigest()
    assert f"{small.name} of org/small came damaged" in line
    assert f"its SHA-256 is {wrong}, the hub says {right}. It was removed" in line
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size == len(data)]
    hub.sent_instead.clear()
    assert run("inspect", "hf:org/small").returncode == 0


def test_small_files_have_checksums_too(hub: Hub, run: Run, minilm_folder: Path) -> None:
    hub.repositories["org/model"] = folder_files(minilm_folder)
    config = (minilm_folder / "config.json").read_bytes()
    hub.sent_instead["config.json"] = config.replace(b"384", b"385")
    line = refused(run("convert", "org/model", "out.gguf", "--dry-run"))
    assert "config.json of org/model came damaged" in line
    assert "git's SHA-1" in line


def test_a_wrong_size_is_refused(hub: Hub, run: Run, small: Path, cache: Path) -> None:
    hub.repositories["org/small"] = {small.name: small}
    hub.sizes[small.name] = small.stat().st_size + 1
    line = refused(run("inspect", "hf:org/small"))
    assert "came with another size" in line
    assert f"should be of size {small.stat().st_size + 1} but has size {small.stat().st_size}" in line
    assert partial_files(cache) == []


def test_a_damaged_file_in_the_cache_is_replaced(hub: Hub, run: Run, small: Path, cache: Path) -> None:
    hub.repositories["org/small"] = {small.name: small}
    assert run("inspect", "hf:org/small").returncode == 0
    (cached,) = [path for path in cache.rglob(small.name) if path.is_symlink()]
    os.truncate(cached, 1000)
    assert run("inspect", "hf:org/small").returncode == 0
    assert hub.downloads() == [small.name] * 2


def test_a_hub_cannot_name_files_outside_of_the_cache(hub: Hub, run: Run, small: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.gguf"
    precious.write_bytes(b"precious")
    up = "../" * 6
    hub.repositories["org/bad"] = {f"{up}precious.gguf": small, str(precious): small, "x/../../y.gguf": small}
    for file in (f"{up}precious.gguf", str(precious), "precious.gguf", "y.gguf"):
        assert "and no GGUF file of a model" in refused(run("inspect", f"hf:org/bad:{file}"))
    assert precious.read_bytes() == b"precious"


def test_room_is_checked_before_a_download(hub: Hub, run: Run, small: Path) -> None:
    hub.repositories["org/small"] = {small.name: small}
    hub.sizes[small.name] = 10**15
    line = refused(run("inspect", "hf:org/small"))
    assert re.search(r"org/small needs 1000000\.00 GB in \S+, where [\d.]+ GB are free: make room, or set HF_H", line)
    assert hub.downloads() == []


def test_a_full_disk(hub: Hub, program: Run, small: Path, cache: Path) -> None:
    """A limit on the size of files, which writes see as they see a full disk."""
    hub.repositories["org/small"] = {small.name: small}
    limit = (500_000, 500_000)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    line = refused(program("inspect", "hf:org/small", preexec_fn=limited))
    assert re.search(r"org/small could not be downloaded: File too large in \S+\. Make room, or set HF_HOME", line)
    assert partial_files(cache) == []


def test_what_the_hub_does_not_have(hub: Hub, run: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/small"] = {small.name: small}
    line = refused(run("inspect", "hf:org/none"))
    assert f"the hub {hub.address} has no repository org/none: the name is wrong, or it is private" in line
    line = refused(run("convert", "org/none", "out.gguf"))
    assert "there is no file or folder org/none, and the hub" in line
    assert "org/small has no revision v9: give a branch" in refused(run("inspect", "hf:org/small@v9"))
    assert "org/small has no Q2_K: its models are m-F32.gguf" in refused(run("inspect", "hf:org/small:Q2_K"))
    hub.missing.add(small.name)
    line = refused(run("inspect", "hf:org/small"))
    assert "lists a file of org/small that it does not give: " in line
    assert small.name in line
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "or the token has no access to it" in refused(run("inspect", "hf:org/none"))


def test_gated_repositories(hub: Hub, run: Run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/gated"] = {small.name: small}
    hub.gated["org/gated"] = ("hf_right",)
    terms = f"({hub.address}/org/gated)"
    line = refused(run("inspect", "hf:org/gated"))
    assert "org/gated is gated: give a token of an account that has accepted its terms, in HF_TOKEN" in line
    assert line.endswith(terms)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    line = refused(run("inspect", "hf:org/gated"))
    assert f"org/gated is gated: the account of your token has not accepted its terms {terms}" in line
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert run("inspect", "hf:org/gated").returncode == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "refuses access to org/small (401): the token (HF_TOKEN"), (403, "refuses access to org/small (403)"),
     (404, "has no org/small, or is no model hub (404)"), (500, "the error 500 for org/small: try again later"),
     (429, "answers that there were too many requests: wait some minutes")],
)  # fmt: skip
def test_a_hub_that_refuses(
    hub: Hub, run: Run, small: Path, monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    hub.repositories["org/small"] = {small.name: small}
    hub.status = status
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert message in refused(run("inspect", "hf:org/small"))


def test_without_a_network_the_cache_is_used(
    hub: Hub, run: Run, small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repositories["org/small"] = {small.name: small, "m-Q8_0.gguf": b"x" * 9999}
    file = "hf:org/small:F32"
    with monkeypatch.context() as here:
        here.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        line = refused(run("inspect", file))
        assert "org/small could not be downloaded from http://127.0.0.1:9: ConnectError: " in line
        assert line.endswith("run the same command again when there is a network")
    with monkeypatch.context() as here:
        here.setattr(constants, "HF_HUB_OFFLINE", True)
        line = refused(run("inspect", file))
        assert re.search(r"org/small is not in the cache \S+, and HF_HUB_OFFLINE forbids to download it", line)
    assert run("inspect", file).returncode == 0
    caplog.clear()
    with monkeypatch.context() as here:
        here.setattr(constants, "HF_HUB_OFFLINE", True)
        assert run("inspect", file).returncode == 0
        assert caplog.messages == []
        assert "has no Q8_0" in refused(run("inspect", "hf:org/small:Q8_0"))
    with monkeypatch.context() as here:
        here.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert run("inspect", file).returncode == 0
        assert caplog.messages == ["the hub http://127.0.0.1:9 cannot be reached: org/small is taken from the cache"]


def test_paths_go_first_and_missing_ones_are_no_repositories(hub: Hub, run: Run, small: Path, tmp_path: Path) -> None:
    hub.repositories["org/model"] = {small.name: small}
    for path in ("missing", "./org/model", "org/model.gguf", "org/model/x"):
        assert refused(run("convert", path, "out.gguf")) == f"bof4: {Path(path)} does not exist"
    assert "--revision v1 is for repositories" in refused(run("convert", str(small), "out.gguf", "--revision", "v1"))
    local = tmp_path / "here" / "org"
    local.mkdir()
    (local / "model").symlink_to(small)
    assert run("convert", "org/model", "out.gguf").returncode == 0
    assert run("inspect", "org/model").returncode == 0
    assert hub.requests == []


def test_revisions(hub: Hub, run: Run, small: Path) -> None:
    hub.repositories["org/model"] = {small.name: small}
    hub.revisions += ("v1",)
    assert run("convert", "hf:org/model:F32", "out.gguf", "--revision", "v1").returncode == 0
    assert any("/revision/v1" in path for _, path, _ in hub.requests)
    line = refused(run("convert", "hf:org/model@v1:F32", "other.gguf", "--revision", "v1"))
    assert "names a revision already" in line


def test_an_output_that_exists_is_refused_before_the_download(hub: Hub, run: Run, small: Path, tmp_path: Path) -> None:
    hub.repositories["org/model"] = {small.name: small}
    (tmp_path / "here" / "out.gguf").touch()
    assert "out.gguf exists already" in refused(run("convert", "hf:org/model:F32", "out.gguf"))
    assert "folder none does not exist" in refused(run("convert", "hf:org/model:F32", "none/out.gguf"))
    assert hub.requests == []


def test_ctrl_c_ends_a_download_and_leaves_no_partial_file(hub: Hub, cache: Path, tmp_path: Path) -> None:
    hub.repositories["org/model"] = {"m-F32.gguf": b"x" * 40_000_000}
    hub.slow.add("m-F32.gguf")  # ten seconds and more
    output = tmp_path / "out.gguf"
    process = subprocess.Popen(
        [BOF4, "convert", "hf:org/model:F32", str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **hub.environment(cache)},
        # a job in the background ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one thread of this program
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT
    while not hub.downloads():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, errors
    assert "bof4: interrupted; nothing was written" in errors
    assert partial_files(cache) == []
    assert not output.exists()
