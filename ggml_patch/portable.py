"""The build that runs on every processor of an architecture: ggml's CPU backend in variants, modules of which the
programs load the one with the most instructions that the processor has.

Libraries have no version in their names, so that no links are needed, and the C++ runtime is inside: the folder of the
programs can be copied to another machine.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from gguf_bof4.errors import UserError

# libggml-base is needed for its arc4random (ggml_patch/src/backends), which the linker sees only in libstdc++
_LINKER_FLAGS = "-static-libstdc++ -Wl,-s -Wl,--no-as-needed"

_ARGUMENTS = (
    "-DGGML_NATIVE=OFF",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    # the ordinary build has it, too: the same declarations, and so ccache takes objects of the one for the other
    "-DCMAKE_CXX_FLAGS_RELEASE=-O3 -DNDEBUG -DGGML_BACKEND_SHARED",
    *(f"-DCMAKE_{kind}_LINKER_FLAGS={_LINKER_FLAGS}" for kind in ("EXE", "SHARED", "MODULE")),
)


@dataclass(frozen=True)
class Target:
    """An architecture that programs are built for.

    Attributes:
        machine: as platform.machine() and the tags of wheels name it.
        processor: as CMake names it.
        prefix: of the cross compilers' names where this machine is another one.
    """

    machine: str
    processor: str
    prefix: str

    def is_here(self) -> bool:
        """Is this machine one?"""
        return platform.machine() == self.machine

    def cross_arguments(self) -> tuple[str, ...]:
        """CMake arguments of a cross build; none on such a machine."""
        if self.is_here():
            return ()
        return (
            "-DCMAKE_SYSTEM_NAME=Linux",
            f"-DCMAKE_SYSTEM_PROCESSOR={self.processor}",
            f"-DCMAKE_C_COMPILER={self.prefix}gcc",
            f"-DCMAKE_CXX_COMPILER={self.prefix}g++",
        )


TARGETS = (Target("x86_64", "x86_64", "x86_64-linux-gnu-"), Target("aarch64", "aarch64", "aarch64-linux-gnu-"))


def target(machine: str = "") -> Target:
    """The architecture of this name; by default this machine's.

    Raises:
        UserError: there are no variants for it.
    """
    name = machine or platform.machine()
    for known in TARGETS:
        if known.machine == name:
            return known
    raise UserError(f"there is no portable build for {name}: it is for {', '.join(t.machine for t in TARGETS)}")


def cmake_arguments(variants: tuple[str, ...] = (), machine: str = "") -> tuple[str, ...]:
    """CMake arguments of the portable build.

    Args:
        variants: names of CPU variants as in ggml/src/CMakeLists.txt; none: all.
        machine: the architecture, by default this machine's.

    Raises:
        UserError: there are no variants for it.
    """
    chosen = (f"-DBOF4_CPU_VARIANTS={';'.join(variants)}",) if variants else ()
    return (*_ARGUMENTS, *chosen, *target(machine).cross_arguments())


def is_portable(cmake_args: tuple[str, ...]) -> bool:
    """Do these CMake arguments make a portable build?"""
    return set(_ARGUMENTS) <= set(cmake_args)
