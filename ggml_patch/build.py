"""Fetch, patch, configure and build llama.cpp, outside the project and once per content.

The build folder is named by a hash of everything that goes into it: lock file, patches, our sources, CMake options,
compiler and processor. A second call finds the finished build and returns at once.

Builds with other CMake arguments (CUDA, for instance) have folders of their own; the commands use the one that
`bof4 build` made last, and without one the programs inside the package, where it was installed with programs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import LOCK, SOURCES
from gguf_bof4.ggml_patch.apply import is_patched, patch_files, patch_tree
from gguf_bof4.ggml_patch.backends import ALWAYS, chosen_backends
from gguf_bof4.ggml_patch.packaged import Packaged, packaged
from gguf_bof4.ggml_patch.portable import is_portable
from gguf_bof4.ggml_patch.source import fetch_archive, unpack_tree
from gguf_bof4.ggml_patch.toolchain import BuildError, find_compiler, find_tools
from gguf_bof4.paths import cache_root, write_text
from gguf_bof4.progress import Progress, no_progress

PROGRAMS = (
    "bof4", "llama-cli", "llama-completion", "llama-server", "llama-quantize", "llama-perplexity",
    "llama-bench", "llama-batched-bench", "llama-imatrix", "llama-embedding", "llama-gguf-split",
    *(program for backend in ALWAYS for program in backend.programs),
)  # fmt: skip
"""Targets of an ordinary build; `bof4` is the library that Python loads."""

TESTS = ("test-quantize-fns", "test-backend-ops", "llama-export-lora")
"""Upstream's own tests that cover the types, and a program that our tests run."""

_LINKED_TESTS = {"test-quantize-fns"}
"""Those that link the CPU backend, so that they cannot be built where it is a module."""

CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    # libraries are beside the programs, or where they were linked; a RUNPATH as CMake makes it for build folders ends
    # with an empty entry, which is the folder that the user happens to be in
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    f"-DCMAKE_INSTALL_RPATH={'@loader_path' if sys.platform == 'darwin' else '$ORIGIN'}",
    "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",
    *(option for backend in ALWAYS for option in backend.cmake_options),
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would download the web page of the server
)


class NotBuiltError(UserError):
    """The patched llama.cpp has not been built yet."""


@dataclass(frozen=True)
class Build:
    """A build folder: `tree` is the patched source, `bin` holds programs and libraries."""

    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "llama.cpp"

    @property
    def bin(self) -> Path:
        return self.folder / "build" / "bin"

    @property
    def marker(self) -> Path:
        return self.folder / "built.json"

    def targets(self) -> set[str]:
        """Targets that were built to the end."""
        with contextlib.suppress(OSError, ValueError):
            return set(json.loads(self.marker.read_text())["targets"])
        return set()


def tests_of(cmake_args: tuple[str, ...]) -> tuple[str, ...]:
    """Those of TESTS that a build with these CMake arguments can have."""
    return tuple(test for test in TESTS if not (is_portable(cmake_args) and test in _LINKED_TESTS))


def _content_files() -> list[Path]:
    return [LOCK, *patch_files(), *sorted(p for p in SOURCES.rglob("*") if p.is_file())]


def _processor() -> str:
    """What -march=native depends on: a cache shared between machines must not mix their builds."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE):
            return found.group(0)
    return platform.processor()


def build_of(cmake_args: tuple[str, ...] = ()) -> Build:
    """The folder that a build with these extra CMake arguments has, built or not."""
    digest = hashlib.sha256()
    for path in _content_files():
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    environment = [os.environ.get(name, "") for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS")]
    for backend in chosen_backends(cmake_args):
        environment.extend(backend.fingerprint())
    processor = "" if is_portable(cmake_args) else _processor()
    for part in (*CMAKE_OPTIONS, *cmake_args, *environment, platform.machine(), sys.platform, processor):
        digest.update(part.encode() + b"\0")
    return Build(cache_root() / f"build-{digest.hexdigest()[:16]}")


def _choice() -> Path:
    return cache_root() / "in-use.json"


def chosen_arguments() -> tuple[str, ...]:
    """CMake arguments of the build that was last chosen with `choose`."""
    with contextlib.suppress(OSError, ValueError):
        return tuple(json.loads(_choice().read_text())["cmake_args"])
    return ()


def choose(cmake_args: tuple[str, ...]) -> None:
    """From now on `installed_build` is the build with these arguments, where it is finished.

    The arguments are kept, not the folder: after an upgrade of this package the choice still holds.
    """
    write_text(_choice(), json.dumps({"cmake_args": cmake_args}))


def installed_build() -> Build:
    """The build that `bof4 build` made last, or the ordinary one where that has not been made from these sources.

    Raises:
        NotBuiltError: there is none, or its programs cannot start on this machine.
    """
    ordinary, chosen = build_of(), chosen_arguments()
    cannot_start = [backend for backend in chosen_backends(chosen) if not backend.can_start()]
    builds = (ordinary,) if cannot_start else (build_of(chosen), ordinary)
    for build in builds:
        if build.targets() >= set(PROGRAMS):
            return build
    if cannot_start and build_of(chosen).targets() >= set(PROGRAMS):
        backend = cannot_start[0]
        raise NotBuiltError(
            f"the build of `bof4 build {backend.build_option}` needs {backend.driver}, which this machine does not "
            "have: run `bof4 build` for a build that does not need it"
        )
    raise NotBuiltError("the patched llama.cpp is not built yet: run `bof4 build` once (some minutes)")


def installed_bin() -> Path:
    """The folder of the programs: $BOF4_BIN where it is set, else the build of `bof4 build`, else those in the package.

    Raises:
        NotBuiltError: there is none.
    """
    if chosen := os.environ.get("BOF4_BIN"):
        folder = Path(chosen).parent
        if not ((folder / "CMakeCache.txt").is_file() or Packaged(folder).exists()):
            raise NotBuiltError(f"BOF4_BIN names {chosen}, which is not the bin folder of a CMake build of llama.cpp")
        return Path(chosen)
    try:
        return installed_build().bin
    except NotBuiltError:
        if packaged().exists():
            return packaged().bin
        raise


def program_path(name: str) -> Path:
    """A built program.

    Raises:
        NotBuiltError: `bof4 build` has not been run.
        UserError: the folder that BOF4_BIN names has no such program.
    """
    path = installed_bin() / (f"{name}.exe" if sys.platform == "win32" else name)
    if not path.is_file():
        raise UserError(f"{path} is missing: build the target {name} there, or unset BOF4_BIN and run `bof4 build`")
    return path


def source_tree() -> Path:
    """The patched llama.cpp source of the build; upstream's converter and its gguf package are in it.

    With $BOF4_BIN it is the checkout which that build was configured from. Of a wheel with programs it is what the
    converter needs.

    Raises:
        NotBuiltError: there is none.
    """
    if os.environ.get("BOF4_BIN"):
        folder = installed_bin().parent
        if Packaged(folder).exists():
            return Packaged(folder).tree
        configured = folder / "CMakeCache.txt"
        home = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", configured.read_text(), re.MULTILINE)
        if home is None:
            raise NotBuiltError(f"{configured} does not say which checkout it was configured from")
        return Path(home[1])
    for tree in (build_of().tree, build_of(chosen_arguments()).tree):
        if is_patched(tree):
            return tree
    if packaged().exists():
        return packaged().tree
    raise NotBuiltError("upstream's converter is missing: run `bof4 build` once (some minutes)")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder: a second one waits, then finds it finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _environment() -> dict[str, str]:
    """Of compilers: ccache, where it is installed, takes equal files in other build folders for the same."""
    return {"CCACHE_BASEDIR": str(cache_root().resolve()), "CCACHE_NOHASHDIR": "1", **os.environ}


def _run(command: list[str], log: Path, what: str, report: Progress) -> None:
    """Run a step of a build; ninja's lines [n/m] are its progress.

    Args:
        log: its output is appended.
        what: the name of the step in messages.
        report: called with the progress.

    Raises:
        BuildError: it failed; its last lines are in the message.
    """
    last: deque[str] = deque(maxlen=25)
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=_environment()
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                last.append(line.rstrip())
                if step := re.match(r"\[(\d+)/(\d+)\]", line):
                    report(what, int(step[1]), int(step[2]))
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.wait() != 0:
        raise BuildError(f"{what} failed; its last lines:\n" + "\n".join(last) + f"\nThe whole log: {log}")


def build(
    targets: tuple[str, ...] = PROGRAMS,
    cmake_args: tuple[str, ...] = (),
    jobs: int = 0,
    report: Progress = no_progress,
) -> Build:
    """Build `targets` of the patched llama.cpp, unless they are built already.

    Args:
        targets: CMake targets.
        cmake_args: further arguments for CMake; each set of them has a folder of its own.
        jobs: parallel compilers; 0: one for each core.
        report: called with the progress.

    Raises:
        BuildError, FetchError, PatchError, ToolkitError: with the remedy in the message.
    """
    result = build_of(cmake_args)
    if result.targets() >= set(targets):
        return result
    find_compiler()
    backends = chosen_backends(cmake_args)
    toolchain = tuple(argument for backend in backends for argument in backend.toolchain())
    cmake, ninja = find_tools(report)
    with _locked(result.folder):
        if result.targets() >= set(targets):
            return result
        if not is_patched(result.tree):
            report("fetching llama.cpp", 0, 0)
            archive = fetch_archive()
            report("unpacking and patching", 0, 0)
            unpack_tree(archive, result.tree)
            patch_tree(result.tree)
        log = result.folder / "build.log"
        before = len(log.read_text(errors="replace")) if log.is_file() else 0
        objects = result.folder / "build"
        configure = [
            cmake, "-S", str(result.tree), "-B", str(objects), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            *CMAKE_OPTIONS, *cmake_args, *toolchain,
        ]  # fmt: skip
        compile_ = [ninja, "-C", str(objects), "-j", str(jobs or os.cpu_count() or 1), *targets]
        try:
            _run(configure, log, "configuring", report)
            _run(compile_, log, "compiling", report)
        except BuildError as error:
            output = log.read_text(errors="replace")[before:]
            remedies = [known for backend in backends if (known := backend.remedy(output))]
            if remedies:
                raise BuildError("\n".join((str(error), *remedies))) from error
            raise
        write_text(result.marker, json.dumps({"targets": sorted(result.targets() | set(targets))}))
    return result
