"""Real models, end to end: perplexity, embeddings, answers, and llama-quantize beside `bof4 convert`."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from convert_models import tensors, types
from llama import THREADS, greedy, llama, succeed

from gguf_bof4.convert import convert
from gguf_bof4.formats import BOF4_K, BOF4_S
from gguf_bof4.ggml_patch.build import source_tree
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.reference_models import Floats
from gguf_bof4.verify import verify

SENTENCES = Path(__file__).parents[1] / "data" / "sentences.txt"

# Mean KL divergence from the unquantized model on smol, all block matrices quantized, from a numpy prototype of
# the formats: BOF4_S by absmax, Q4_0, and BOF4_S by GPTQ, the best encoder known. The logarithm of the
# perplexity's ratio has about the same expectation, as the model predicts its text about as well as it believes.
ABSMAX_KLD, Q4_0_KLD, BEST_KLD = 0.225, 0.261, 0.080


def log_perplexity(model: Path, text: Path, chunks: int) -> float:
    """Mean negative log likelihood over the second halves of `chunks` pieces of 512 tokens."""
    result = llama("perplexity", "-m", model, "-f", text, "-c", "512", "--chunks", str(chunks), *THREADS)
    assert result.returncode == 0, result.stderr[-2000:]
    found = re.search(r"Final estimate: PPL = ([\d.]+)", result.stdout + result.stderr)
    assert found, result.stderr[-2000:]
    return math.log(float(found[1]))


def test_perplexity_of_smol_rises_as_much_as_the_prototype_says(smol: Path, smol_bof4: Path, evaluation: Path) -> None:
    chunks = 8
    loss = log_perplexity(smol_bof4, evaluation, chunks) - log_perplexity(smol, evaluation, chunks)
    # Log ratios of a token's probabilities that were normal, with divergence D, would have the variance 2 D:
    # five standard errors of their mean above, and not better than any encoder can be below.
    standard_error = math.sqrt(2 * ABSMAX_KLD / (chunks * 256))
    print(f"perplexity ratio {math.exp(loss):.3f}")
    assert BEST_KLD < loss < ABSMAX_KLD + 5 * standard_error


def test_perplexity_of_gemma_rises_about_as_with_q4_0(gemma: Path, evaluation: Path, tmp_path: Path) -> None:
    chunks = 4
    ours, peer = tmp_path / "bof4_s.gguf", tmp_path / "q4_0.gguf"
    convert(gemma, ours, type="BOF4_S", token_embedding_type="F16", opq=("off",))
    succeed("quantize", "--token-embedding-type", "f16", gemma, peer, "Q4_0")
    unquantized = log_perplexity(gemma, evaluation, chunks)
    loss = log_perplexity(ours, evaluation, chunks) - unquantized
    peer_loss = log_perplexity(peer, evaluation, chunks) - unquantized
    ours.unlink()
    peer.unlink()
    print(f"perplexity ratio {math.exp(loss):.3f}, Q4_0 {math.exp(peer_loss):.3f}")
    # Both types have the same squared error on Gaussian weights, 0.0074; two standard errors of the difference,
    # by the estimate above, are a quarter of the loss. Below, the best encoder against Q4_0.
    assert BEST_KLD / Q4_0_KLD < loss / peer_loss < 1.25


def test_folder_and_file_give_the_same_matrices(built: Path, smol: Path, smol_folder: Path, tmp_path: Path) -> None:
    convert(smol_folder, tmp_path / "from-folder.gguf", type="BOF4_S")
    convert(smol, tmp_path / "from-file.gguf", type="BOF4_S")
    from_folder, from_file = tensors(tmp_path / "from-folder.gguf"), tensors(tmp_path / "from-file.gguf")
    assert from_folder == from_file
    assert Counter(qtype for qtype, _, _ in from_file.values()) == {"BOF4_S": 7 * 30, "Q8_0": 1, "F32": 2 * 30 + 1}


def test_quantize_gives_the_same_file_contents_as_convert(smol: Path, tmp_path: Path) -> None:
    succeed("quantize", "--token-embedding-type", "f16", smol, tmp_path / "quantized.gguf", "BOF4_S")
    convert(smol, tmp_path / "converted.gguf", token_embedding_type="F16", opq=("off",))
    assert tensors(tmp_path / "quantized.gguf") == tensors(tmp_path / "converted.gguf")
    assert open_model(tmp_path / "quantized.gguf").value("general.file_type") == BOF4_S.file_type


def test_quantize_takes_the_type_in_every_option(smol: Path, tmp_path: Path) -> None:
    target = tmp_path / "quantized.gguf"
    succeed("quantize", "--pure", smol, target, "BOF4_S")
    assert Counter(types(target).values()) == {"BOF4_S": 7 * 30 + 1, "F32": 2 * 30 + 1}
    succeed("quantize", "--tensor-type", "attn_v=q8_0", smol, target, "176")
    found = types(target)
    assert (found["blk.0.attn_v.weight"], found["blk.0.attn_k.weight"]) == ("Q8_0", "BOF4_S")
    succeed("quantize", "--tensor-type", "ffn_down=bof4_s", "--token-embedding-type", "bof4_s", smol, target, "Q4_0")
    found = types(target)
    assert found["blk.7.ffn_down.weight"] == found["token_embd.weight"] == "BOF4_S"
    assert found["blk.7.ffn_up.weight"] == "Q4_0"


def test_greedy_answers_are_right_and_always_the_same(smol_bof4: Path) -> None:
    first = greedy(smol_bof4, "What is the capital of France?")
    assert "Paris" in first
    assert greedy(smol_bof4, "What is the capital of France?") == first
    assert greedy(smol_bof4, "The capital of France is", "--no-conversation").startswith("Paris")


def test_bof4_k_runs_and_loses_less(smol: Path, smol_bof4: Path, evaluation: Path, tmp_path: Path) -> None:
    """Rows of 1536 are in BOF4_K, the others in BOF4_S."""
    target = tmp_path / "bof4_k.gguf"
    convert(smol, target, type="BOF4_K", token_embedding_type="F16", opq=("off",))
    assert Counter(types(target).values()) == {"BOF4_K": 30, "BOF4_S": 6 * 30, "F16": 1, "F32": 2 * 30 + 1}
    assert open_model(target).value("general.file_type") == BOF4_K.file_type
    assert len(list(verify(target))) == 7 * 30
    assert "Paris" in greedy(target, "What is the capital of France?")
    chunks = 4
    loss, loss_of_s = (log_perplexity(path, evaluation, chunks) for path in (target, smol_bof4))
    print(f"perplexity ratio to BOF4_S {math.exp(loss - loss_of_s):.3f}")
    # the widest matrices have two thirds of the error; what that is worth moves with the sample
    assert loss < loss_of_s + 0.02
    (result,) = json.loads(succeed("bench", "-m", target, "-p", "8", "-n", "0", "-r", "1", "-o", "json", *THREADS))
    assert "BOF4_K" in result["model_type"]
    target.unlink()


def test_check_tensors_names_the_tensor_with_a_bad_scale(smol_bof4: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    shutil.copyfile(smol_bof4, damaged)
    tensor = next(t for t in open_model(damaged).tensors if t.name == "blk.3.ffn_up.weight")
    with damaged.open("r+b") as file:
        file.seek(tensor.offset + 1000 * BOF4_S.block_bytes)
        file.write(np.float16(np.nan).tobytes())
    options = ("-m", damaged, "-p", "Hello", "-n", "4", "--single-turn", *THREADS)
    checked = llama("completion", *options, "--check-tensors")
    assert checked.returncode == 1
    assert "tensor 'blk.3.ffn_up.weight' has invalid data" in checked.stderr
    assert llama("completion", *options).returncode == 0
    assert llama("completion", "-m", smol_bof4, *options[2:], "--check-tensors").returncode == 0


def test_bench_prints_the_name_of_the_type(smol_bof4: Path) -> None:
    (result,) = json.loads(succeed("bench", "-m", smol_bof4, "-p", "8", "-n", "0", "-r", "1", "-o", "json", *THREADS))
    assert "BOF4_S" in result["model_type"]


def embeddings(model: Path, folder: Path) -> Floats:
    """Unit vectors, one a sentence: float32 [50, 384]."""
    sentences = SENTENCES.read_text().splitlines()
    # Upstream's log prints them number by number, and can lose its last 511 pieces when the program ends while its
    # buffer is full: two more sentences at the end, whose numbers may be lost.
    text = folder / "sentences.txt"
    text.write_text("\n".join([*sentences, *sentences[:2]]))
    output = succeed("embedding", "-m", model, "-f", text, "--embd-output-format", "raw", *THREADS)
    return np.array([line.split() for line in output.splitlines()[: len(sentences)]], dtype=np.float32)


def mean_cosine(one: Floats, other: Floats) -> float:
    return float((one * other).sum(axis=1).mean())


@pytest.fixture(scope="module")
def minilm(built: Path, minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 in float32, by upstream's converter."""
    target = tmp_path_factory.mktemp("minilm") / "f32.gguf"
    subprocess.run(
        [sys.executable, source_tree() / "convert_hf_to_gguf.py", minilm_folder, "--outtype", "f32",
         "--outfile", target],
        check=True, capture_output=True,
    )  # fmt: skip
    return target


def test_embeddings_of_minilm_keep_their_direction(minilm: Path, minilm_folder: Path, tmp_path: Path) -> None:
    names = ("ours", "peer", "mixed", "decoded", "searched")
    ours, peer, mixed, decoded, searched = (tmp_path / f"{name}.gguf" for name in names)
    convert(minilm_folder, ours, type="BOF4_S", opq=("off",))
    convert(minilm_folder, searched, type="BOF4_S", encoder="search", opq=("0.95",))
    succeed("quantize", "--token-embedding-type", "q8_0", minilm, peer, "Q4_0")
    convert(minilm, mixed, type="BOF4_S", tensor_types=("attn_v=q8_0",), opq=("off",))
    succeed("quantize", "--allow-requantize", ours, decoded, "F32")
    assert Counter(types(ours).values()) == {"BOF4_S": 6 * 6, "Q8_0": 1, "F32": 64}
    assert Counter(types(peer).values()) == {"Q4_0": 6 * 6, "Q8_0": 1, "F32": 64}

    before, after = embeddings(minilm, tmp_path), embeddings(ours, tmp_path)
    assert before.shape == (50, 384)
    figures = {path.stem: mean_cosine(before, embeddings(path, tmp_path)) for path in (peer, mixed, searched)}
    print(f"mean cosine {mean_cosine(before, after):.4f}, {figures}")
    # Q4_0 takes a quarter of a bit more and has the same error on Gaussian weights
    assert mean_cosine(before, after) > figures["peer"]
    # every matrix in the type, with scales searched for and outliers kept
    assert Counter(types(searched).values())["BOF4_S"] == 6 * 6
    assert figures["searched"] > 0.98
    # the values, a twelfth of the matrices, cost most
    assert figures["mixed"] > 0.98
    # the loss is that of the weights: products in the type give what its decoded weights give in float32
    assert mean_cosine(embeddings(decoded, tmp_path), after) > 0.999
    # the nearest embedding of each sentence is its own
    assert (before @ after.T).argmax(axis=1).tolist() == list(range(50))
