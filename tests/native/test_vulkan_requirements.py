"""What a Vulkan build lacks is named by CMake itself: in a bundle, and in a checkout that was patched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gguf_bof4.ggml_patch import SOURCES, vulkan
from gguf_bof4.ggml_patch.toolchain import find_tools

PROJECT = f"""\
cmake_minimum_required(VERSION 3.19)
project(nothing LANGUAGES NONE)
include("{(SOURCES / "vulkan" / "requirements.cmake").as_posix()}")
message(STATUS "everything is here")
"""


class Machine:
    """What a Vulkan build needs, as files of no content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = {
            "Vulkan_INCLUDE_DIR": self.write("include/vulkan/vulkan.hpp").parents[1],
            "Vulkan_LIBRARY": self.write("lib/libvulkan.so"),
            "Vulkan_GLSLC_EXECUTABLE": self.write("bin/glslc"),
            "SPIRV-Headers_DIR": self.write("share/SPIRV-HeadersConfig.cmake").parent,
        }
        self.write("include/vulkan/vulkan_core.h", f"#define {vulkan.NEEDED_EXTENSION} 1\n")

    def write(self, name: str, text: str = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def configure(self) -> tuple[int, str]:
        """CMake's exit code and its output, in one line; nothing of the system is found."""
        self.write("source/CMakeLists.txt", PROJECT)
        cmake, ninja = find_tools(lambda what, done, total: None)
        done = subprocess.run(
            [cmake, "-S", self.folder / "source", "-B", self.folder / "build", "-G", "Ninja",
             f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF",
             "-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF", "-DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF",
             *(f"-D{name}={path}" for name, path in self.parts.items())],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path / "no-sdk"))  # unset, CMake looks into /bin
    return Machine(tmp_path)


def test_nothing_is_said_where_everything_is_there(machine: Machine) -> None:
    code, output = machine.configure()
    assert code == 0, output
    assert "everything is here" in output


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("Vulkan_INCLUDE_DIR", "no Vulkan headers found (vulkan/vulkan.hpp)"),
        ("Vulkan_LIBRARY", "no Vulkan loader found to link with"),
        ("Vulkan_GLSLC_EXECUTABLE", "no shader compiler found (glslc)"),
        ("SPIRV-Headers_DIR", "CMake finds no SPIRV-Headers"),
    ],
)
def test_what_is_missing_is_named_with_packages(machine: Machine, part: str, message: str) -> None:
    del machine.parts[part]
    code, output = machine.configure()
    assert code == 1
    assert message in output
    assert "apt install libvulkan-dev glslc spirv-headers" in output
    assert vulkan.PACKAGES in vulkan.remedy(output)


def test_headers_that_are_too_old_are_named_with_the_remedy(machine: Machine) -> None:
    machine.write("include/vulkan/vulkan_core.h", "#define VK_HEADER_VERSION 239\n")
    code, output = machine.configure()
    assert code == 1
    assert f"the Vulkan headers in {machine.parts['Vulkan_INCLUDE_DIR']} are too old" in output
    assert "1.3.272 or newer" in output
    assert "-DVulkan_INCLUDE_DIR=FOLDER" in output
    assert "--vulkan-headers" in vulkan.remedy(output)
