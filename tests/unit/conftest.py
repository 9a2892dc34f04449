"""Unit tests need neither a network nor the native build: here both are refused, whatever the machine has."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest

from gguf_bof4 import native


class NeedsMoreError(BaseException):
    """A unit test reached for what only other tiers have; no `except Exception` hides it."""


@pytest.fixture(autouse=True)
def isolation(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No connections, no native library, an empty cache and no BOF4_BIN, for subprocesses too; the cache's folder."""

    def refuse_connection(_: socket.socket, address: object) -> NoReturn:
        raise NeedsMoreError(f"a unit test connects to {address}: move it to another tier")

    def refuse_library() -> NoReturn:
        raise NeedsMoreError("a unit test calls the native library: move it to tests/native")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse_connection)
    monkeypatch.setattr(native, "library", refuse_library)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BOF4_CACHE", str(cache))
    monkeypatch.delenv("BOF4_BIN", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return cache
