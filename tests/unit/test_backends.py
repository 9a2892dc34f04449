"""The records of backends agree with the C sources."""

from __future__ import annotations

import re

from gguf_bof4.ggml_patch import SOURCES, backends, cuda


def test_the_backends_that_apply_lists_are_those_of_the_c_code() -> None:
    text = (SOURCES / "lists/bof4-list.c").read_text()
    table = re.search(r"BACKENDS_WITH_LISTS\[\] = \{(.*?)\}", text, re.DOTALL)
    assert table is not None
    applying = [backend for backend in backends.BACKENDS if backend.applies_lists]
    names = {name for backend in applying for name in (backend.title, *backend.other_titles)}
    assert set(re.findall(r'"([A-Z][A-Za-z]+)"', table[1])) == names


def test_cmake_arguments_choose_backends() -> None:
    assert backends.chosen_backends(()) == ()
    assert backends.chosen_backends(cuda.cmake_arguments(("90",), flash_attention=False)) == (backends.CUDA,)
    assert {backend.name for backend in backends.ALWAYS} == {"cpu", "rpc"}


def test_names_are_unique_and_chosen_ones_say_how_to_build_them() -> None:
    assert len({backend.name for backend in backends.BACKENDS}) == len(backends.BACKENDS)
    for backend in backends.BACKENDS:
        if backend.chosen_by:
            assert backend.chosen_by(backend.bundle_arguments)
            assert backend.build_option
            assert backend.driver
            assert backend.bundle_text.endswith("\n")
