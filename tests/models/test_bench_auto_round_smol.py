"""AutoRound as a peer, on SmolLM2, with llama-quantize in its place: the folder that it gets, the file that is made."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gguf_bof4.bench import auto_round
from gguf_bof4.bench.measure import check_rest, fallbacks
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model


def test_a_file_of_another_program_is_taken_over(
    built: Path, smol: Path, smol_folder: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    stub = tmp_path / "auto-round"
    stub.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys\n"
        f"os.rename(sys.argv[2], {str(kept)!r})\n"
        "target = os.path.join(sys.argv[sys.argv.index('--output_dir') + 1], 'made.gguf')\n"
        f"command = [{str(built / 'llama-quantize')!r}, {str(smol)!r}, target, 'Q4_K_S', '1']\n"
        "subprocess.run(command, check=True)\n"
    )
    stub.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    target = work / "quantized.gguf"
    source = open_model(smol)
    auto_round.make_auto_round("Q4_K", "auto-round:rtn", source, evaluation, target, stub, 1)
    assert list(work.iterdir()) == [target]
    made = open_model(target)
    check_rest(made, source)
    # llama-quantize's file type Q4_K_S is the mixture that AutoRound's scheme is
    assert fallbacks(made, "Q4_K", mixed=True) == {"Q5_0": 176, "Q5_1": 4, "Q5_K": 3}
    with pytest.raises(UserError, match=r"blk\.0\.ffn_down\.weight is Q5_K instead of Q4_K"):
        fallbacks(made, "Q4_K")
    # the folder, by transformers' own processing of GGUF tensors, is the one that the tests' maker permutes itself
    found, expected = load_file(kept / "model.safetensors"), load_file(smol_folder / "model.safetensors")
    assert set(found) == set(expected)
    for name, weights in expected.items():
        np.testing.assert_array_equal(found[name], weights, err_msg=name)
    assert {"config.json", "tokenizer.json"} <= {p.name for p in kept.iterdir()}
