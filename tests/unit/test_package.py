"""What users install: the contents and the metadata of the wheel and of the source distribution."""

from __future__ import annotations

import email.parser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import gguf_bof4

ROOT = Path(__file__).parents[2]

LINKED = ("bench", "convert", "ggml_patch")
"""Folders that are installed inside gguf_bof4, where they are links."""

BASE_REQUIREMENTS = {"numpy", "gguf", "cffi", "typer", "rich", "huggingface_hub"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, made from a copy: old build folders of a checkout would go into it."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "checkout"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name in {"gguf_bof4", "tests", *LINKED}:
            shutil.copytree(path, copy / path.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file() and path.name != ".git":
            shutil.copy2(path, copy)
    subprocess.run(
        [sys.executable, "-c", "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])", str(folder)],
        cwd=copy, check=True, capture_output=True,
    )  # fmt: skip
    (file,) = folder.glob("*.tar.gz")
    return file


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel that is built from the source distribution."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(sdist.parent), str(sdist)],
        check=True, capture_output=True,
    )  # fmt: skip
    (file,) = sdist.parent.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def python_files(folder: Path) -> set[str]:
    """Python files below a folder, but not behind links."""
    files = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return {path.as_posix() for path in files if folder.name != "gguf_bof4" or path.parts[0] not in LINKED}


def installed_files() -> set[str]:
    """What the wheel must contain beside its metadata."""
    files = {f"gguf_bof4/{name}" for name in (*python_files(ROOT / "gguf_bof4"), "py.typed")}
    for linked in LINKED:
        # bench/gpu is no package: its scripts belong to a checkout
        names = {name for name in python_files(ROOT / linked) if not (linked == "bench" and name.startswith("gpu/"))}
        files |= {f"gguf_bof4/{linked}/{name}" for name in names}
    patch = ROOT / "ggml_patch"
    data = [patch / "lock.json", *patch.glob("*.cmake")]
    data += [*(patch / "patches").glob("*.patch"), *(patch / "src").rglob("*")]
    return files | {f"gguf_bof4/ggml_patch/{path.relative_to(patch).as_posix()}" for path in data if path.is_file()}


def test_the_wheel_contains_packages_patches_and_sources_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(installed_files())  # each once
    for name in ("encoders/gptq/__init__.py", "convert/__init__.py", "bench/speed/__init__.py", "ggml_patch/edit.py"):
        assert f"gguf_bof4/{name}" in names


def test_the_source_distribution_contains_the_folders_once_and_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    for name in installed_files():
        linked = name.split("/")[1] in LINKED
        assert (name.removeprefix("gguf_bof4/") if linked else name) in names
    assert not any(name.startswith(tuple(f"gguf_bof4/{linked}/" for linked in LINKED)) for name in names)
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_version_is_that_of_the_package(metadata: Message) -> None:
    assert metadata["Version"] == gguf_bof4.__version__


def test_license_author_and_link_are_named(metadata: Message) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"] == "gguf-bof4 developers"
    assert metadata.get_all("Project-URL")
    assert metadata.get_all("Classifier")


def test_requirements_are_few_and_the_others_are_extras(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist") or []
    base = {re.split(r"[^\w-]", line)[0] for line in requirements if "extra ==" not in line}
    assert base == BASE_REQUIREMENTS
    assert set(metadata.get_all("Provides-Extra") or []) == {"hf", "codebook", "search", "bench", "release", "dev"}
    extra = {line.split(";")[0].strip() for line in requirements if 'extra == "hf"' in line}
    expected = {"torch", "accelerate", "safetensors", "transformers", "sentencepiece"}
    assert {re.split(r"[^\w-]", line)[0] for line in extra} == expected
