"""Downloads from the Python package index, by pip, and their checksums."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from gguf_bof4.errors import UserError


class FetchError(UserError):
    """A download failed, or the file is not the pinned one; the message names the remedy."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, sha256: str, what: str) -> None:
    """Check that a file is the pinned one.

    Args:
        what: the file, for the message.

    Raises:
        FetchError: its checksum is another one.
    """
    if (found := sha256_of(path)) != sha256:
        raise FetchError(
            f"{what} is not the pinned file: its SHA-256 is {found}, not {sha256}. Nothing of it was used."
        )


def pip_download(requirement: str, folder: Path, *, binary: bool, remedy: str) -> Path:
    """Download one package, without its dependencies.

    Args:
        requirement: with an exact version, such as "wheel==0.45.1".
        folder: an empty one.
        binary: a wheel, otherwise the source distribution.
        remedy: what helps without a network, for the message.

    Returns:
        The file in `folder`.

    Raises:
        FetchError: pip failed; the end of its output is in the message.
    """
    form = "--only-binary" if binary else "--no-binary"
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, ":all:", "--dest", str(folder),
         requirement],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    files = [path for path in folder.iterdir() if path.is_file()]
    if pip.returncode != 0 or len(files) != 1:
        if "No module named pip" in pip.stderr:
            remedy = "This Python has no pip: `python -m ensurepip` installs it."
        raise FetchError(f"pip could not download {requirement}:\n{pip.stderr.strip()[-1500:]}\n{remedy}")
    return files[0]
