"""Fetch, patch, configure and build llama.cpp, outside the project and once per content.

The build folder is named by a hash of everything that goes into it: lock file, patches, our sources,
CMake options, compiler and processor. A second call finds it whole and returns at once.

Builds with other CMake arguments (CUDA, say) have folders of their own; the one that the command line made last is
the one that it uses.
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
from gguf_bof4.ggml_patch import LOCK, PATCHES, SOURCES, cuda
from gguf_bof4.ggml_patch.apply import SOURCES_IN_TREE, patch_tree
from gguf_bof4.ggml_patch.source import fetch_archive, unpack_tree
from gguf_bof4.ggml_patch.toolchain import BuildError, find_compiler, find_tools
from gguf_bof4.paths import cache_root, write_text
from gguf_bof4.progress import Progress, no_progress

PROGRAMS = (
    "bof4", "llama-cli", "llama-completion", "llama-server", "llama-quantize", "llama-perplexity",
    "llama-bench", "llama-imatrix", "llama-embedding", "llama-gguf-split", "ggml-rpc-server",
)  # fmt: skip
"""Targets of an ordinary build; `bof4` is the library that Python loads."""

TESTS = ("test-quantize-fns", "test-backend-ops")
"""Upstream's own tests that cover the types."""

CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DGGML_RPC=ON",
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


def _content_files() -> list[Path]:
    return [LOCK, *sorted(PATCHES.glob("*.patch")), *sorted(p for p in SOURCES.rglob("*") if p.is_file())]


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
    if cuda.wanted(cmake_args):
        environment.extend(cuda.fingerprint())
    for part in (*CMAKE_OPTIONS, *cmake_args, *environment, platform.machine(), sys.platform, _processor()):
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
    """From now on `installed_build` is the build with these arguments, where it is whole.

    The arguments are kept, not the folder: after an upgrade of this package the choice still holds.
    """
    write_text(_choice(), json.dumps({"cmake_args": cmake_args}))


def installed_build() -> Build:
    """The build that `bof4 build` made last, or the ordinary one where that has not been made from these sources.

    Raises:
        NotBuiltError: there is none, or its programs cannot start on this machine.
    """
    ordinary, chosen = build_of(), chosen_arguments()
    cannot_start = cuda.wanted(chosen) and not cuda.has_driver()
    builds = (ordinary,) if cannot_start else (build_of(chosen), ordinary)
    for build in builds:
        if build.targets() >= set(PROGRAMS):
            return build
    if cannot_start and build_of(chosen).targets() >= set(PROGRAMS):
        raise NotBuiltError("the build of `bof4 build --cuda` needs NVIDIA's driver, which this machine has not: "
                            "run `bof4 build` for one that does without")  # fmt: skip
    raise NotBuiltError("the patched llama.cpp is not built yet: run `bof4 build` once (some minutes)")


def installed_bin() -> Path:
    """The folder of the built programs: $BOF4_BIN where it is set, else the build of `bof4 build`.

    Raises:
        NotBuiltError: there is none.
    """
    if chosen := os.environ.get("BOF4_BIN"):
        if not (Path(chosen).parent / "CMakeCache.txt").is_file():
            raise NotBuiltError(f"BOF4_BIN names {chosen}, which is not the bin folder of a CMake build of llama.cpp")
        return Path(chosen)
    return installed_build().bin


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

    With $BOF4_BIN it is the checkout which that build was configured from.

    Raises:
        NotBuiltError: there is none.
    """
    if os.environ.get("BOF4_BIN"):
        configured = installed_bin().parent / "CMakeCache.txt"
        home = re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", configured.read_text(), re.MULTILINE)
        if home is None:
            raise NotBuiltError(f"{configured} does not say which checkout it was configured from")
        return Path(home[1])
    for tree in (build_of().tree, build_of(chosen_arguments()).tree):
        if (tree / SOURCES_IN_TREE).is_dir():
            return tree
    raise NotBuiltError("upstream's converter is not here yet: run `bof4 build` once (some minutes)")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder: a second one waits, then finds the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], log: Path, what: str, report: Progress) -> None:
    """Run a step, its output into `log`; ninja's [n/m] lines drive the progress display."""
    last: deque[str] = deque(maxlen=25)
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
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
        jobs: parallel compilers; 0 means one a core.
        report: shown progress.

    Raises:
        BuildError, FetchError, PatchError, ToolkitError: with the remedy in the message.
    """
    result = build_of(cmake_args)
    if result.targets() >= set(targets):
        return result
    find_compiler()
    toolkit = cuda.find_toolkit() if cuda.wanted(cmake_args) else None
    cmake, ninja = find_tools(report)
    with _locked(result.folder):
        if result.targets() >= set(targets):
            return result
        if not (result.tree / SOURCES_IN_TREE).is_dir():
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
            *CMAKE_OPTIONS, *cmake_args, *(cuda.toolchain_arguments(toolkit) if toolkit else ()),
        ]  # fmt: skip
        compile_ = [ninja, "-C", str(objects), "-j", str(jobs or os.cpu_count() or 1), *targets]
        try:
            _run(configure, log, "configuring", report)
            _run(compile_, log, "compiling", report)
        except BuildError as error:
            if toolkit and (known := cuda.remedy(toolkit, log.read_text(errors="replace")[before:])):
                raise BuildError(f"{error}\n{known}") from error
            raise
        write_text(result.marker, json.dumps({"targets": sorted(result.targets() | set(targets))}))
    return result
