"""The programs on an NVIDIA GPU: upstream's tests of operations, and models with all layers on the GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cuda_machine import gpu_bin, no_gpu
from listed import divergence, predict, write_decoded, write_listed, write_mixture, write_without_lists
from llama import greedy, llama

from gguf_bof4.convert import convert
from gguf_bof4.formats import FORMATS, Format, Kernels

pytestmark = pytest.mark.skipif(bool(no_gpu()), reason=no_gpu() or "a GPU is here")

CUDA_FORMATS = tuple(fmt for fmt in FORMATS if Kernels.CUDA in fmt.kernels)
ON_GPU = ("--gpu-layers", "99")
ON_CPU = ("--device", "none")


@pytest.fixture(autouse=True, scope="module")
def programs() -> Path:
    """The folder of programs for the GPU that all tests here run; built first where necessary, which takes minutes."""
    return gpu_bin()


@pytest.fixture(autouse=True)
def use_programs(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOF4_BIN", str(programs))


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout)


def test_upstreams_tests_of_operations_pass(programs: Path) -> None:
    output = run(programs / "test-backend-ops", "test", "-b", "CUDA0", "-p", "bof4_")
    cases = re.findall(r"^ *(\w+)\((.*=(bof4_\w+?)\b.*)\): (OK|not supported.*)$", output, re.MULTILINE)
    passed = Counter(
        (operation, of_type, "list=1" in case) for operation, case, of_type, result in cases if result == "OK"
    )
    print({f"{operation} {of_type}{' list' * listed}": n for (operation, of_type, listed), n in sorted(passed.items())})
    for operation in ("MUL_MAT", "MUL_MAT_ID", "GET_ROWS"):
        for fmt in CUDA_FORMATS:
            for listed in (False, True):
                assert passed[operation, fmt.c_name, listed] > 5, (operation, fmt.name, listed)
    # few products may be unsupported, and left to the CPU
    refused = [f"{operation}({case})" for operation, case, _, result in cases if result != "OK"]
    products = [case for case in refused if case.startswith("MUL_MAT") and "type_b=f32" in case]
    assert len(products) < 0.2 * sum(passed.values()), products[:20]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_no_error(programs: Path, tool: str) -> None:
    """This project's kernels under compute-sanitizer, which makes them a hundred times slower: small products only.

    Upstream's tiled product with our tiles has the numbers of the types in its name.
    """
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("compute-sanitizer, which comes with the CUDA toolkit, is not on the PATH")
    # products of one, several and many columns, of experts, fused ones, and rows
    small = (
        r"bof4_.*(m=16,n=\d,k=256|n=256,m=5|n_mats=4,n_used=2,b=0,m=512,n=(1|17),"
        r"|glu_op=2,m=1,n=32,k=256,use_id=.,n_mats=16,n_used=8,b=0,with_bias=1,with_gate=1)"
    )
    names = ("bof4", *(f"ggml_type{fmt.type_id}" for fmt in CUDA_FORMATS))
    filters = (part for name in names for part in ("--kernel-name", f"kernel_substring={name}"))
    output = run(
        Path(checker), "--tool", tool, *filters, "--error-exitcode", "9",
        str(programs / "test-backend-ops"), "test", "-b", "CUDA0", "-p", small,
    )  # fmt: skip
    assert "ERROR SUMMARY: 0 errors" in output or "0 hazards displayed" in output, output[-2000:]
    assert output.count(": OK") > 20, output[-2000:]


def test_products_of_large_matrices_are_those_of_the_cpu(programs: Path) -> None:
    print(run(programs / "bof4-bench-cuda", "--check"))


def test_all_layers_on_the_gpu_predict_what_the_decoded_weights_do(
    smol: Path, evaluation: Path, tmp_path: Path
) -> None:
    listed = write_listed(smol, tmp_path / "listed.gguf")
    decoded = write_decoded(listed, tmp_path / "decoded.gguf")
    exact = predict(decoded, evaluation, *ON_CPU)
    all_layers = divergence(predict(listed, evaluation, *ON_GPU), exact).mean()
    ten_layers = divergence(predict(listed, evaluation, "--gpu-layers", "10"), exact).mean()
    # products of one and of eight columns: lists in fused products
    narrow = {n: divergence(predict(listed, evaluation, *ON_GPU, "-ub", n), exact).mean() for n in ("1", "8")}
    bare = write_without_lists(listed, tmp_path / "bare.gguf")
    without_lists = divergence(predict(bare, evaluation, *ON_GPU), exact).mean()
    print(f"KL divergence: {all_layers:.5f}, ten layers {ten_layers:.5f}, -ub {narrow}, no lists {without_lists:.2f}")
    # activations are rounded to 8 bits, as on the CPU
    assert max(all_layers, ten_layers, *narrow.values()) < 0.006
    assert without_lists > 100 * all_layers


def test_layers_are_offloaded_and_the_model_answers(smol_bof4: Path) -> None:
    assert "Paris" in greedy(smol_bof4, "What is the capital of France?", *ON_GPU)
    options = ("-p", "Hello", "-n", "1", "--single-turn", "--log-verbosity", "4", *ON_GPU)
    log = llama("completion", "-m", smol_bof4, *options)
    assert log.returncode == 0, log.stderr[-2000:]
    assert re.search(r"offloaded (\d+)/\1 layers to GPU", log.stderr), log.stderr[-3000:]
    assert re.search(r"CUDA0 model buffer size = +[\d.]+ MiB", log.stderr)


@pytest.mark.parametrize("fmt", CUDA_FORMATS, ids=lambda f: f.name)
def test_a_converted_model_predicts_as_on_the_cpu(smol: Path, evaluation: Path, tmp_path: Path, fmt: Format) -> None:
    model = tmp_path / "model.gguf"
    convert(smol, model, type=fmt.name)
    found = divergence(predict(model, evaluation, *ON_GPU), predict(model, evaluation, *ON_CPU)).mean()
    print(f"{fmt.name}: KL divergence of the GPU from the CPU {found:.5f}")
    assert found < 0.006


def test_mixtures_of_experts(smol: Path, evaluation: Path, tmp_path: Path) -> None:
    mixture = write_mixture(smol, tmp_path / "mixture.gguf")
    listed = write_listed(mixture, tmp_path / "listed.gguf", chosen=lambda name: True)
    exact = predict(write_decoded(listed, tmp_path / "decoded.gguf"), evaluation, *ON_CPU)
    # medians: rounded activations may change the choice of experts for a few tokens
    on_cpu = np.median(divergence(predict(listed, evaluation, *ON_CPU), exact))
    for columns in ("512", "8", "1"):
        on_gpu = np.median(divergence(predict(listed, evaluation, *ON_GPU, "-ub", columns), exact))
        print(f"KL divergence from the decoded weights: GPU, -ub {columns}, {on_gpu:.2g}, CPU {on_cpu:.2g}")
        assert on_gpu < 3 * on_cpu, columns
