"""Programs of a portable build and of a wheel, without building: where they are looked for, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import bof4

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import build as building
from gguf_bof4.ggml_patch import packaged, wheel
from gguf_bof4.ggml_patch.build import PROGRAMS, TESTS, build_of, installed_bin, source_tree
from gguf_bof4.ggml_patch.packaged import Contents, Packaged
from gguf_bof4.ggml_patch.portable import TARGETS, cmake_arguments, target

CONTENTS = Contents(llama_cpp="0" * 40, machine="x86_64", variants=("x64",), cmake_arguments=())


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Packaged:
    """A package that was installed with programs."""
    programs = Packaged(tmp_path / "programs")
    programs.bin.mkdir(parents=True)
    programs.marker.write_text(CONTENTS.text())
    monkeypatch.setattr(packaged, "FOLDER", programs.folder)
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    return programs


def mark_built(cmake_args: tuple[str, ...] = ()) -> Path:
    """Mark a build as finished; its folder of programs."""
    made = build_of(cmake_args)
    made.folder.mkdir(parents=True)
    made.marker.write_text(json.dumps({"targets": PROGRAMS}))
    return made.bin


def test_programs_of_the_package_are_used_where_nothing_is_built(inside: Packaged) -> None:
    assert installed_bin() == inside.bin
    assert source_tree() == inside.tree
    assert bof4("build", "--print-bin").stdout.strip() == str(inside.bin)


def test_a_build_comes_before_the_package_and_bof4_bin_before_both(
    inside: Packaged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert installed_bin() == inside.bin
    made = mark_built()
    assert installed_bin() == made
    other = Packaged(tmp_path / "other")
    other.bin.mkdir(parents=True)
    other.marker.write_text(CONTENTS.text())
    monkeypatch.setenv("BOF4_BIN", str(other.bin))
    assert installed_bin() == other.bin
    assert source_tree() == other.tree


def test_programs_without_their_marker_are_incomplete(inside: Packaged) -> None:
    inside.marker.unlink()
    with pytest.raises(building.NotBuiltError):
        installed_bin()


def test_the_portable_build_is_the_same_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build_of(), build_of(cmake_arguments())
    monkeypatch.setattr(building, "_processor", lambda: "another one")
    assert build_of() != before[0]
    assert build_of(cmake_arguments()) == before[1]
    assert len({build_of(cmake_arguments()), build_of(cmake_arguments(("x64",))), build_of()}) == 3


def test_the_portable_build_is_used_once_it_was_chosen(inside: Packaged) -> None:
    made = mark_built(cmake_arguments())
    assert installed_bin() == inside.bin
    building.choose(cmake_arguments())
    assert installed_bin() == made
    assert bof4("build", "--portable", "--print-bin").stdout.strip() == str(made)


def test_a_missing_portable_build_is_named(inside: Packaged) -> None:
    refused = bof4("build", "--portable", "--print-bin")
    assert refused.returncode == 1
    assert "run `bof4 build --portable`" in refused.stderr


def test_portable_and_cuda_exclude_each_other() -> None:
    refused = bof4("build", "--portable", "--cuda")
    assert refused.returncode == 2
    assert "exclude each other" in refused.stderr


def test_tests_that_link_the_backend_are_not_built_where_it_is_a_module() -> None:
    assert building.tests_of(()) == TESTS
    assert set(TESTS) - set(building.tests_of(cmake_arguments())) == {"test-quantize-fns"}


def test_another_architecture_is_cross_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, other in (TARGETS, TARGETS[::-1]):
        monkeypatch.setattr("platform.machine", lambda name=here.machine: name)
        assert cmake_arguments() == cmake_arguments(machine=here.machine)
        assert f"-DCMAKE_SYSTEM_PROCESSOR={other.processor}" in cmake_arguments(machine=other.machine)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UserError, match="no portable build for riscv64: it is for x86_64, aarch64"):
        target("riscv64")


def test_a_license_that_has_moved_is_named(tmp_path: Path) -> None:
    with pytest.raises(wheel.WheelError, match=r"the license of llama\.cpp is not in"):
        wheel.license_texts(tmp_path)


def test_a_wheel_is_made_from_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wheel, "CHECKOUT", tmp_path)
    with pytest.raises(wheel.WheelError, match="from a checkout of the project"):
        wheel.pure_wheel(tmp_path)
