"""Files for an unpatched llama.cpp, converted back or of its own types: the same perplexity as in the patched one.

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


def test_types_of_llama_cpp_by_gptq(smol: Path, evaluation: Path, tmp_path: Path) -> None:
    """Three layers are enough: Q4_K and its fallback Q5_0 with compensated errors, Q6_K and Q3_K by a pattern."""
    assert STOCK is not None
    patterns = (r"blk\.([3-9]|[12]\d)\.=f16", "attn_v=q8_0", "blk.1.ffn_down=q6_k", "blk.2.ffn_down=q3_k")
    report = convert(
        smol, tmp_path / "q4_k.gguf", type="Q4_K", tensor_types=patterns, encoder="gptq",
        calibration=str(evaluation), samples=2, sample_length=128,
    )  # fmt: skip
    assert report.not_compensated == ()
    assert {"Q3_K", "Q4_K", "Q5_0", "Q6_K", "Q8_0"} < set(report.types)
    after = perplexity(Path(STOCK), report.outputs[0], evaluation)
    assert after == perplexity(installed_bin(), report.outputs[0], evaluation)
    assert after == pytest.approx(perplexity(installed_bin(), smol, evaluation), rel=0.1)
