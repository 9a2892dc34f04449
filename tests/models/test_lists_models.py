"""Models with outlier lists in the built programs: loading, placement, adapters, quantizing, serving, refusals.

What must not change the result is compared number by number. What may change it, where activations are rounded
to Q8_0 or not, is compared with the rounding of the same products without lists. And every comparison is repeated
with a model whose lists are removed, so that none passes because lists are ignored.
"""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as T
from gguf_writing import finish
from listed import (
    Encoded,
    divergence,
    predict,
    tensors_of,
    write_changed,
    write_decoded,
    write_listed,
    write_mixture,
    write_without_lists,
)  # fmt: skip
from llama import THREADS, greedy, llama, succeed

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.lists import SUFFIX, read_tensor

PROMPT = "Explain in one sentence why the sky is blue."


@dataclass(frozen=True)
class Variants:
    """One model with lists, the same with its weights decoded to F32, and the same with its lists removed."""

    listed: Path
    decoded: Path
    bare: Path

    @staticmethod
    def of(listed: Path, folder: Path) -> Variants:
        return Variants(
            listed,
            write_decoded(listed, folder / "decoded.gguf"),
            write_without_lists(listed, folder / "bare.gguf"),
        )


@pytest.fixture(scope="module")
def smol_variants(built: Path, smol_listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variants]:
    """The matrices of all blocks have lists."""
    variants = Variants.of(smol_listed, tmp_path_factory.mktemp("lists"))
    yield variants
    for path in (variants.decoded, variants.bare):
        path.unlink()


@pytest.fixture(scope="module")
def mixture(built: Path, smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random mixture-of-experts model in F32."""
    return write_mixture(smol, tmp_path_factory.mktemp("mixture") / "mixture.gguf")


@pytest.fixture(scope="module")
def listed_mixture(mixture: Path) -> Path:
    """Every matrix of it has a list: embeddings, which are the output, too, and experts."""
    return write_listed(mixture, mixture.with_name("listed.gguf"), chosen=lambda name: True)


def test_products_with_lists_are_those_of_the_decoded_weights(smol_variants: Variants, evaluation: Path) -> None:
    exact = predict(smol_variants.decoded, evaluation)
    listed = divergence(predict(smol_variants.listed, evaluation), exact).mean()
    bare = divergence(predict(smol_variants.bare, evaluation), exact).mean()
    print(f"divergence from the decoded weights: {listed:.5f}, lists removed: {bare:.2f}")
    # that of Q8_0's activations: the same as for Q8_0 weights, whose model differs by some thousandths
    assert listed < 0.006
    assert bare > 1000 * listed


@pytest.mark.parametrize(
    "options",
    [("--load-mode", "mmap"), ("--load-mode", "none"), ("--override-tensor", r"blk\.(1|2)\..*=CPU")],
    ids=["mapped", "read", "overridden"],
)
def test_the_way_of_loading_changes_nothing(
    smol_variants: Variants, evaluation: Path, options: tuple[str, ...]
) -> None:
    default = predict(smol_variants.listed, evaluation)
    chosen = predict(smol_variants.listed, evaluation, *options)
    # the same tokens and the same numbers, but for the order of sums where another kernel is chosen
    assert divergence(chosen, default).max() < 1e-4


def test_split_files_load_lists_that_lie_in_other_parts(
    smol_variants: Variants, evaluation: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "model"
    succeed("gguf-split", "--split", "--split-max-tensors", "101", smol_variants.listed, parts)
    paths = sorted(tmp_path.glob("model-*.gguf"))
    assert len(paths) == 5
    names = [set(tensors_of(path)) for path in paths]
    separated = [n for part in names for n in part if n.endswith(SUFFIX) and n.removesuffix(SUFFIX) not in part]
    assert separated, "no list lies in another part than its weight: the test shows nothing"

    whole, split = predict(smol_variants.listed, evaluation), predict(paths[0], evaluation)
    assert (split.log_probabilities == whole.log_probabilities).all()

    merged = tmp_path / "merged.gguf"
    succeed("gguf-split", "--merge", paths[0], merged)
    assert same_tensors(merged, smol_variants.listed)
    for path in (*paths, merged):
        path.unlink()


def same_tensors(one: Path, other: Path) -> bool:
    def bytes_of(path: Path) -> dict[str, tuple[bytes, T]]:
        return {name: (data.tobytes(), qtype) for name, (data, qtype) in tensors_of(path).items()}

    return bytes_of(one) == bytes_of(other)


def write_adapter(target: Path, model: Path, rank: int = 4) -> Path:
    """A LoRA adapter of random numbers for the queries and the down projections of a model."""
    rng = np.random.default_rng(3)

    def numbers(shape: tuple[int, int], deviation: float) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, rank)
    for t in gguf.GGUFReader(model).tensors:
        if re.fullmatch(r"blk\.\d+\.(attn_q|ffn_down)\.weight", t.name):
            n_in, n_out = (int(n) for n in t.shape)
            writer.add_tensor(f"{t.name}.lora_a", numbers((rank, n_in), 1 / math.sqrt(n_in)))
            writer.add_tensor(f"{t.name}.lora_b", numbers((n_out, rank), 0.5))
    finish(writer)
    return target


def test_lora_adapters_work_on_top(smol_variants: Variants, evaluation: Path, tmp_path: Path) -> None:
    adapter = ("--lora", write_adapter(tmp_path / "adapter.gguf", smol_variants.decoded))
    exact = predict(smol_variants.decoded, evaluation, *adapter)
    adapted = divergence(predict(smol_variants.listed, evaluation, *adapter), exact).mean()
    effect = divergence(predict(smol_variants.decoded, evaluation), exact).mean()
    bare = divergence(predict(smol_variants.bare, evaluation, *adapter), exact).mean()
    print(f"divergence with the adapter: {adapted:.5f}; what the adapter does: {effect:.3f}; without lists: {bare:.2f}")
    assert adapted < 0.006  # as without the adapter
    assert effect > 20 * adapted
    assert bare > 20 * adapted


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(lambda name: "_exps" in name, id="experts"),
        pytest.param(lambda name: name == "token_embd.weight", id="embeddings and output"),
        pytest.param(lambda name: True, id="all"),
    ],
)
def test_lists_of_experts_and_embeddings(
    mixture: Path, evaluation: Path, tmp_path: Path, chosen: Callable[[str], bool]
) -> None:
    variants = Variants.of(write_listed(mixture, tmp_path / "listed.gguf", chosen=chosen), tmp_path)
    plain = write_listed(mixture, tmp_path / "plain.gguf", quantile=None, chosen=chosen)
    plain_decoded = write_decoded(plain, tmp_path / "plain-decoded.gguf")

    # Medians: rounded activations may tip the choice of experts for a token or two, with lists or without.
    exact = predict(variants.decoded, evaluation)
    listed = np.median(divergence(predict(variants.listed, evaluation), exact))
    bare = np.median(divergence(predict(variants.bare, evaluation), exact))
    rounding = np.median(divergence(predict(plain, evaluation), predict(plain_decoded, evaluation)))
    print(f"divergence from the decoded weights: {listed:.2g}, without lists {rounding:.2g}, lists lost {bare:.2g}")
    # Another model, so another rounding; its median is one of 126 tokens.
    assert listed < 2 * rounding
    assert bare > 100 * listed


def test_quantize_refuses_to_lose_lists_and_copies_them(listed_mixture: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.gguf"
    for options in (("Q8_0",), ("F32",), ("--tensor-type", "attn_v=q4_0", "BOF4_S")):
        refused = llama(
            "quantize", "--allow-requantize", *options[:-1], listed_mixture, target, options[-1]
        )  # fmt: skip
        assert refused.returncode == 1
        assert re.search(r"tensor '[\w.]+' has an outlier list", refused.stdout + refused.stderr)
        assert "bof4 convert" in refused.stdout + refused.stderr
    succeed("quantize", listed_mixture, target, "COPY")
    assert same_tensors(target, listed_mixture)
    # every matrix stays what it is
    succeed("quantize", "--pure", listed_mixture, target, "BOF4_S")
    assert same_tensors(target, listed_mixture)


@contextmanager
def rpc_server(log: Path) -> Iterator[str]:
    """llama.cpp's RPC server in a process of its own, on loopback only; its address."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    with log.open("w") as output:
        server = subprocess.Popen(
            [installed_bin() / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), *THREADS],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        else:
            pytest.fail(f"the RPC server does not answer: {log.read_text()}")
        yield f"127.0.0.1:{port}"
        assert server.poll() is None, log.read_text()
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_a_model_served_over_rpc_generates_the_same(
    smol_variants: Variants, listed_mixture: Path, evaluation: Path, tmp_path: Path
) -> None:
    # a server's weights are not repacked: sums in another order differ in their last bit, which now and then changes
    # the rounding of an activation
    plain = "--no-repack"
    alone = greedy(smol_variants.listed, PROMPT, plain)
    assert len(alone.split()) > 10
    assert greedy(smol_variants.bare, PROMPT, plain) != alone
    with rpc_server(tmp_path / "server.log") as address:
        remote = (plain, "--rpc", address, "--gpu-layers")
        assert greedy(smol_variants.listed, PROMPT, *remote, "99") == alone
        # all layers there, the last ten, and experts
        for model, layers in ((smol_variants.listed, "99"), (smol_variants.listed, "10"), (listed_mixture, "99")):
            here, there = predict(model, evaluation, plain), predict(model, evaluation, *remote, layers)
            assert divergence(there, here).max() < 1e-4
        log = llama(
            "completion", "-m", smol_variants.listed, "-p", PROMPT, "-n", "1", "--single-turn", *THREADS,
            "--log-verbosity", "4", *remote, "99",
        ).stderr  # fmt: skip
    found = re.search(rf"RPC\d\[{re.escape(address)}\] model buffer size = +([\d.]+) MiB", log)
    assert found, log[-2000:]
    matrices = [d for name, (d, qtype) in tensors_of(smol_variants.listed).items() if qtype in {T.BOF4_S, T.I32}]
    assert float(found[1]) * 2**20 > sum(d.nbytes for d in matrices)


LIST = "blk.0.attn_q.weight.opq"
ROWS = 128
Numbers = npt.NDArray[np.int32]


def with_entry(numbers: Numbers, entry: int) -> Numbers:
    """The first entry of the first row that has two replaced."""
    changed = numbers.copy()
    row = int(np.nonzero(np.diff(numbers[: ROWS + 1]) >= 2)[0][0])
    changed[ROWS + 1 + numbers[row]] = entry
    return changed


def with_pointer(numbers: Numbers, row: int, pointer: int) -> Numbers:
    changed = numbers.copy()
    changed[row] = pointer
    return changed


BAD_NUMBERS: dict[str, tuple[Callable[[Numbers], Numbers], str]] = {
    "first pointer": (lambda n: with_pointer(n, 0, 1), "its first row pointer is not 0"),
    "negative pointer": (lambda n: with_pointer(n, 1, -1), "its row pointers descend"),
    "descending pointers": (lambda n: with_pointer(n, 64, n[63] - 1), "its row pointers descend"),
    "overrunning pointers": (lambda n: with_pointer(n, 64, 2**31 - 1), "its row pointers (run beyond its end|descend)"),
    "last pointer": (lambda n: with_pointer(n, ROWS, n[ROWS] - 1), "its (length is not what|row pointers descend)"),
    "column beyond the row": (lambda n: with_entry(n, 0x3F80_0080), "a column is beyond the row"),
    "columns out of order": (lambda n: with_entry(n, 0x3F80_007F), "columns of a row are not in ascending order"),
    "NaN": (lambda n: with_entry(n, 0x7FC0_0000), "a value is NaN or infinite"),
    "infinity": (lambda n: with_entry(n, 0x7F80_0000), "a value is NaN or infinite"),
    "too long": (lambda n: np.append(n, n[-1]), "its length is not what its row pointers say"),
    "too short": (lambda n: n[:-1], "its (length is not what|row pointers run beyond)"),
    "no pointers": (lambda n: n[:ROWS], "it is shorter than its row pointers"),
}


def check_refused(model: Path, name: str, why: str) -> None:
    """llama.cpp and Python refuse a model and name its list; llama.cpp says why.

    Of the programs that load models, llama-bench is the one that logs without a thread, whose last lines others lose.
    """
    result = llama("bench", "-v", "-m", model, "-p", "1", "-n", "0", "-r", "1", *THREADS)
    assert result.returncode == 1, (result.returncode, result.stderr[-2000:])  # a signal would be negative
    assert re.search(f"outlier list '{re.escape(name)}' is not valid: {why}", result.stderr), result.stderr[-2000:]
    with pytest.raises(UserError, match=f"{re.escape(model.name)}.*outlier list {re.escape(name)} is not valid"):
        open_model(model)


@pytest.mark.parametrize("kind", BAD_NUMBERS)
def test_bad_numbers_are_refused(listed_mixture: Path, tmp_path: Path, kind: str) -> None:
    change, why = BAD_NUMBERS[kind]
    data, qtype = tensors_of(listed_mixture)[LIST]
    damaged = write_changed(listed_mixture, tmp_path / "damaged.gguf", {LIST: (change(data), qtype)})
    check_refused(damaged, LIST, why)


def test_the_undamaged_file_and_a_list_without_entries_are_accepted(listed_mixture: Path, tmp_path: Path) -> None:
    options = ("-p", "Hello", "-n", "1", "--single-turn", *THREADS)
    succeed("completion", "-m", listed_mixture, *options)
    empty: Encoded = (np.zeros(ROWS + 1, dtype=np.int32), T.I32)
    changed = write_changed(listed_mixture, tmp_path / "changed.gguf", {LIST: empty})
    succeed("completion", "-m", changed, *options)


def test_lists_of_wrong_type_or_shape_are_refused(listed_mixture: Path, tmp_path: Path) -> None:
    data, _ = tensors_of(listed_mixture)[LIST]
    target = tmp_path / "damaged.gguf"
    wrongs: list[Encoded] = [
        (data.astype(np.float32), T.F32),
        (data.view(np.int16), T.I16),
        (data[: data.size // 2 * 2].reshape(2, -1), T.I32),
    ]
    for wrong in wrongs:
        write_changed(listed_mixture, target, {LIST: wrong})
        check_refused(target, LIST, "it is not a one-dimensional tensor of type i32")


def test_lists_without_their_weight_are_refused(listed_mixture: Path, tmp_path: Path) -> None:
    tensors = tensors_of(listed_mixture)
    weight = LIST.removesuffix(SUFFIX)
    target = tmp_path / "damaged.gguf"
    write_changed(listed_mixture, target, {weight: None})
    check_refused(target, LIST, f"the file has no tensor '{weight}'")
    write_changed(listed_mixture, target, {"lonely.weight.opq": tensors[LIST]})
    check_refused(target, "lonely.weight.opq", "the file has no tensor 'lonely.weight'")
    decoded = read_tensor(gguf.GGUFReader(listed_mixture), weight)
    write_changed(listed_mixture, target, {weight: (decoded, T.F32)})
    check_refused(target, LIST, "its weight is of type f32, which has no lists")


def test_bytes_damaged_in_place_are_refused(listed_mixture: Path, tmp_path: Path) -> None:
    """The same through the bytes of a file, which no writer has touched."""
    damaged = tmp_path / "damaged.gguf"
    shutil.copyfile(listed_mixture, damaged)
    tensor = next(t for t in gguf.GGUFReader(listed_mixture).tensors if t.name == LIST)
    with damaged.open("r+b") as file:
        file.seek(tensor.data_offset + 4 * 10)
        file.write(b"\xff\xff\xff\x7f")
    check_refused(damaged, LIST, "its row pointers")
    for program in ("completion", "perplexity"):
        assert llama(program, "-m", damaged, "-p", "Hello", "-n", "1", *THREADS).returncode == 1
