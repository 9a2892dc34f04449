"""The texts that quality is measured on, from Debian's packages: some to calibrate with, some to test on.

Two of them are English technical prose and share no author: The Debian Administrator's Handbook, to calibrate with, and
The Rust Programming Language, to test on. The others are of other kinds.
"""

from __future__ import annotations

import gzip
import hashlib
import html.parser
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from gguf_bof4.download import FetchError
from gguf_bof4.errors import UserError
from gguf_bof4.paths import atomic_path, models_folder

CALIBRATION_SHA256 = "0596d4ade4dd41c85403719c45161b12e42eacb2989e60130ced98a468624d47"
HELD_OUT_SHA256 = "06819d1abf9b9908edd3a7ea8fe55c7e903d4df7395acc1960c5820296ff2a22"
EVALUATION_SHA256 = "d5c04519daac5c47e8e77d912bbcda8eda99e1f98f877c69c4e2ad0314b86b95"
CODE_SHA256 = "ea360c9da1339d3c0666bd650326ec44ce4da3fc8511d1a389a948a7ad3b62f5"
DIALOGUE_SHA256 = "4b18a711e9eaaeeb46f17acf07e6a91fc167d631f562a0229b4d35ebb41020ac"
GERMAN_SHA256 = "21493c35e733f71e83c32b247eb5992372729e65420afef83fa4edb0e10560c9"
QUOTATIONS_SHA256 = "c802e28eb5b9b23ea1f738774f83e051a4d34427830ccc4121a2d022ec0010dd"
LICENCES_SHA256 = "c5de23251ddf3a30e715d0b3c609039fae08a76ea05e39e190b96400b66c61e2"

_SAID = re.compile(
    r'\[message\]\s*speaker=([\w ]+)\n(?:(?!\[/message\]).)*?message=\s*_\s*"([^"]+)"', re.DOTALL
)
"""Speaker and words of a message of Battle for Wesnoth."""

_SHORT_PARAGRAPH = 80  # characters; shorter ones of the Debian Reference are headings and tables of contents
_SHORT_PAGE = 1500  # characters; shorter pages of the handbook are covers and licences


class _Prose(html.parser.HTMLParser):
    """Collects the text of a page, code and navigation left out."""

    _skipped = frozenset({"script", "style", "nav", "pre", "head", "svg", "button"})
    _starting_lines = frozenset({"p", "h1", "h2", "h3", "li", "div"})
    _ending_lines = frozenset({"p", "h1", "h2", "h3"})

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag in self._skipped
        if tag in self._starting_lines:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in self._skipped
        if tag in self._ending_lines:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if self.depth == 0:
            self.pieces.append(data)


def prose(page: str) -> str:
    """The running text of an HTML page, paragraphs separated by an empty line."""
    parser = _Prose()
    parser.feed(page)
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", "".join(parser.pieces))).strip()


def _read_prose(path: Path) -> str:
    return prose(path.read_text("utf-8", errors="ignore"))


def _unpack_debian_package(package: str, work: Path) -> Path:
    """The contents of a Debian package, as a folder inside `work`.

    apt checks the package against Debian's signatures.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UserError(
            f"the reference texts come from Debian's packages, and this system has no apt-get (wanted: {package}). "
            f"Put calib.txt and test.txt, any two English texts of a megabyte, into {models_folder()} yourself."
        )
    download = ["apt-get", "download", package]
    apt = subprocess.run(download, cwd=work, capture_output=True, text=True, check=False)
    if apt.returncode != 0:
        # the system's package lists are missing or old: fetch lists of our own, which needs no root
        for folder in ("lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        private = ["-o", f"Dir::State::Lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}"]
        subprocess.run(["apt-get", "update", *private], cwd=work, capture_output=True, check=False)
        apt = subprocess.run([*download, *private], cwd=work, capture_output=True, text=True, check=False)
    archives = list(work.glob(f"{package}_*.deb"))
    if apt.returncode != 0 or not archives:
        raise FetchError(
            f"apt-get could not download {package}:\n{apt.stderr.strip()[-1500:]}\nIt needs a network once."
        )
    unpacked = work / package
    subprocess.run(["dpkg", "-x", str(archives[0]), str(unpacked)], check=True)
    return unpacked


def _cached_text(name: str, sha256: str, make: Callable[[Path], str]) -> Path:
    target = models_folder() / name
    if not target.is_file():
        with atomic_path(target) as partial, tempfile.TemporaryDirectory() as work:
            partial.write_text(make(Path(work)), encoding="utf-8")
    if hashlib.sha256(target.read_bytes()).hexdigest() != sha256:
        warnings.warn(
            f"{target} is another edition than the one that this project's figures were measured on: "
            "compare figures from it only with each other",
            stacklevel=3,
        )
    return target


def calibration_text() -> Path:
    """calib.txt, 1.0 MB: The Debian Administrator's Handbook.

    Warns where the installed Debian release ships another edition than the pinned one.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        pages = sorted(_unpack_debian_package("debian-handbook", work).glob("**/en-US/**/*.html"))
        return "\n\n".join(text for text in map(_read_prose, pages) if len(text) > _SHORT_PAGE)

    return _cached_text("calib.txt", CALIBRATION_SHA256, make)


def held_out_text() -> Path:
    """heldout.txt, 1.5 MB: The Jargon File. Nothing is tuned on it.

    Warns where the installed Debian release ships another edition than the pinned one.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        packed = next(_unpack_debian_package("jargon-text", work).glob("**/jargon.txt.gz"))
        text = gzip.decompress(packed.read_bytes()).decode("utf-8", errors="ignore")
        _, essays = re.split(r"\nChapter\s1\.", text, maxsplit=1)  # behind the table of contents
        return "\n\n".join(" ".join(paragraph.split()) for paragraph in essays.split("\n\n"))

    return _cached_text("heldout.txt", HELD_OUT_SHA256, make)


def _read_all(folder: Path, pattern: str) -> str:
    return "\n\n".join(path.read_text("utf-8", errors="ignore").strip() for path in sorted(folder.glob(pattern)))


def code_text() -> Path:
    """code.txt, 1.9 MB: Python modules of Mercurial. Nothing is calibrated on code.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        return _read_all(_unpack_debian_package("mercurial-common", work), "**/mercurial/[a-h]*.py")

    return _cached_text("code.txt", CODE_SHA256, make)


def dialogue_text() -> Path:
    """dialogue.txt, 57 kB: what the figures of a campaign of Battle for Wesnoth say to each other.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        scenarios = _read_all(_unpack_debian_package("wesnoth-1.16-did", work), "**/scenarios/*.cfg")
        said = _SAID.findall(scenarios)
        return "\n".join(f"{speaker.strip()}: {' '.join(words.split())}" for speaker, words in said)

    return _cached_text("dialogue.txt", DIALOGUE_SHA256, make)


def german_text() -> Path:
    """german.txt, 0.5 MB: the Debian Reference in German.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        pages = sorted(_unpack_debian_package("debian-reference-de", work).glob("**/ch*.de.html"))
        paragraphs = "\n\n".join(map(_read_prose, pages)).split("\n\n")
        return "\n\n".join(text for text in paragraphs if len(text) > _SHORT_PARAGRAPH)

    return _cached_text("german.txt", GERMAN_SHA256, make)


def quotations_text() -> Path:
    """quotations.txt, 2.5 MB: the quotations of fortune, to calibrate with.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        folder = _unpack_debian_package("fortunes", work) / "usr/share/games/fortunes"
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.suffix)
        return "\n".join(path.read_text("utf-8", errors="ignore") for path in files)

    return _cached_text("quotations.txt", QUOTATIONS_SHA256, make)


def licences_text() -> Path:
    """licences.txt, 0.2 MB: the licences that all Debian systems have, to calibrate with.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        return _read_all(_unpack_debian_package("base-files", work) / "usr/share/common-licenses", "*-*")

    return _cached_text("licences.txt", LICENCES_SHA256, make)


def evaluation_text() -> Path:
    """test.txt, 0.9 MB: The Rust Programming Language.

    Warns where the installed Debian release ships another edition than the pinned one.

    Raises:
        UserError: there is no apt-get, or it could not fetch the package.
    """

    def make(work: Path) -> str:
        return _read_prose(next(_unpack_debian_package("rust-doc", work).glob("**/html/book/print.html")))

    return _cached_text("test.txt", EVALUATION_SHA256, make)
