"""The llama.cpp snapshot: fetched with pip, checked against lock.json, unpacked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import LOCK


class FetchError(UserError):
    """The snapshot could not be fetched, or is not the one that lock.json names."""


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
    partial = LOCK.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(pin), indent=2) + "\n")
    partial.replace(LOCK)


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


def _pip_download(package: str, version: str, folder: Path) -> Path:
    """The source distribution of a package, downloaded into an empty folder.

    Raises:
        FetchError: pip failed.
    """
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         "--dest", str(folder), f"{package}=={version}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    files = list(folder.iterdir())
    if pip.returncode != 0 or len(files) != 1:
        raise FetchError(f"pip could not download {package} {version}:\n{pip.stderr.strip()[-2000:]}")
    return files[0]


def fetch_archive(pin: Snapshot | None = None) -> Path:
    """The pinned source distribution, from the cache or from the Python package index.

    Raises:
        FetchError: pip failed, or the file's hash is not the pinned one.
    """
    pin = pin or snapshot()
    archive = cache_root() / pin.file
    if archive.is_file() and sha256_of(archive) == pin.sha256:
        return archive
    cache_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix="download-") as folder:
        try:
            fetched = _pip_download(pin.package, pin.version, Path(folder))
        except FetchError as error:
            raise FetchError(f"{error}\nWithout a network: put {pin.file} into {cache_root()} by hand.") from error
        if (found := sha256_of(fetched)) != pin.sha256:
            raise FetchError(
                f"{pin.file} is not the pinned file: its SHA-256 is {found}, lock.json says {pin.sha256}. "
                "Nothing of it was used."
            )
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
            fetched = _pip_download(pin.package, version, Path(folder))
            archive = cache_root() / fetched.name
            fetched.replace(archive)
    return read_archive(pin.package, version, archive)


def unpack_tree(archive: Path, target: Path, tree: str | None = None) -> None:
    """Unpack the llama.cpp tree of a source distribution as the folder `target`.

    Args:
        tree: its folder in the archive; by default the pinned snapshot's.
    """
    prefix = f"{tree or snapshot().tree}/"
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            # a nested .git file points outside; git commands run in the tree would fail on it
            if not member.name.startswith(prefix) or member.name == prefix + ".git":
                continue
            member.name = member.name.removeprefix(prefix)
            tar.extract(member, partial, filter="data")
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
