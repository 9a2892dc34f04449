"""Check of free disk space before files are made."""

from __future__ import annotations

import shutil
from pathlib import Path

from gguf_bof4.errors import UserError


def check_disk(folder: Path, needed: float, what: str, remedy: str) -> None:
    """Raise UserError where fewer than `needed` bytes are free.

    Args:
        folder: where files will be; it need not exist yet.
        what: needs the space, as the beginning of a sentence.
    """
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{what} takes {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free: {remedy}")
