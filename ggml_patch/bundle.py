"""A source bundle: what the patched llama.cpp is built from, 4 MB, to build on a machine without network."""

from __future__ import annotations

import gzip
import re
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.apply import patch_tree
from gguf_bof4.ggml_patch.backends import BACKENDS, Backend
from gguf_bof4.ggml_patch.build import CMAKE_OPTIONS, PROGRAMS, TESTS
from gguf_bof4.ggml_patch.source import fetch_archive, snapshot, unpack_tree
from gguf_bof4.paths import atomic_path, cache_root
from gguf_bof4.progress import Progress, no_progress

FOLDER = "llama.cpp-bof4"
"""The folder that the bundle unpacks to."""

EXCLUDED = re.compile(
    r"""
      (\.[^/]+ | docs | media | models | benches | ci | conversion | gguf-py | grammars | requirements | skills)/
    | examples/(batched\.swift | llama-eval | llama\.[a-z]+ | model-conversion | sycl)/
    | ggml/src/ggml-(?!BACKENDS)[a-z]+/
    | scripts/(?!ui-assets\.cmake$)
    | tests/snapshots/
    | tools/mtmd/(tests | legacy-models)/
    | tools/server/(tests | bench | themes)/
    | tools/ui/(?!(CMakeLists\.txt | sources\.cmake | ui\.[a-z]+\.in)$)
    | .*\.(md | py | sh | bat | ps1 | toml | ini | lock | nix | gguf | inp | out | pdf | png | jpe?g | mp[34] | svg)$
    | (.*/)?\.[^/]+$
    | (AUTHORS | CODEOWNERS | Makefile | requirements\.txt | .*\.json)$
    """.replace("BACKENDS", "|".join(f"{backend.name}/" for backend in BACKENDS)),
    re.VERBOSE,
)
"""Paths in the tree that no build of programs, tests and examples reads. A backend without its folder cannot be built:
CMake stops."""

_MODIFIED = 315532800  # 1980: the same bytes whenever it is written, and a date that every tool takes

_READ_ME = """\
llama.cpp, commit {commit}, with the tensor types BOF4_S and BOF4_K (https://arxiv.org/abs/2505.06653).
Only what its programs, tests and examples are built from; backends: {backends}. Needs CMake 3.18 or newer and a C++
compiler. No network.

{sections}
For the CPU alone:

    cmake -B build {options}
    cmake --build build -j "$(nproc)" --target {targets}

Then, in the folder bin of the build:

    test-backend-ops test -p bof4_                every operation with these types against the CPU's
{programs}    llama-bench -m model.gguf -ngl 99
    llama-cli   -m model.gguf -ngl 99 -p "hello"

On your own machine, with the Python package gguf-bof4: export BOF4_BIN="$PWD/build/bin" (or that of another build)
"""

_SECTION = """\
{text}
    cmake {toolchain}-B build-{name} {options} \\
        {arguments}
    cmake --build build-{name} -j "$(nproc)" --target {targets}
"""

_TARGETS = (*PROGRAMS, *TESTS)


def _section(backend: Backend) -> str:
    """How to build with a backend that is not in every build."""
    return _SECTION.format(
        text=backend.bundle_text, name=backend.name, options=" ".join(CMAKE_OPTIONS),
        toolchain=f"-C {backend.bundle_file.name} " if backend.bundle_file else "",
        arguments=" ".join(backend.bundle_arguments), targets=" ".join((*_TARGETS, *backend.programs)),
    )  # fmt: skip


def _read_me() -> str:
    """The text of BUILD.txt."""
    chosen = [backend for backend in BACKENDS if backend.chosen_by]
    return _READ_ME.format(
        commit=snapshot().commit,
        backends=", ".join(backend.title for backend in BACKENDS),
        sections="\n".join(_section(backend) for backend in chosen),
        options=" ".join(CMAKE_OPTIONS),
        targets=" ".join(_TARGETS),
        programs="".join(
            f"    {program + ' --help':<46}time of each product, beside llama.cpp's own types ({backend.title})\n"
            for backend in chosen
            for program in backend.programs
        ),
    )


def write_bundle(target: Path, force: bool, report: Progress = no_progress) -> int:
    """Write the patched tree as a .tar.gz; returns its size. The same sources give the same bytes.

    Args:
        target: written under another name and renamed when it is complete.
        force: overwrite an existing file.
        report: called with the progress.

    Raises:
        UserError: the file exists, is not called .tar.gz or .tgz, or cannot be written.
        FetchError, PatchError: as `bof4 build`.
    """
    if not target.name.endswith((".tar.gz", ".tgz")):
        raise UserError(f"{target} is written as a .tar.gz file: give it such a name")
    if target.exists() and not force:
        raise UserError(f"{target} exists: remove it, or overwrite it with --force")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is no folder")
    report("fetching llama.cpp", 0, 0)
    archive = fetch_archive()
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix="bundle-") as folder:
        tree = Path(folder) / "llama.cpp"
        report("unpacking and patching", 0, 0)
        unpack_tree(archive, tree)
        patch_tree(tree)
        report("packing", 0, 0)
        try:
            with atomic_path(target) as partial, partial.open("wb") as file:
                _pack(tree, file)
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror}") from error
    return target.stat().st_size


def bundled_files(tree: Path) -> list[str]:
    """Paths of the files that the bundle contains, in its order."""
    paths = (path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())
    return sorted(path for path in paths if not EXCLUDED.match(path))


def _members(tree: Path) -> Iterator[tuple[str, bytes]]:
    yield "BUILD.txt", _read_me().encode()
    for backend in BACKENDS:
        if backend.bundle_file:
            yield backend.bundle_file.name, backend.bundle_file.read_bytes()
    for path in bundled_files(tree):
        yield path, (tree / path).read_bytes()


def _pack(tree: Path, file: BinaryIO) -> None:
    with (
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, content in _members(tree):
            member = tarfile.TarInfo(f"{FOLDER}/{path}")
            member.size, member.mtime, member.mode = len(content), _MODIFIED, 0o644
            tar.addfile(member, BytesIO(content))
