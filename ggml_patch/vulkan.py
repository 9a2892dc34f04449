"""Vulkan builds: headers, shader compiler and loader, and a remedy where one of them is missing or too old."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError

PACKAGES = (
    "Install what a Vulkan build needs: `apt install libvulkan-dev glslc spirv-headers` on Debian and Ubuntu, "
    "`dnf install vulkan-devel glslc spirv-headers-devel` on Fedora, or LunarG's Vulkan SDK, with VULKAN_SDK set"
)

NEEDED_EXTENSION = "VK_EXT_layer_settings"
"""In headers since 1.3.272; ggml's Vulkan backend uses its types."""

OLD_HEADERS = (
    "ggml needs Vulkan's headers 1.3.272 or newer. Newer ones need no newer loader or driver: unpack those of a newer "
    "distribution (`dpkg -x` of Debian 13's libvulkan-dev) or of https://github.com/KhronosGroup/Vulkan-Headers, and "
    "name their folder with --vulkan-headers"
)

REMEDIES = (
    (r"no\s+Vulkan\s+(headers|loader)\s+found|no\s+shader\s+compiler\s+found|finds\s+no\s+SPIRV", f"{PACKAGES}."),
    (r"Vulkan\s+headers\s+in\s+\S+\s+are\s+too\s+old", f"{OLD_HEADERS}."),
    (r"cannot compile \w+ \(exit code", "glslc does not compile a shader: name a newer one with --glslc."),
)
"""Patterns of error messages, of src/vulkan/requirements.cmake and of ggml's program that compiles shaders, and the
remedy for each."""

LOADERS = {"win32": "vulkan-1.dll", "darwin": "libvulkan.1.dylib"}
"""Names of the loader's library; libvulkan.so.1 elsewhere."""


class ToolkitError(UserError):
    """Headers or the shader compiler are missing or too old; the message names the remedy."""


@dataclass(frozen=True)
class Toolkit:
    """What a Vulkan build uses.

    Attributes:
        glslc: the shader compiler, as an absolute path.
        glslc_version: the first line that it prints.
        headers: the folder that has vulkan/vulkan.hpp.
        headers_version: for example "1.4.309".
    """

    glslc: Path
    glslc_version: str
    headers: Path
    headers_version: str


def wanted(cmake_args: tuple[str, ...]) -> bool:
    """Do these arguments make a Vulkan build?"""
    return "-DGGML_VULKAN=ON" in cmake_args


def _sdk() -> Path | None:
    return Path(os.environ["VULKAN_SDK"]) if os.environ.get("VULKAN_SDK") else None


def _find_glslc(chosen: Path | None) -> Path:
    sdk = _sdk()
    search = os.pathsep.join([*([str(sdk / "bin")] if sdk else []), os.environ.get("PATH", "")])
    found = shutil.which(str(chosen) if chosen else "glslc", path=search)
    if found is None:
        where = f"{chosen} is no program" if chosen else "no shader compiler found (glslc)"
        raise ToolkitError(f"{where}. {PACKAGES}; or name a glslc with --glslc.")
    return Path(found).resolve() if chosen else Path(found).absolute()


def _include_folders() -> Iterator[Path]:
    if sdk := _sdk():
        yield sdk / "include"
    yield from (Path(folder) for folder in ("/usr/include", "/usr/local/include", "/opt/homebrew/include"))


def _find_headers(chosen: Path | None) -> tuple[Path, str]:
    """The folder of the headers and their version."""
    for folder in (chosen,) if chosen else tuple(_include_folders()):
        core = folder / "vulkan" / "vulkan_core.h"
        if not (core.is_file() and (folder / "vulkan" / "vulkan.hpp").is_file()):
            continue
        text = core.read_text(errors="replace")
        patch = re.search(r"#define VK_HEADER_VERSION (\d+)", text)
        complete = re.search(r"#define VK_HEADER_VERSION_COMPLETE VK_MAKE_\w*VERSION\((?:0, )?(\d+), (\d+),", text)
        version = f"{complete[1]}.{complete[2]}.{patch[1]}" if patch and complete else "of unknown version"
        if NEEDED_EXTENSION not in text:
            raise ToolkitError(f"the Vulkan headers in {folder} are {version}. {OLD_HEADERS}.")
        return folder.resolve(), version
    where = f"{chosen} has no vulkan/vulkan.hpp" if chosen else "no Vulkan headers found (vulkan/vulkan.hpp)"
    raise ToolkitError(f"{where}. {PACKAGES}; or name a folder of headers with --vulkan-headers.")


def _version_of(glslc: Path) -> str:
    try:
        shown = subprocess.run([glslc, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ToolkitError(f"{glslc} cannot be run ({error.strerror}): name another with --glslc") from error
    if shown.returncode != 0 or not shown.stdout.strip():
        raise ToolkitError(f"{glslc} does not print a version: name another with --glslc")
    return shown.stdout.splitlines()[0]


def find_toolkit(headers: Path | None = None, glslc: Path | None = None) -> Toolkit:
    """Headers and glslc: those named, else those of $VULKAN_SDK, else the system's.

    Raises:
        ToolkitError: one is missing, does not run, or is too old.
    """
    folder, version = _find_headers(headers)
    program = _find_glslc(glslc)
    return Toolkit(program, _version_of(program), folder, version)


def cmake_arguments(headers: Path | None = None, glslc: Path | None = None) -> tuple[str, ...]:
    """CMake options of a Vulkan build, with those parts that the user has named."""
    return (
        "-DGGML_VULKAN=ON",
        *([f"-DVulkan_INCLUDE_DIR={headers.resolve()}"] if headers else []),
        *([f"-DVulkan_GLSLC_EXECUTABLE={glslc.resolve()}"] if glslc else []),
    )


def fingerprint() -> tuple[str, ...]:
    """What a Vulkan build depends on beside its arguments: the SDK, and glslc, whose output is kept in the build."""
    try:
        glslc = _find_glslc(None)
        version = _version_of(glslc)
    except ToolkitError:
        return (os.environ.get("VULKAN_SDK", ""),)
    return (os.environ.get("VULKAN_SDK", ""), str(glslc), version)


def remedy(output: str) -> str:
    """The remedy for the failure that this output of CMake or a compiler shows; empty where none is known."""
    return next((text for pattern, text in REMEDIES if re.search(pattern, output)), "")


def has_loader() -> bool:
    """Can programs that use Vulkan start here? They need the loader's library, even without a GPU."""
    try:
        ctypes.CDLL(LOADERS.get(sys.platform, "libvulkan.so.1"))
    except OSError:
        return False
    return True
