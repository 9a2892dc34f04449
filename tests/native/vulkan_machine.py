"""Vulkan without a GPU: Mesa's lavapipe runs it on the CPU. What that needs is the system's, or Debian packages that
are fetched through the machine's own package sources and unpacked in the user's cache folder; nothing is installed.

Debian 12's parts are too old: glslc knows no integer dot products, ggml does not compile with the headers, and Mesa
22.3 ends long runs by an error of its own. Debian 13's headers and glslc and Mesa 25 of bookworm-backports serve there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from c_programs import PROGRAMS, STRICT, compile_program
from instruction_sets import native_compiler
from once import one_at_a_time

from gguf_bof4.ggml_patch import vulkan
from gguf_bof4.ggml_patch.build import Build, build
from gguf_bof4.paths import atomic_path, cache_root, write_text

COMPILE = ("glslc", "libshaderc1", "libc6", "libgcc-s1", "libstdc++6", "libvulkan-dev", "spirv-headers")
"""Packages of Debian 13. Its programs run with its own libraries, from the folder that they are unpacked in."""

RUN = ("mesa-vulkan-drivers", "vulkan-validationlayers")
"""Mesa of bookworm-backports and Debian 12's validation layers, which run with Debian 12's libraries."""

LIBRARIES = "usr/lib/x86_64-linux-gnu"

GLSLC = """\
#!/bin/sh
# For tests on lavapipe: without cooperative matrices, which it lacks, and without the shaders of upstream's quantized
# types, which would take most of the time. Tests use products of Q6_K with one column.
leave_out() {{
    while [ $# -gt 0 ]; do
        case "$1" in
        -o) out=$2 ;;
        -MF) dependencies=$2 ;;
        esac
        shift
    done
    [ -z "$dependencies" ] || echo "$out:" > "$dependencies"
    exec cp {empty} "$out"
}}
case "$*" in
*feature-tests/coopmat*)
    for name in KHR_cooperative_matrix NV_cooperative_matrix2 NV_cooperative_matrix_decode_vector; do
        echo "error: extension not supported: GL_$name" >&2
    done
    exit 1 ;;
*_dot2*) leave_out "$@" ;;
*DATA_A_BOF4*|*flash_attn*|*mul_mat_vec_q6_k*) ;;
*DATA_A_[QITMN]*|*MULMAT_QUANT*) leave_out "$@" ;;
esac
exec {command} "$@"
"""

class Missing(Exception):
    """What tests need is not here and cannot be fetched; the message is the reason to skip them."""


@dataclass(frozen=True)
class Machine:
    """Tools and drivers.

    Attributes:
        glslc: the command of the shader compiler, with all that it knows.
        headers: the folder that has vulkan/vulkan.hpp.
        spirv_headers: the folder of SPIRV-Headers' CMake configuration; None: CMake finds it.
        loader: the library to link with; None: CMake finds it.
        driver: lavapipe's description for the loader.
        libraries: folders for LD_LIBRARY_PATH.
        layers: the folder of the validation layers' description; None: there are none.
    """

    glslc: tuple[str, ...]
    headers: Path
    spirv_headers: Path | None
    loader: Path | None
    driver: Path
    libraries: tuple[Path, ...]
    layers: Path | None

    def environment(self) -> dict[str, str]:
        """Of programs that run on lavapipe. Its disk cache of compiled pipelines is kept with ours."""
        cache = cache_root() / "vulkan-pipelines"
        cache.mkdir(parents=True, exist_ok=True)
        libraries = [*map(str, self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "VK_DRIVER_FILES": str(self.driver),
            "VK_ICD_FILENAMES": str(self.driver),  # the older name of the same
            "GGML_VK_VISIBLE_DEVICES": "0",  # ggml takes a device that is a CPU only where it is named
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "MESA_SHADER_CACHE_DIR": str(cache),
        }


def _run(*command: str | Path, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise Missing(f"{' '.join(map(str, command[:2]))}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def _system() -> Machine | None:
    """The system's parts, where all are new enough."""
    drivers = [*Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json")]
    layers = Path("/usr/share/vulkan/explicit_layer.d")
    try:
        toolkit = vulkan.find_toolkit()
    except vulkan.ToolkitError:
        return None
    probe = "#version 450\n#extension GL_EXT_integer_dot_product : require\nvoid main() {}\n"
    knows = subprocess.run(
        [toolkit.glslc, "-fshader-stage=compute", "-", "-o", os.devnull], input=probe, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if not drivers or knows.returncode != 0 or not vulkan.has_loader():
        return None
    described = layers if layers.is_dir() else None
    return Machine((str(toolkit.glslc),), toolkit.headers, None, None, drivers[0], (), described)


def _apt(folder: Path) -> tuple[str, ...]:
    """apt-get with package sources of its own: this machine's mirror, with the suites that the packages are in."""
    lines = _run("apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)", "Created-By: Packages")
    sites = {site for site, name, part in map(str.split, lines.splitlines()) if (name, part) == ("bookworm", "main")}
    if not sites:
        raise Missing("apt has no package source of Debian 12")
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.is_file() else ""
    suites = ("bookworm", "bookworm-backports", "trixie")
    for part in ("lists/partial", "archives/partial"):
        (folder / part).mkdir(parents=True)
    sources = folder / "sources.list"
    sources.write_text("".join(f"deb {signed}{min(sites)} {suite} main\n" for suite in suites))
    options = (
        f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=-", f"Dir::State::lists={folder}/lists",
        f"Dir::Cache={folder}", f"Dir::Cache::archives={folder}/archives", "APT::Sandbox::User=", "Debug::NoLocking=1",
        "APT::Default-Release=bookworm",
    )  # fmt: skip
    apt = ("apt-get", *(part for option in options for part in ("-o", option)))
    _run(*apt, "update")
    return apt


def _fetch(target: Path) -> None:
    """Fetch the packages and unpack them in target/compile and target/run."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise Missing("there is no apt-get to fetch Debian packages with")
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").is_file() else ""
    if not re.search(r"^VERSION_CODENAME=bookworm$", release, re.MULTILINE):
        raise Missing("packages are fetched on Debian 12 only")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="vulkan-") as name:
        folder = Path(name)
        apt = _apt(folder)
        _run(*apt, "download", *(f"{package}/trixie" for package in COMPILE), folder=folder)
        compile_packages = sorted(folder.glob("*.deb"))
        # with what they need and this machine lacks
        names = (f"{RUN[0]}/bookworm-backports", *RUN[1:])
        _run(*apt, "install", "--yes", "--download-only", "--no-install-recommends", "--reinstall", *names)
        run_packages = sorted((folder / "archives").glob("*.deb"))
        for kind, packages in (("compile", compile_packages), ("run", run_packages)):
            (folder / "unpacked" / kind).mkdir(parents=True)
            for package in packages:
                _run("dpkg", "-x", package, folder / "unpacked" / kind)
        (folder / "unpacked").replace(target)


def _unpacked() -> Machine:
    folder = cache_root() / "vulkan-debian-1"
    if not folder.is_dir():
        _fetch(folder)
    tools, run = folder / "compile", folder / "run"
    libraries = tools / LIBRARIES
    loaders = [*(run / LIBRARIES).glob("libvulkan.so.1"), *Path("/", LIBRARIES).glob("libvulkan.so.1")]
    if not loaders:
        raise Missing("there is no Vulkan loader (libvulkan1)")
    # the description names its library by an absolute path
    (described,) = (run / "usr/share/vulkan/icd.d").glob("lvp_icd*.json")
    driver = folder / "lavapipe.json"
    text = re.sub(r'"library_path": ".*?"', f'"library_path": "{run / LIBRARIES}/libvulkan_lvp.so"',
                  described.read_text())  # fmt: skip
    write_text(driver, text)  # whole: another process may read it
    return Machine(
        (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(tools / "usr/bin/glslc")),
        tools / "usr/include", tools / "usr/share/cmake/SPIRV-Headers", loaders[0], driver, (run / LIBRARIES,),
        run / "usr/share/vulkan/explicit_layer.d",
    )  # fmt: skip


def find_machine() -> Machine:
    """The system's parts, or those of the packages.

    Raises:
        Missing: neither.
    """
    return _system() or _unpacked()


def vulkan_machine() -> Machine:
    """`find_machine`; skips the test where there is none."""
    try:
        with one_at_a_time("vulkan"):
            return find_machine()
    except Missing as error:
        pytest.skip(
            f"Vulkan is not tested: {error}. `apt install mesa-vulkan-drivers libvulkan-dev glslc spirv-headers` of "
            "Debian 13 or newer is what the tests need"
        )


def write_glslc(machine: Machine) -> Path:
    """The shader compiler as one program, for the shaders that tests run."""
    command = " ".join(machine.glslc)
    # a build keeps what the compiler wrote: another compiler has another name
    digest = hashlib.sha256(f"{GLSLC}{command}".encode()).hexdigest()
    folder = cache_root() / f"vulkan-glslc-{digest[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    glslc, empty = folder / "glslc", folder / "empty.spv"
    with one_at_a_time("vulkan"):
        if not glslc.is_file():
            subprocess.run(
                [*machine.glslc, "-fshader-stage=compute", "-", "-o", empty], input="#version 450\nvoid main() {}\n",
                text=True, check=True,
            )  # fmt: skip
            with atomic_path(glslc) as partial:
                partial.write_text(GLSLC.format(empty=empty, command=command))
                partial.chmod(0o755)
    return glslc


def toolkit_arguments(machine: Machine) -> tuple[str, ...]:
    """Of CMake, for a Vulkan build with these tools."""
    return (
        *vulkan.cmake_arguments(machine.headers, write_glslc(machine)),
        *([f"-DSPIRV-Headers_DIR={machine.spirv_headers}"] if machine.spirv_headers else []),
        *([f"-DVulkan_LIBRARY={machine.loader}"] if machine.loader else []),
    )


def build_backend(machine: Machine) -> Path:
    """The Vulkan backend as a library that the ordinary programs load by GGML_BACKEND_PATH; built where it is missing.

    Nothing else is built, and only the shaders that lavapipe can run.
    """
    arguments = ("-DGGML_BACKEND_DL=ON", "-DGGML_NATIVE=OFF", *toolkit_arguments(machine))
    made: Build = build(("ggml-vulkan",), arguments)
    return made.bin / "libggml-vulkan.so"


def integer_dot_library(machine: Machine, target: Path) -> Path:
    """A library for LD_PRELOAD that reports lavapipe's integer dot products as accelerated."""
    compile_program(
        native_compiler("gcc"), "-shared", "-fPIC", "-O1", *STRICT, "-isystem", machine.headers,
        PROGRAMS / "integer_dot_products.c", "-ldl", "-o", target,
    )  # fmt: skip
    return target
