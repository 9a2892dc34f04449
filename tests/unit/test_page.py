"""llama-server's web page without npm: what is refused, how it is packed and placed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from command_line import bof4
from test_build import write_program

from gguf_bof4.ggml_patch import page
from gguf_bof4.ggml_patch.page import PageError, build_page, has_page, is_new_enough, made_page, page_folder, place_page

FILES = {
    "index.html": b"<!doctype html>",
    "manifest.webmanifest": b"{}",
    "sw.js": b"//",
    "build.json": b"{}",
    "workbox-1.js": b"//",
    "_app/version.json": b"{}",
    "_app/immutable/bundle.1.js": b"let a = 1",
    "_app/immutable/assets/bundle.1.css": b"p {}",
}


@pytest.mark.parametrize("version", ["v20.19.0", "v20.20.2", "v22.12.0", "v22.13.1", "v24.1.0", "v23.0.0"])
def test_releases_of_node_that_are_new_enough(version: str) -> None:
    assert is_new_enough(version)


@pytest.mark.parametrize("version", ["v18.20.4", "v20.18.3", "v21.7.3", "v22.11.0", "v9.99.0", "", "20.19.0"])
def test_releases_of_node_that_are_too_old(version: str) -> None:
    assert not is_new_enough(version)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder of the PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_without_npm_the_remedy_is_named_before_anything_is_built(path: Path) -> None:
    for missing in ("npm", "node"):
        refused = bof4("build", "--ui")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"there is no {missing} here" in refused.stderr
        assert "Install Node.js 20.19" in refused.stderr
        assert "compiling" not in refused.stderr
        write_program(path / "npm", 0)


def test_a_node_that_is_too_old_is_named(path: Path) -> None:
    write_program(path / "npm", 0)
    for said, named in (("v18.20.4", "is v18.20.4"), ("", "a program that does not run")):
        (path / "node").write_text(f"#!/bin/sh\necho '{said}'\n")
        (path / "node").chmod(0o755)
        with pytest.raises(PageError, match=rf"{path}/node is {named.removeprefix('is ')}.*Install Node\.js"):
            build_page()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def npm(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An npm that copies a folder as the built page, and sources without an archive; the folder."""
    built = write_files(tmp_path / "built", FILES)
    write_program(path / "node", 0, "v22.12.0")
    (path / "npm").write_text(f'#!/bin/sh\n[ "$1" = ci ] || /bin/cp -r {built} "$LLAMA_UI_OUT_DIR"\n')
    (path / "npm").chmod(0o755)
    monkeypatch.setattr(page, "fetch_archive", lambda: tmp_path)
    monkeypatch.setattr(page, "unpack_tree", lambda archive, target, tree: target.mkdir())
    return built


@pytest.mark.usefixtures("npm")
def test_a_page_is_built_once_and_compressed(path: Path) -> None:
    assert made_page() is None
    steps: list[str] = []
    made = build_page(lambda step, done, total: steps.append(step))
    assert steps == ["fetching llama.cpp", "web page: fetching npm packages", "web page: building (minutes)"]
    assert made == page_folder() == made_page()
    packed = {p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*.gz")}
    assert {name.removesuffix(".gz"): gzip.decompress(content) for name, content in packed.items()} == FILES
    (path / "npm").unlink()
    assert build_page() == made


@pytest.mark.parametrize("name", FILES)
def test_a_page_without_a_file_that_it_needs_is_refused(npm: Path, name: str) -> None:
    (npm / name).unlink()
    with pytest.raises(PageError, match="built a page without the file"):
        build_page()
    assert made_page() is None


@pytest.mark.parametrize("step", ["ci", "run"])
@pytest.mark.usefixtures("npm")
def test_a_failing_npm_shows_its_last_lines_and_its_log(path: Path, step: str) -> None:
    (path / "npm").write_text(
        '#!/bin/sh\nfor i in 1 2 3; do echo "line $i"; done\n'
        f'[ "$1" != {step} ] || {{ echo "no network" >&2; exit 7; }}\n'
    )
    with pytest.raises(PageError, match=rf"`npm {step}.*` failed[\s\S]*line 3\nno network\nThe whole log: .*page\.log"):
        build_page()
    assert made_page() is None
    assert [p.name for p in page_folder().parent.iterdir()] == ["page.log"]


@pytest.mark.usefixtures("npm")
def test_a_page_is_put_beside_programs_and_replaced_by_another_version(tmp_path: Path) -> None:
    made, programs = build_page(), tmp_path / "programs"
    programs.mkdir()
    assert not has_page(programs)
    place_page(made, programs)
    assert has_page(programs)
    inode = (programs / "ui/index.html.gz").stat().st_ino
    place_page(made, programs)
    assert (programs / "ui/index.html.gz").stat().st_ino == inode
    other = made.rename(made.with_name("page-other"))
    (other / "made-from").write_text(other.name)
    (other / "sw.js.gz").unlink()
    place_page(other, programs)
    assert has_page(programs)
    assert not (programs / "ui/sw.js.gz").exists()


def test_a_bundle_has_no_page() -> None:
    refused = bof4("build", "--ui", "--bundle", "bof4.tar.gz")
    assert refused.returncode == 2
    assert "--ui" in refused.stderr
