"""Fixtures of more than one test of the native tier."""

from __future__ import annotations

from pathlib import Path

import pytest
from portable_build import portable_build

from gguf_bof4.ggml_patch.apply import patch_tree
from gguf_bof4.ggml_patch.build import Build
from gguf_bof4.ggml_patch.source import fetch_archive, unpack_tree


@pytest.fixture(scope="session")
def portable(built: object) -> Build:
    """The portable build."""
    return portable_build()


@pytest.fixture(scope="session")
def patched_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pinned llama.cpp with the patches and sources of this checkout, to read."""
    folder = tmp_path_factory.mktemp("tree") / "llama.cpp"
    unpack_tree(fetch_archive(), folder)
    patch_tree(folder)
    return folder
