"""Programs inside the installed package: a wheel of `make wheel` has them, the source distribution has not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gguf_bof4.ggml_patch import ROOT

FOLDER = ROOT.parent / "programs"
"""Of a wheel with programs, in the package."""

CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py/gguf", "models/templates")
"""Files and folders of the patched tree that a conversion of a Hugging Face folder reads."""


@dataclass(frozen=True)
class Packaged:
    """A folder of programs that is not a CMake build: `tree` has those files of the patched source that are needed."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def tree(self) -> Path:
        return self.folder / "llama.cpp"

    @property
    def marker(self) -> Path:
        return self.folder / "programs.json"

    def exists(self) -> bool:
        """Is it there?"""
        return self.marker.is_file()


@dataclass(frozen=True)
class Contents:
    """What the programs are; `Packaged.marker` has it as JSON.

    Attributes:
        llama_cpp: the commit.
        machine: the architecture, as platform.machine() names it.
        variants: of the CPU backend.
        cmake_arguments: beside those of the portable build.
    """

    llama_cpp: str
    machine: str
    variants: tuple[str, ...]
    cmake_arguments: tuple[str, ...]

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def packaged() -> Packaged:
    """The programs of this package, whether they are there or not."""
    return Packaged(FOLDER)
