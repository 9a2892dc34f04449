"""Models of a model hub, by huggingface_hub: names, which file of a repository is meant, downloads with checksums.

Files are kept in the hub's own cache (HF_HOME, HF_HUB_CACHE), which other programs share. HF_ENDPOINT names another
hub, HF_TOKEN gives a token, HF_HUB_OFFLINE=1 takes the cache alone.
"""

from __future__ import annotations

import glob
import hashlib
import io
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gguf_bof4.errors import DISK_FULL, UserError
from gguf_bof4.gguf_files.parts import listed, parse_part_name
from gguf_bof4.progress import Progress, no_progress

PREFIX = "hf:"
FORM = "hf:ORGANIZATION/NAME[@REVISION][:FILE]"

_REPOSITORY = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repository>{_REPOSITORY}(?:/{_REPOSITORY})?)(?:@(?P<revision>[^:@]+))?(?::(?P<file>.+))?")
_BARE = re.compile(rf"{_REPOSITORY}/{_REPOSITORY}(?:@[^:@/]+)?")
_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json")
"""How names of files end: a repository that is called like one is given with the prefix."""

DEFAULT_TAGS = ("BOF4_K", "BOF4_S", "Q4_K_M", "Q8_0")
"""Types that are looked for where a name says none: this project's, then those of llama.cpp's -hf."""

_NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""Parts of the names of GGUF files that accompany a model, as in llama.cpp."""

_DRIVERS = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}
"""Packages whose exceptions say that the network failed; which ones there are depends on huggingface_hub's version."""

_ATTEMPTS = 5
"""Of a download whose connection breaks after data has arrived."""

_log = logging.getLogger("gguf_bof4")


@dataclass(frozen=True)
class HubName:
    """What a user named.

    Attributes:
        repository: ORGANIZATION/NAME.
        revision: branch, tag or commit; None: the main branch.
        file: a file of the repository, or a quantization tag.
        forced: it was given with the prefix, so it can be no path.
    """

    repository: str
    revision: str | None = None
    file: str | None = None
    forced: bool = True

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repository}{revision}"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        size: in bytes.
        sha256: of a file in large file storage.
        git_sha1: of any other, as git computes it.
    """

    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Repository:
    """A revision of a repository, as the hub lists it or as it is in the cache.

    Attributes:
        name: that it was asked for by.
        files: by path.
        folder: in the cache; it may not exist yet.
        cached_only: the hub was not asked, so nothing can be downloaded and sizes are those of the cache.
    """

    name: HubName
    files: Mapping[str, HubFile]
    folder: Path
    cached_only: bool


def parse_hub_name(text: str) -> HubName | None:
    """The repository that a text with the prefix names; None where it has none.

    Raises:
        UserError: it has the prefix, and is malformed.
    """
    if not text.startswith(PREFIX):
        return None
    match = _NAME.fullmatch(text.removeprefix(PREFIX).removeprefix("//"))
    if match is None:
        raise UserError(f"{text} is no name of a model on a hub: it has the form {FORM}")
    return HubName(match["repository"], match["revision"], match["file"])


def wanted(text: str, bare: bool = False) -> HubName | None:
    """The repository that a user means, or None where it is a path. A path that exists is one.

    Args:
        bare: ORGANIZATION/NAME without the prefix is a repository, too, unless it looks like a path: it ends as files
            do, or the folder ORGANIZATION exists.

    Raises:
        UserError: the text has the prefix, and is malformed.
    """
    if os.path.lexists(text):
        return None
    if (name := parse_hub_name(text)) is not None:
        return name
    if not bare or _BARE.fullmatch(text) is None or text.endswith(_FILES) or Path(text).parent.exists():
        return None
    repository, _, revision = text.partition("@")
    return HubName(repository, revision or None, forced=False)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _of_status(status: int, name: HubName) -> str:
    if status in {401, 403}:
        return (
            f"the hub refuses access to {name} ({status}): the token (HF_TOKEN, or that of `hf auth login`) is not "
            "valid, or has no right to read this repository"
        )
    if status == 404:
        return f"{_endpoint()} has no {name}, or is no model hub (404): check the name, and HF_ENDPOINT"
    if status == 429:
        return f"the hub {_endpoint()} answers that there were too many requests: wait some minutes, or give a token"
    return f"the hub {_endpoint()} answers with the error {status} for {name}: try again later"


def _of_repository(error: BaseException, name: HubName) -> str | None:
    """The message where the repository, or its revision or file, cannot be had; None for other errors."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        remedy = (
            "the account of your token has not accepted its terms"
            if _has_token()
            else "give a token of an account that has accepted its terms, in HF_TOKEN or by `hf auth login`"
        )
        return f"{name} is gated: {remedy} ({_endpoint()}/{name.repository})"
    if isinstance(error, errors.RepositoryNotFoundError):
        path = "" if name.forced else f"there is no file or folder {name}, and "
        token = "the token has no access to it" if _has_token() else "it is private and needs a token (HF_TOKEN)"
        return f"{path}the hub {_endpoint()} has no repository {name.repository}: the name is wrong, or {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repository} has no revision {name.revision}: give a branch, a tag or a whole commit hash"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"the hub {_endpoint()} lists a file of {name} that it does not give: {_first_line(error)}"
    return None


def _first_line(error: BaseException) -> str:
    """The last line that says something: huggingface_hub begins with the status and the number of the request."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__).rstrip(".")


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _is_network(error: BaseException) -> bool:
    """Did the connection fail, at its start or later?"""
    kinds = {kind.__module__.partition(".")[0] for cause in _causes(error) for kind in type(cause).__mro__}
    return bool(kinds & _DRIVERS) or any(isinstance(cause, ConnectionError) for cause in _causes(error))


def _of_machine(error: BaseException, name: HubName) -> str | None:
    """The message where a variable of the environment or the disk is the cause; None for other errors."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it: unset "
            "it, or give the folder of the model"
        )
    if isinstance(error, errors.FileMetadataError):
        return f"{_endpoint()} does not answer as a model hub: check HF_ENDPOINT and the proxy. {_first_line(error)}"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return (
            f"{name} could not be downloaded: {error.strerror} in {constants.HF_HUB_CACHE}. Make room, or set HF_HOME "
            "to a folder on another disk"
        )
    return None


def _of_download(error: BaseException, name: HubName) -> str | None:
    """The message where the name, the hub's answer or the connection is the cause; None for other errors."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    if isinstance(error, errors.HfHubHTTPError) and response is not None:
        return _of_status(int(response.status_code), name)
    if isinstance(error, errors.HFValidationError):
        return f"{name} is no name of a repository: {_first_line(error)}"
    if isinstance(error, ValueError) and "too large to be downloaded" in str(error):
        return f"{name} has a file that is too large for a download by HTTP: pip install hf_xet"
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        what = str(error).splitlines()[0].removeprefix("Consistency check failed: ").rstrip(".")
        return (
            f"a file of {name} came with another size than the hub {_endpoint()} says: {what}. Nothing of it was kept; "
            "run the same command again"
        )
    return None


def explained(error: Exception, name: HubName) -> UserError | None:
    """What a user can do about an exception of huggingface_hub; None where it is none that a user can cause."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, UserError):
        return error
    for explain in (_of_repository, _of_machine, _of_download):
        for cause in _causes(error):
            if (message := explain(cause, name)) is not None:
                return UserError(message)
    if _is_network(error) or isinstance(error, LocalEntryNotFoundError):
        cause = list(_causes(error))[-1]
        return UserError(
            f"{name} could not be downloaded from {_endpoint()}: {type(cause).__name__}: {_first_line(cause)}. "
            "Complete files are kept: run the same command again when there is a network"
        )
    return None


@contextmanager
def _explaining(name: HubName) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (known := explained(error, name)) is None:
            raise
        raise known from error


def _storage(name: HubName) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repository, repo_type="model")


def _cached(name: HubName, cause: Exception) -> Repository:
    """What is in the cache of a revision.

    Raises:
        Exception: `cause`, where there is nothing.
    """
    storage, revision = _storage(name), name.revision or "main"
    reference = storage / "refs" / revision
    folder = storage / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)
    files = {
        path.relative_to(folder).as_posix(): HubFile(path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }
    if not files:
        raise cause
    return Repository(name, files, folder, cached_only=True)


def _hub_file(sibling: Any) -> HubFile:
    """A file from the hub's answer; huggingface_hub has `lfs` as an object or as a dict, by its version."""
    lfs = sibling.lfs
    sha256 = None if lfs is None else lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
    return HubFile(int(sibling.size or 0), sha256, None if sha256 else sibling.blob_id)


def _is_inside(path: str) -> bool:
    """Does a path that a hub lists stay in the folder of its repository?"""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and "\\" not in path and ".." not in parts


def open_repository(name: HubName) -> Repository:
    """Ask the hub for the files of a repository; where it cannot be reached, what is in the cache.

    Raises:
        UserError: there is no such repository or revision, it needs a token, or the hub cannot be reached and the
            cache has nothing of it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    with _explaining(name):
        try:
            info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
        except HfHubHTTPError:
            raise
        except Exception as error:
            if not _is_network(error):
                raise
            found = _cached(name, error)
            if not isinstance(error, OfflineModeIsEnabled):
                _log.warning("the hub %s cannot be reached: %s is taken from the cache", constants.ENDPOINT, name)
            return found
    files = {s.rfilename: _hub_file(s) for s in info.siblings or () if _is_inside(s.rfilename)}
    return Repository(name, files, _storage(name) / "snapshots" / str(info.sha), cached_only=False)


def _sha256(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()  # git has no large files
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file of the cache: the link, and the file that it leads to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _verify(repository: Repository, paths: Collection[str], progress: Progress) -> None:
    """Compare the checksums of downloaded files with those that the hub says; a file that differs is removed."""
    total, done = sum(repository.files[path].size for path in paths), 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress("checking the download", done, total)

    for path in paths:
        expected, local = repository.files[path], repository.folder / path
        if expected.sha256 is not None:
            kind, said, found = "SHA-256", expected.sha256, _sha256(local, advance)
        elif expected.git_sha1 is not None:
            kind, said, found = "git's SHA-1", expected.git_sha1, _git_sha1(local)
        else:
            continue
        if found != said:
            _remove(local)
            raise UserError(
                f"{path} of {repository.name} came damaged from {_endpoint()}: its {kind} is {found}, the hub says "
                f"{said}. It was removed; run the same command again, and look for a proxy if that does not help"
            )


def _check_room(repository: Repository, needed: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise UserError(
            f"{repository.name} needs {needed / 1e9:.2f} GB in {cache}, where {free / 1e9:.2f} GB are free: make room, "
            "or set HF_HOME to a folder on another disk"
        )


class _Stopped(Exception):
    """Ends the threads of a download that was interrupted."""


def _bar_class(progress: Progress, total: int, stop: threading.Event, received: list[int]) -> type[Any]:
    """A tqdm that shows nothing and reports bytes to `progress`; its update raises after `stop`.

    Args:
        received: the numbers of bytes are appended.
    """
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread that watches over the display

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self.counts = kwargs.get("unit") == "B" and not str(kwargs.get("desc")).startswith("Reconstruct")
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *_: Any, **__: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise _Stopped
            super().update(n)
            if self.counts and n:
                received.append(int(n))
                progress("downloading", min(int(self.n), total), total)

    return Bar


def _snapshot(repository: Repository, paths: Collection[str], total: int, progress: Progress) -> Path:
    """Download files by threads, which end when this one is interrupted: huggingface_hub would wait for them.

    A connection that breaks in a way that huggingface_hub does not resume from is made again while data arrives.
    """
    from huggingface_hub import snapshot_download

    name, stop = repository.name, threading.Event()
    received: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        for attempt in range(_ATTEMPTS):
            received.clear()
            download = executor.submit(
                snapshot_download,
                name.repository,
                revision=name.revision,
                allow_patterns=[glob.escape(path) for path in paths],
                tqdm_class=_bar_class(progress, total, stop, received),
            )
            try:
                return Path(download.result())
            except Exception as error:
                if not (_is_network(error) and received and attempt < _ATTEMPTS - 1):
                    raise
                _log.warning("the connection to %s broke: it is made again", _endpoint())
            except BaseException:
                stop.set()
                raise
    raise AssertionError("the last attempt has returned or raised")


def download(repository: Repository, paths: Collection[str], progress: Progress = no_progress) -> Path:
    """The folder of a revision in the cache, with these files of it, downloaded where they are missing.

    Downloaded files are compared with the checksums of the hub. A file in the cache that has another size than on the
    hub is downloaded again.

    Raises:
        UserError: the network fails, the disk is full, or what came is not what the hub has.
    """
    folder, name = repository.folder, repository.name
    if repository.cached_only:
        return folder
    missing = []
    for path in paths:
        local, size = folder / path, repository.files[path].size
        if local.is_file() and local.stat().st_size == size:
            continue
        if os.path.lexists(local):
            _remove(local)
        missing.append(path)
    total = sum(repository.files[path].size for path in missing)
    _check_room(repository, total)
    if missing:
        progress(f"downloading {name}", 0, total)
        with _explaining(name):
            found = _snapshot(repository, missing, total, progress)
        if found.resolve() != folder.resolve():
            raise UserError(f"{name} was changed on the hub meanwhile: run the same command again")
        _verify(repository, missing, progress)
    return folder


def _is_model(path: str) -> bool:
    name = path.rpartition("/")[2]
    return path.endswith(".gguf") and not any(part in name for part in _NO_MODEL)


def _is_first(path: str) -> bool:
    part = parse_part_name(path)
    return part is None or part.number == 1


def choose_gguf(name: HubName, paths: Collection[str]) -> str:
    """The GGUF file of a repository that is meant, of a split one the first part.

    Args:
        name: its `file` is the path of a file, or a quantization tag, as llama.cpp's -hf takes. Without it, the first
            of DEFAULT_TAGS that there is, else the first file.

    Raises:
        UserError: there is no such file.
    """
    models = sorted(path for path in paths if _is_model(path) and _is_first(path))
    if name.file is not None and name.file in paths:
        return name.file
    if name.file is not None and name.file.endswith(".gguf"):
        found = [path for path in sorted(paths) if path.rpartition("/")[2] == name.file]
        if len(found) == 1:
            return found[0]
    else:
        for tag in (name.file,) if name.file else DEFAULT_TAGS:
            pattern = re.compile(re.escape(tag) + "[.-]", re.IGNORECASE)
            if found := [path for path in models if pattern.search(path)]:
                return found[0]
        if name.file is None and models:
            return models[0]
    what = "GGUF file" if name.file is None else name.file
    if not models:
        raise UserError(
            f"{name} has no {what}, and no GGUF file of a model: `bof4 convert {PREFIX}{name} OUT.gguf` converts a "
            "repository of safetensors"
        )
    raise UserError(f"{name} has no {what}: its models are {listed(models)}. Give one as {PREFIX}{name}:FILE")


def gguf_file(name: HubName, progress: Progress = no_progress) -> Path:
    """The GGUF file that is meant, in the cache, downloaded where it is missing; of a split one all parts.

    Raises:
        UserError: as `open_repository`, `choose_gguf` and `download`, or a part is missing.
    """
    progress(f"asking for {name}", 0, 0)
    repository = open_repository(name)
    chosen = choose_gguf(name, repository.files.keys())
    part = parse_part_name(chosen)
    parts = [chosen] if part is None else part.all()
    if missing := [path for path in parts if path not in repository.files]:
        where = "the cache has" if repository.cached_only else "there is"
        raise UserError(f"{name}: of the split model {chosen}, {where} no {listed(missing)}")
    return download(repository, parts, progress) / chosen


def model_path(text: str, progress: Progress = no_progress) -> Path:
    """The GGUF file that a user named: a path, or hf:ORGANIZATION/NAME[@REVISION][:FILE or tag].

    Raises:
        UserError: as `gguf_file`. That a path exists is not checked.
    """
    name = wanted(text)
    return Path(text) if name is None else gguf_file(name, progress)
