"""The programs that a build needs: a C++ compiler, CMake and Ninja."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.source import cache_root

Progress = Callable[[str, int, int], None]
"""Called with the current step, the number of steps done and of all steps (0: unknown)."""


class BuildError(UserError):
    """A tool is missing or the build failed; the message names the remedy."""


def find_compiler() -> None:
    """Look for a C++ compiler.

    Raises:
        BuildError: there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    if not any(shutil.which(name.split()[0]) for name in names):
        raise BuildError(
            f"no C++ compiler found (looked for {', '.join(names)}). Install one: "
            "`apt install g++` on Debian and Ubuntu, `dnf install gcc-c++` on Fedora, "
            "`xcode-select --install` on macOS."
        )


def find_tools(report: Progress) -> tuple[str, str]:
    """Paths of cmake and ninja: the system's, else from the Python index into the cache.

    Raises:
        BuildError: one is missing and could not be installed.
    """
    found = shutil.which("cmake"), shutil.which("ninja")
    if found[0] and found[1]:
        return found[0], found[1]
    tools = cache_root() / "tools"
    cmake, ninja = tools / "cmake/data/bin/cmake", tools / "bin/ninja"
    if not (cmake.is_file() and ninja.is_file()):
        report("installing CMake and Ninja from the Python index", 0, 0)
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(tools), "cmake", "ninja"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if pip.returncode != 0 or not (cmake.is_file() and ninja.is_file()):
            raise BuildError(
                f"CMake or Ninja is missing and pip could not install them:\n{pip.stderr.strip()[-1500:]}\n"
                "Install them by hand, e.g. `apt install cmake ninja-build`."
            )
    return found[0] or str(cmake), found[1] or str(ninja)
