"""Programs write all of their output before they end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llama import THREADS, succeed
from tiny_models import write_llama

pytestmark = pytest.mark.usefixtures("built")

RUNS = 64
"""Without the patch of the log, four in ten runs beside each other lost a part of their output."""


def test_every_run_of_the_same_writes_the_same(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "tiny.gguf")

    def output(_: int) -> str:
        return succeed("completion", "-m", model, "-p", "abc", "-n", "8", "-no-cnv", "--temp", "0", *THREADS)

    with ThreadPoolExecutor(8) as pool:
        outputs = set(pool.map(output, range(RUNS)))
    (only,) = outputs
    assert "abc" in only
