"""Folders of the cache, and files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gguf_bof4.errors import UserError

_SPECIAL = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


def cache_root() -> Path:
    """The folder of sources, builds and models: $BOF4_CACHE, or gguf-bof4 in the user's cache folder."""
    if chosen := os.environ.get("BOF4_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ["LOCALAPPDATA"]) / "gguf-bof4"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gguf-bof4"


def models_folder() -> Path:
    """The folder of models and texts in the cache."""
    return cache_root() / "models"


def refuse_special(target: Path) -> None:
    """Refuse to replace a device, a FIFO or a socket by a file; links are followed.

    Raises:
        UserError: it is one.
    """
    try:
        mode = target.stat().st_mode
    except OSError:
        return  # there is nothing, or writing will say what is wrong
    if (kind := _SPECIAL.get(stat.S_IFMT(mode))) is not None:
        raise UserError(f"the output {target} is {kind}, which a file must not replace: give the name of a file")


def _is_running(pid: int) -> bool:
    """Is there another process of this number? Not this one: it may have the number of one that was killed."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _lock(folder: Path) -> int | None:
    """A file descriptor that locks a folder until it is closed or the process ends; None where another has the lock.

    Raises:
        OSError: the file system cannot lock folders.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_abandoned(target: Path) -> None:
    """Remove hidden folders of `target` whose process was killed. Where that cannot be told, nothing is removed.

    A folder in use is locked, which other containers and names of processes do not hide; the number of its process
    counts, too, for the moment before the lock.
    """
    if sys.platform == "win32":
        return
    name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.\w+")
    with suppress(OSError):
        for folder in list(target.parent.iterdir()):
            match = name.fullmatch(folder.name)
            if match is None or not folder.is_dir() or folder.is_symlink() or _is_running(int(match[1])):
                continue
            with suppress(OSError):
                if (descriptor := _lock(folder)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(descriptor)


@contextmanager
def hidden_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write into, removed in the end, also after an exception.

    Those that killed processes have left for the same target are removed, too.

    Raises:
        OSError: it cannot be made.
    """
    _remove_abandoned(target)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.{os.getpid()}.", dir=target.parent, ignore_cleanup_errors=True
    ) as name:
        folder, descriptor = Path(name), None
        if sys.platform != "win32":
            with suppress(OSError):
                descriptor = _lock(folder)
        try:
            yield folder
        finally:
            if descriptor is not None:
                os.close(descriptor)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, for a file or a folder.

    When the block ends, what it wrote is renamed to `target` and replaces a file of that name; when it raises, what it
    wrote is removed. So whatever has its final name is complete.

    Args:
        target: its parent folder is made where it is missing.

    Raises:
        OSError: the folder cannot be written to.
        UserError: the target is a device, a FIFO or a socket.
    """
    refuse_special(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(target) as folder:
        partial = folder / target.name
        yield partial
        if not target.is_dir():  # a folder that another process has completed meanwhile is as good
            partial.replace(target)


def write_text(target: Path, text: str) -> None:
    """Write a UTF-8 text file, which replaces a file of that name once it is complete.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8")
