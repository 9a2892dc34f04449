"""Folders of the cache, and files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.{os.getpid()}.", dir=target.parent) as folder:
        partial = Path(folder) / target.name
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
