"""llama-server's web page: built with npm from the sources in the pinned llama.cpp, once, and put beside programs.

The programs do not depend on it: llama-server reads the folder `ui` beside itself when it starts. The page is kept in
the cache, named by what it is built from, so every build of the programs gets the same one without npm.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import deque
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.source import fetch_archive, snapshot, unpack_tree
from gguf_bof4.paths import atomic_path, cache_root, write_text
from gguf_bof4.progress import Progress, no_progress

FOLDER = "ui"
"""The folder beside llama-server that it reads (ggml_patch/src/server/bof4-page.h); files are NAME.gz."""

_SOURCES = "tools/ui"
_MADE_FROM = "made-from"
"""A file in the page's folder that names the folder in the cache."""

_RECIPE = 1
"""Raised with every change of how the page is made from its sources."""

_NEEDED = (
    r"index\.html", r"manifest\.webmanifest", r"sw\.js", r"build\.json", r"_app/version\.json", r".*/bundle[^/]*\.js",
    r".*/bundle[^/]*\.css", r"workbox[^/]*\.js",
)  # fmt: skip
"""Files that the page does not work without, as in llama.cpp's scripts/ui-assets.cmake."""

_REMEDY = (
    "Install Node.js 20.19, 22.12 or newer with npm (https://nodejs.org; the packages of Linux distributions are often "
    "older), or build without --ui: the server's HTTP interface works without the page"
)


class PageError(UserError):
    """The page cannot be built; the message names the remedy."""


def is_new_enough(version: str) -> bool:
    """Does Vite 7 run on this release of Node.js? The text is what `node --version` prints, such as v22.12.0."""
    found = re.match(r"v(\d+)\.(\d+)", version)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    return (20, 19) <= release < (21, 0) or release >= (22, 12)


def find_npm() -> str:
    """The path of npm, with a Node.js that is new enough.

    Raises:
        PageError: one of them is missing or too old.
    """
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise PageError(f"the web page needs npm, and there is no {'node' if npm else 'npm'} here. {_REMEDY}")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    if not is_new_enough(version):
        found = version or "a program that does not run"
        raise PageError(f"the web page needs a newer Node.js: {node} is {found}. {_REMEDY}")
    return npm


def page_folder() -> Path:
    """The folder in the cache that the page has once it is built."""
    digest = hashlib.sha256(json.dumps([snapshot().sha256, _RECIPE]).encode()).hexdigest()
    return cache_root() / f"page-{digest[:16]}"


def made_page() -> Path | None:
    """The page in the cache, where it has been built."""
    folder = page_folder()
    return folder if folder.is_dir() else None


def has_page(programs: Path) -> bool:
    """Is the page beside these programs?"""
    return (programs / FOLDER / "index.html.gz").is_file()


def _run_npm(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """Run a step in the folder of the sources.

    Raises:
        PageError: it failed; its last lines are in the message.
    """
    last: deque[str] = deque(maxlen=15)
    with log.open("a", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                last.append(line.rstrip())
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.wait() != 0:
        shown = "\n".join(last)
        raise PageError(
            f"`{Path(command[0]).name} {' '.join(command[1:])}` failed; its last lines:\n{shown}\n"
            f"The whole log: {log}. npm needs its registry once; the page is then kept in {cache_root()}"
        )


def _pack(source: Path, target: Path) -> None:
    """Compress the files of a built page, each as NAME.gz: the same bytes whenever it is done.

    Raises:
        PageError: a file is missing that the page does not work without.
    """
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    for needed in _NEEDED:
        if not any(re.fullmatch(needed, name) for name in names):
            raise PageError(f"npm has built a page without the file {needed}: remove {cache_root()} and try again")
    for name in names:
        packed = target / f"{name}.gz"
        packed.parent.mkdir(parents=True, exist_ok=True)
        packed.write_bytes(gzip.compress((source / name).read_bytes(), 9, mtime=0))
    (target / _MADE_FROM).write_text(target.name)


def build_page(report: Progress = no_progress) -> Path:
    """The folder of the page in the cache, built unless it is there: minutes, and 700 MB of packages meanwhile.

    Args:
        report: called with the progress.

    Raises:
        PageError: npm is missing or failed.
        FetchError: the sources could not be fetched.
    """
    if (made := made_page()) is not None:
        return made
    target, npm = page_folder(), find_npm()
    report("fetching llama.cpp", 0, 0)
    archive = fetch_archive()
    log = cache_root() / "page.log"
    write_text(log, "")
    with atomic_path(target) as partial:
        sources, built = partial.parent / "sources", partial.parent / "built"
        unpack_tree(archive, sources, f"{snapshot().tree}/{_SOURCES}")
        report("web page: fetching npm packages", 0, 0)
        _run_npm([npm, "ci", "--include=dev", "--no-audit", "--no-fund"], sources, {}, log)
        report("web page: building (minutes)", 0, 0)
        number = {"LLAMA_UI_OUT_DIR": str(built), "LLAMA_UI_VERSION": "", "LLAMA_BUILD_NUMBER": snapshot().commit[:9]}
        _run_npm([npm, "run", "build"], sources, number, log)
        _pack(built, partial)
    return target


def place_page(page: Path, programs: Path) -> None:
    """Put a built page beside programs, in place of one that is there.

    Raises:
        OSError: the folder cannot be written to.
    """
    target, made_from = programs / FOLDER, programs / FOLDER / _MADE_FROM
    if made_from.is_file() and made_from.read_text() == page.name:
        return
    shutil.rmtree(target, ignore_errors=True)
    with atomic_path(target) as partial:
        shutil.copytree(page, partial)
