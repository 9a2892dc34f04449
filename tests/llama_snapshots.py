"""Snapshots of llama.cpp that the patches are tested with: the pinned one and the one before."""

from __future__ import annotations

import functools
import tarfile
from pathlib import Path

from gguf_bof4.ggml_patch.apply import all_hunks
from gguf_bof4.ggml_patch.source import Snapshot, fetch_archive

PREVIOUS = Snapshot(
    package="llama-cpp-python",
    version="0.3.35",
    file="llama_cpp_python-0.3.35.tar.gz",
    sha256="1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12",
    tree="llama_cpp_python-0.3.35/vendor/llama.cpp",
    commit="4df29be4f4c3673f428170fda944a5b19f743bb8",
)
"""The version before the pinned one: `bof4 patch` must fit checkouts other than the pinned commit."""


def patched_paths() -> set[str]:
    """The files of llama.cpp that the patches change."""
    return {h.path for h in all_hunks()}


@functools.cache
def _clean_files(pin: Snapshot) -> dict[str, bytes]:
    """The files that the patches change, as they are in a snapshot; reading the archive takes seconds."""
    wanted = {f"{pin.tree}/{path}": path for path in patched_paths()}
    with tarfile.open(fetch_archive(pin)) as tar:
        return {
            wanted[member.name]: file.read()
            for member in tar
            if member.name in wanted and (file := tar.extractfile(member))
        }


def write_clean_files(pin: Snapshot, folder: Path) -> None:
    """Write the files of a clean snapshot that the patches change, and no others."""
    for path, content in _clean_files(pin).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
