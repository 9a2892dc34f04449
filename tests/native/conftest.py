"""Fixtures of more than one test of the native tier."""

from __future__ import annotations

import pytest
from portable_build import portable_build

from gguf_bof4.ggml_patch.build import Build


@pytest.fixture(scope="session")
def portable(built: object) -> Build:
    """The portable build."""
    return portable_build()
