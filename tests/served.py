"""Start `bof4 serve` as a user would, and talk to the server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama import THREADS

from gguf_bof4.ggml_patch.page import FOLDER, place_page

BOF4 = str(Path(sys.executable).with_name("bof4"))
TIMEOUT = 120  # seconds


@dataclass(frozen=True)
class Server:
    """A running `bof4 serve`.

    Attributes:
        url: the first address that it printed.
        log: standard error of both programs.
    """

    process: subprocess.Popen[str]
    url: str
    log: Path

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def get(self, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers (lower case) of an answer; underscores in the names of headers are hyphens."""
        wanted = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, headers=wanted)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                status, content, found = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, content, found = error.code, error.read(), error.headers
        return status, content.decode(errors="replace"), {name.lower(): value for name, value in found.items()}

    def json(self, path: str) -> Any:
        """The answer to a GET, which must not fail."""
        status, text, _ = self.get(path)
        assert status == 200, text
        return json.loads(text)


def wait_for(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    """Wait until something is true; fail where it does not become so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def heed_ctrl_c() -> None:
    """Undo what a shell does to programs in the background, the test runner perhaps: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(model: Path, *arguments: str, log: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `bof4 serve` with one thread; keyword arguments are environment variables."""
    with log.open("w") as errors:
        return subprocess.Popen(
            [BOF4, "serve", str(model), *THREADS, *arguments],
            stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment},
            preexec_fn=heed_ctrl_c,  # noqa: PLW1509 - the tests have no threads
        )  # fmt: skip


@contextlib.contextmanager
def serving(model: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """A server that answers; on a free port where none is given. It is stopped in the end."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        port = () if "--port" in arguments or "--host" in arguments else ("--port", "0")
        process = start(model, *port, *arguments, log=log, **environment)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, log.read_text(errors="replace")
            yield Server(process, url, log)
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                process.stdout.close()


def programs_with(built: Path, folder: Path, page: Path | None) -> Path:
    """Programs of a build, with this web page or without any: a folder for BOF4_BIN.

    llama-server is copied, as it looks for the page beside its file; the other files are links.
    """
    programs = folder / "bin"
    programs.mkdir()
    (folder / "CMakeCache.txt").symlink_to(built.parent / "CMakeCache.txt")
    for path in built.iterdir():
        if path.name == "llama-server":
            shutil.copy2(path, programs)
        elif path.name != FOLDER:
            (programs / path.name).symlink_to(path)
    if page is not None:
        place_page(page, programs)
    return programs


def children(process: int) -> list[int]:
    """Processes that a process has started; Linux only."""
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def state(process: int) -> str:
    """The letter of a process's state as /proc has it; none where there is no such process. Linux only."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_running(process: int) -> bool:
    """Does a process run? One that has ended and that nobody has waited for does not. Linux only."""
    return state(process) not in ("", "Z")
