"""The study's divergence beside that of llama-perplexity, on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_bof4.divergence import distance, write_logits
from gguf_bof4.study.models import load
from gguf_bof4.study.quality import Bench, Calibrated, Case
from gguf_bof4.study.registry import parse_format


@pytest.mark.usefixtures("built")
def test_divergence_is_that_of_llama_perplexity(
    smol: Path, smol_folder: Path, smol_bof4: Path, evaluation: Path, tmp_path: Path
) -> None:
    """Of BOF4_S by absmax on a chunk of 512 tokens, of which both judge the same 255.

    llama.cpp rounds activations to int8 and the KV cache to F16, and stores distributions in 16 bits: a tenth of the
    divergence is allowed for this.
    """
    write_logits(smol, evaluation, 1, tmp_path / "logits", 1)
    native = distance(smol_bof4, tmp_path / "logits", 1, 1)
    bench = Bench(Calibrated(load(str(smol_folder)), evaluation), evaluation, 1)
    row = bench.measure(Case(parse_format("BOF4_S:encoder=absmax")), "test")
    assert row.mean_kld == pytest.approx(native.mean_kld, rel=0.1)
    assert row.same_top == pytest.approx(native.same_top, abs=3)
    assert row.ppl_ratio == pytest.approx(native.ppl_ratio, rel=0.03)
