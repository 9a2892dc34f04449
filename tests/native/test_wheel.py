"""A wheel with programs: what is in it, and all that it can do in an empty environment without compilers and network.

`make test` builds it with some variants of the CPU backend that this processor can run; BOF4_VARIANTS=all with all.
"""

from __future__ import annotations

import email.parser
import gzip
import re
import subprocess
import sys
import urllib.request
import venv
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest
import torch
from convert_models import llama_folder, sentencepiece_tokenizer
from once import one_at_a_time
from portable_build import ALL, built_variants, convert_listed
from tiny_models import write_llama

from gguf_bof4.ggml_patch import portable as portable_arguments
from gguf_bof4.ggml_patch.build import PROGRAMS, Build, installed_bin
from gguf_bof4.ggml_patch.page import made_page
from gguf_bof4.ggml_patch.wheel import LICENSES, make_wheel
from gguf_bof4.packaged_models import SMOLLM2, fetch_smollm2

SIZE = 60e6
"""Most bytes of the wheel with all variants."""

NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@dataclass(frozen=True)
class Environment:
    """An environment with the wheel and its requirements alone; `home` holds the cache of a user who built nothing."""

    folder: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment; its folder is all of the PATH."""
        variables = {
            "PATH": str(self.folder / "bin"), "HOME": str(self.home), "COLUMNS": "200", "PIP_NO_INDEX": "1",
            "OMP_NUM_THREADS": "1", **NO_NETWORK, **variables,
        }  # fmt: skip
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]], cwd=self.home, env=variables, stdin=subprocess.DEVNULL,
            capture_output=True, check=False, encoding="utf-8", errors="replace", timeout=300,
        )  # fmt: skip

    def succeed(self, *command: str | Path, **variables: str) -> str:
        """Standard output of a command that must not fail."""
        done = self.run(*command, **variables)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def page() -> Path | None:
    """The server's page, where test_server_page.py or a user has made it."""
    with one_at_a_time("page"):
        return made_page()


@pytest.fixture(scope="module")
def wheel(portable: Build, page: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("dist"), built_variants(), page=page)


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: list[str]) -> Message:
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return email.parser.Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("installed")
    environment = Environment(folder / "venv", folder / "home")
    environment.home.mkdir()
    venv.create(environment.folder, with_pip=True)
    # requirements come from pip's cache or the package index; everything after this runs without
    command = [environment.python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return environment


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of random weights as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("huggingface")
    sentencepiece_tokenizer(folder)
    return llama_folder(folder, 400, torch.float32, num_hidden_layers=1)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in BOF4_S with lists."""
    return convert_listed(tmp_path_factory.mktemp("listed"))


def test_it_is_for_any_python_and_an_old_linux_and_small(wheel: Path) -> None:
    machine = portable_arguments.target().machine
    assert re.fullmatch(rf"gguf_bof4-[\d.]+-py3-none-manylinux_2_\d+_{machine}(\..*)?\.whl", wheel.name)
    if ALL:
        assert wheel.stat().st_size < SIZE


def test_it_contains_programs_libraries_and_no_build(names: list[str], page: Path | None) -> None:
    below_bin = [name.removeprefix("gguf_bof4/programs/bin/") for name in names if "/programs/bin/" in name]
    programs = {name for name in below_bin if not name.startswith("ui/")}
    assert ("ui/index.html.gz" in below_bin) == (page is not None)
    assert {*PROGRAMS} - {"bof4"} | {"libbof4.so", "libllama.so", "libggml-rpc.so"} <= programs
    assert all(name in PROGRAMS or name.endswith(".so") for name in programs)
    assert len([name for name in programs if name.startswith("libggml-cpu-")]) >= max(1, len(built_variants()))
    assert not any(name.endswith((".o", ".a", ".ninja", ".pyc")) for name in names)


def test_license_texts_of_all_parts_are_in_it(wheel: Path, names: list[str], metadata: Message) -> None:
    parts = metadata.get_all("License-File") or []
    assert {"LICENSE", "gcc-runtime.txt", *(f"{known.part}.txt" for known in LICENSES)} == set(parts)
    assert "GPL-3.0-or-later WITH GCC-exception-3.1" in metadata["License-Expression"]
    with zipfile.ZipFile(wheel) as archive:
        for part in parts:
            (name,) = (name for name in names if name.endswith(f".dist-info/licenses/{part}"))
            assert re.search("copyright|public domain|licen[cs]e", archive.read(name).decode(), re.IGNORECASE), part


def test_its_programs_are_found(installed: Environment) -> None:
    folder = Path(installed.succeed("bof4", "build", "--print-bin").strip())
    assert folder.is_relative_to(installed.folder)
    assert not (installed.home / ".cache").exists()


def test_a_build_of_the_users_own_comes_first(installed: Environment) -> None:
    named = str(installed_bin())
    assert installed.succeed("bof4", "build", "--print-bin", BOF4_BIN=named).strip() == named
    cache = installed.home / "other"
    script = (
        "import json; from gguf_bof4.ggml_patch import build as b; made = b.build_of(); "
        "made.folder.mkdir(parents=True); made.marker.write_text(json.dumps({'targets': b.PROGRAMS})); print(made.bin)"
    )
    expected = installed.succeed("python", "-c", script, BOF4_CACHE=str(cache))
    assert installed.succeed("bof4", "build", "--print-bin", BOF4_CACHE=str(cache)) == expected


def test_it_runs_verifies_and_inspects_a_file_with_lists(installed: Environment, listed: Path) -> None:
    answered = installed.succeed(
        "bof4", "run", "--program", "llama-completion", listed, "-p", "abc", "-n", "8", "-no-cnv", "-t", "1"
    )
    assert "abc" in answered
    installed.succeed("bof4", "verify", listed)
    assert "BOF4_S" in installed.succeed("bof4", "inspect", listed)


def test_it_converts_and_quantizes_gguf_files(installed: Environment, tmp_path: Path) -> None:
    source = write_llama(tmp_path / "f32.gguf")
    installed.succeed("bof4", "convert", source, tmp_path / "converted.gguf", "--type", "BOF4_S")
    installed.succeed("bof4", "verify", tmp_path / "converted.gguf")
    folder = Path(installed.succeed("bof4", "build", "--print-bin").strip())
    installed.succeed(folder / "llama-quantize", source, tmp_path / "quantized.gguf", "BOF4_S")
    installed.succeed("bof4", "verify", tmp_path / "quantized.gguf")


def test_it_serves_a_file_and_says_so_on_its_page(installed: Environment, listed: Path) -> None:
    command = [installed.folder / "bin" / "bof4", "serve", listed, "--port", "0", "-t", "1"]
    variables = {"PATH": str(installed.folder / "bin"), "HOME": str(installed.home), **NO_NETWORK}
    request_page = {"Accept-Encoding": "gzip"}  # llama-server has the page compressed alone
    with subprocess.Popen(
        command, cwd=installed.home, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            with urllib.request.urlopen(urllib.request.Request(url, headers=request_page), timeout=60) as page:
                content = page.read()
        finally:
            server.terminate()
            _, log = server.communicate(timeout=60)
        assert server.returncode == 0, log[-2000:]
    text = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    assert b"<html" in text.lower()


def test_the_kernels_are_those_of_the_processor(installed: Environment) -> None:
    code = "from gguf_bof4 import native; print(native.instruction_set())"
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert installed.succeed("python", "-c", code) == here.stdout


def test_the_demo_needs_its_model_alone(installed: Environment) -> None:
    models = installed.home / "demo" / "models"
    models.mkdir(parents=True)
    (models / SMOLLM2.name).symlink_to(fetch_smollm2())
    output = installed.succeed("bof4", "demo", BOF4_CACHE=str(models.parent), OMP_NUM_THREADS="2")
    assert "Paris" in output


def test_what_needs_torch_says_how_to_get_it(installed: Environment, huggingface: Path, tmp_path: Path) -> None:
    source = write_llama(tmp_path / "f32.gguf")
    for command in (
        ("convert", huggingface, tmp_path / "out.gguf", "--type", "BOF4_S"),
        ("convert", source, tmp_path / "out.gguf", "--type", "BOF4_S", "--encoder", "gptq", "--calibration", __file__),
    ):
        refused = installed.run("bof4", *command)
        assert refused.returncode == 1
        assert "pip install 'gguf-bof4[hf]'" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.gguf").exists()


def test_with_torch_it_converts_folders_by_the_converter_inside(
    installed: Environment, huggingface: Path, tmp_path: Path
) -> None:
    """The extra's packages are those of the environment that runs the tests."""
    (packages,) = {path for path in map(Path, sys.path) if path.name == "site-packages" and (path / "torch").is_dir()}
    installed.succeed(
        "bof4", "convert", huggingface, tmp_path / "out.gguf", "--type", "BOF4_S", PYTHONPATH=str(packages)
    )
    installed.succeed("bof4", "verify", tmp_path / "out.gguf")
