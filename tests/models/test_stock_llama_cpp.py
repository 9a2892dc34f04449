"""Files that were converted back, in an unpatched llama.cpp: the same perplexity as in the patched one.

It needs llama-perplexity built from the pinned, unpatched tree: BOF4_STOCK_BIN names its folder.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from llama import THREADS

from gguf_bof4.convert import convert
from gguf_bof4.ggml_patch.build import installed_bin

STOCK = os.environ.get("BOF4_STOCK_BIN")

pytestmark = pytest.mark.skipif(STOCK is None, reason="BOF4_STOCK_BIN names no unpatched build of llama.cpp")


def perplexity(folder: Path, model: Path, text: Path) -> float:
    """Of two chunks of the text."""
    done = subprocess.run(
        [folder / "llama-perplexity", "-m", model, "-f", text, "-c", "256", "--chunks", "2", *THREADS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
    assert found is not None
    return float(found[1])


def test_perplexity(smol_listed: Path, evaluation: Path, tmp_path: Path) -> None:
    assert STOCK is not None
    stock, patched = Path(STOCK), installed_bin()
    before = perplexity(patched, smol_listed, evaluation)
    for name in ("F32", "F16", "BF16", "Q8_0"):
        path = convert(smol_listed, tmp_path / "{ftype}.gguf", type=name).outputs[0]
        after = perplexity(stock, path, evaluation)
        # the same numbers in the same operations
        assert after == perplexity(patched, path, evaluation)
        # activations are rounded to int8 for BOF4 types and not for floats: 0.4 % on four chunks of 512 tokens
        assert after == pytest.approx(before, rel=0.02), name
        path.unlink()
    refused = subprocess.run(
        [stock / "llama-perplexity", "-m", smol_listed, "-f", evaluation], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
