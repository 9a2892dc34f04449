"""The pinned llama.cpp snapshot: fetched with pip, checked against the lock file, unpacked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import LOCK


class FetchError(UserError):
    """The snapshot could not be fetched, or is not the one that the lock file names."""


@dataclass(frozen=True)
class Snapshot:
    """What lock.json pins: a source distribution and the llama.cpp tree inside it."""

    package: str
    version: str
    file: str
    sha256: str
    tree: str
    commit: str


def snapshot() -> Snapshot:
    """The pinned snapshot."""
    return Snapshot(**json.loads(LOCK.read_text()))


def cache_root() -> Path:
    """Where sources and builds are kept: $BOF4_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("BOF4_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ["LOCALAPPDATA"]) / "gguf-bof4"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gguf-bof4"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_archive(pin: Snapshot | None = None) -> Path:
    """The pinned source distribution, from the cache or from the Python package index.

    Raises:
        FetchError: pip failed, or the file's hash is not the pinned one.
    """
    pin = pin or snapshot()
    archive = cache_root() / pin.file
    if archive.is_file() and sha256_of(archive) == pin.sha256:
        return archive
    download = cache_root() / f"download-{os.getpid()}"
    download.mkdir(parents=True, exist_ok=True)
    try:
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
             "--dest", str(download), f"{pin.package}=={pin.version}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        fetched = download / pin.file
        if pip.returncode != 0 or not fetched.is_file():
            raise FetchError(
                f"pip could not download {pin.package} {pin.version}:\n{pip.stderr.strip()[-2000:]}\n"
                f"Without a network: put {pin.file} into {cache_root()} by hand."
            )
        if (found := sha256_of(fetched)) != pin.sha256:
            raise FetchError(
                f"{pin.file} is not the pinned file: its SHA-256 is {found}, lock.json says {pin.sha256}. "
                "Nothing of it was used."
            )
        fetched.replace(archive)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return archive


def unpack_tree(archive: Path, target: Path) -> None:
    """Unpack the llama.cpp tree of the source distribution as the folder `target`."""
    prefix = snapshot().tree + "/"
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            # a nested .git file points outside; git commands run in the tree would stumble over it
            if not member.name.startswith(prefix) or member.name == prefix + ".git":
                continue
            member.name = member.name.removeprefix(prefix)
            tar.extract(member, partial, filter="data")
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
