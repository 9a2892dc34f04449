"""Ways to compile kernels for an instruction set, and to run them: on this processor, or under qemu-user."""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from gguf_bof4.ggml_patch import SOURCES

OUR_INCLUDES = (f"-I{SOURCES}", f"-I{SOURCES / 'include'}")
"""Where this project's own headers are, the public one among them."""

AARCH64_LIBRARIES = "/usr/aarch64-linux-gnu"

COMPILERS = {"gcc": ("cc", "gcc", "clang"), "g++": ("c++", "g++", "clang++")}
"""Of this machine, by the name that a cross compiler of the language ends in."""


@dataclass(frozen=True)
class Target:
    """One way to compile the kernels.

    Attributes:
        features: what the processor must have, as /proc/cpuinfo spells it.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    features: frozenset[str] = frozenset()


def native_compiler(language: str) -> str:
    """This machine's compiler; language: a key of COMPILERS."""
    found = next(filter(None, map(shutil.which, COMPILERS[language])), None)
    assert found, "a compiler is what the build needed, too"
    return found


def toolchain(target: Target, language: str) -> tuple[str, list[str]]:
    """Compiler and the command in front of the program; skips, saying why, where there is none."""
    if platform.machine() == target.machine:
        cpuinfo = Path("/proc/cpuinfo")
        missing = target.features - set(cpuinfo.read_text().split() if cpuinfo.exists() else ())
        if missing:
            pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
        return native_compiler(language), []
    cross, emulator = f"{target.machine}-linux-gnu-{language}", f"qemu-{target.machine}"
    compiler, emulated = shutil.which(cross), shutil.which(emulator)
    if not compiler or not emulated:
        pytest.skip(
            f"{cross} or {emulator} is missing: `apt install {language}-aarch64-linux-gnu qemu-user` to run this"
        )
    return compiler, [emulated, "-L", AARCH64_LIBRARIES]
