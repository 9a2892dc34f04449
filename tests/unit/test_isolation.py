"""The unit tier is what it says: tests that would need a network or the native build fail here."""

from __future__ import annotations

import socket
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import bof4

from gguf_bof4 import native
from gguf_bof4.convert.policy import Rules, decide
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.build import NotBuiltError, installed_bin, source_tree
from gguf_bof4.ggml_patch.source import cache_root, fetch_archive

TIERS = ("unit", "native", "models", "gpu")


def test_connections_are_refused() -> None:
    with socket.socket() as client, pytest.raises(BaseException, match="move it to another tier"):
        client.connect(("127.0.0.1", 9))
    with pytest.raises(BaseException, match="move it to another tier"):
        socket.create_connection(("127.0.0.1", 9))


def test_downloads_fail() -> None:
    with pytest.raises(UserError, match="could not download"):
        fetch_archive()


def test_the_native_library_is_refused() -> None:
    with pytest.raises(BaseException, match="move it to tests/native"):
        native.quantize(np.ones((1, 64), np.float32), gguf.GGMLQuantizationType.BOF4_S)
    rules = Rules(base=gguf.GGMLQuantizationType.BOF4_S)
    with pytest.raises(BaseException, match="move it to tests/native"):
        decide("llama", "blk.0.ffn_up.weight", (64, 64), gguf.GGMLQuantizationType.F32, rules, False)


def test_there_is_no_build(isolation: Path) -> None:
    assert cache_root() == isolation
    for look in (installed_bin, source_tree):
        with pytest.raises(NotBuiltError, match="run `bof4 build`"):
            look()
    assert bof4("build", "--print-bin").returncode == 1


def test_each_folder_is_a_tier_with_a_registered_marker(
    pytestconfig: pytest.Config, request: pytest.FixtureRequest
) -> None:
    tests = Path(__file__).parents[1]
    folders = {path.parent.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    assert folders == set(TIERS)
    registered = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert set(TIERS) <= registered
    assert {marker.name for marker in request.node.iter_markers()} & set(TIERS) == {"unit"}
