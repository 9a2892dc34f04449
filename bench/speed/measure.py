"""One file under llama-bench, and the roofline of this machine: its cores and their read bandwidth."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from gguf_bof4 import native
from gguf_bof4.bench.speed.results import GPU_BACKENDS, batch_test
from gguf_bof4.divergence import REMEDY
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.backends import BACKENDS
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.ggml_patch.programs import run_program
from gguf_bof4.gguf_files.model import Model

_BUFFER = 2**30
_PASSES = 3
"""Of each loop that reads the buffer; the fastest one counts."""


@dataclass(frozen=True)
class Speed:
    """One test of llama-bench.

    Attributes:
        test: pp256, tg64 and so on.
        tokens_per_second: median of the repetitions.
        time: when, in UTC.
    """

    test: str
    tokens_per_second: float
    time: str


def parse_speeds(output: str) -> list[Speed]:
    """Read what llama-bench -o jsonl prints; other lines are skipped.

    Raises:
        UserError: there is no test in it, or one without the figures.
    """
    found = []
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        try:
            fields = json.loads(line)
            prompt, generated = int(fields["n_prompt"]), int(fields["n_gen"])
            seconds = median(float(ns) for ns in fields["samples_ns"]) / 1e9
            name = f"tg{generated}" if generated else f"pp{prompt}"
            found.append(Speed(name, (prompt + generated) / seconds, str(fields["test_time"])))
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"llama-bench printed a line without the figures: {line[:300]}") from error
    if not found:
        raise UserError(f"llama-bench printed no test; it ended with:\n{output.strip()[-1500:]}")
    return found


def llama_bench(
    model: Path, prompts: tuple[int, ...], generate: int, threads: int, repack: bool, repetitions: int, gpu_layers: int
) -> list[Speed]:
    """Load a file once and run the tests on it, each after a warm-up run.

    Args:
        prompts: tokens of each prompt.
        generate: tokens to generate; 0: none.
        gpu_layers: that go to a GPU, where the build has one.

    Raises:
        UserError: llama-bench failed.
    """
    output = run_program(
        "llama-bench", "-m", model, "-p", ",".join(map(str, prompts)) or "0", "-n", str(generate), "-t", str(threads),
        "--repack", str(int(repack)), "-ngl", str(gpu_layers), "-r", str(repetitions), "-o", "jsonl", remedy=REMEDY,
    )  # fmt: skip
    return parse_speeds(output)


BATCH_TOKENS = 16
"""That each sequence of a batch generates."""

_BATCH_PROMPT = 4

_TRIES = 5
"""Of llama-batched-bench: it prints in a thread, and loses its last lines where a small model ends before that."""


def parse_batches(output: str, time: str) -> list[Speed]:
    """Read what llama-batched-bench --output-format jsonl prints: tokens of all sequences, medians of repetitions.

    Args:
        time: when it ran, in UTC.

    Raises:
        UserError: there is no test in it, or one without the figures.
    """
    found: dict[int, list[float]] = {}
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        try:
            fields = json.loads(line)
            found.setdefault(int(fields["pl"]), []).append(float(fields["speed_tg"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"llama-batched-bench printed a line without the figures: {line[:300]}") from error
    if not found:
        raise UserError(f"llama-batched-bench printed no test; it ended with:\n{output.strip()[-1500:]}")
    return [Speed(batch_test(BATCH_TOKENS, n), median(speeds), time) for n, speeds in found.items()]


def batched_bench(
    model: Path, batches: tuple[int, ...], threads: int, repack: bool, repetitions: int, gpu_layers: int
) -> list[Speed]:
    """Load a file once and generate BATCH_TOKENS tokens of each of so many sequences at once, for each of `batches`.

    Raises:
        UserError: llama-batched-bench failed.
    """
    context = max(batches) * 256  # of every sequence a multiple of 256
    command = (
        "llama-batched-bench", "-m", model, "-c", str(context), "-npp", str(_BATCH_PROMPT), "-ntg", str(BATCH_TOKENS),
        "-npl", ",".join(str(n) for n in batches for _ in range(repetitions)), "-t", str(threads),
        "-ngl", str(gpu_layers), *(() if repack else ("--no-repack",)), "--output-format", "jsonl",
    )  # fmt: skip
    for _ in range(_TRIES):
        output = run_program(*command, remedy=REMEDY)
        if sum(line.startswith("{") for line in output.splitlines()) == len(batches) * repetitions:
            return parse_batches(output, datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    raise UserError(f"llama-batched-bench printed fewer tests than it ran; it ended with:\n{output.strip()[-1500:]}")


def bytes_per_token(model: Model) -> int:
    """Bytes of weights and outlier lists that generating one token reads.

    All matrices once, of experts the fraction in use; of token embeddings one row, unless they are the output matrix.
    """
    architecture = model.value("general.architecture")
    experts = model.integer(f"{architecture}.expert_count")
    used = (model.integer(f"{architecture}.expert_used_count") or 0) / experts if experts else 1.0
    tied = all(t.name != "output.weight" for t in model.tensors)
    total = 0.0
    for t in model.tensors:
        if t.name == "token_embd.weight" and not tied:
            total += t.row_bytes
        else:
            total += (t.nbytes + model.list_nbytes(t)) * (used if "_exps." in t.name else 1)
    return round(total)


class Memory:
    """A buffer of 1 GiB, many times larger than caches, to measure read bandwidth with."""

    def __init__(self) -> None:
        # numpy requests huge pages, which keep TLB misses out of the measurement
        self._bytes: npt.NDArray[np.uint8] = np.ones(_BUFFER, np.uint8)

    def bandwidth(self, threads: int) -> float:
        """GB/s that all threads read together: the fastest of several loops and passes."""
        ffi, lib = native.library()
        data = ffi.cast("void *", self._bytes.ctypes.data)
        return _BUFFER / float(lib.bof4_read_ns(data, _BUFFER, threads, _PASSES))


def instruction_set() -> str:
    """The instruction set of the CPU backend, or of its variant that is loaded, like "avx512-vnni".

    Raises:
        NativeError: there is no variant that this processor can run.
    """
    return native.instruction_set()


def parse_devices(output: str) -> str:
    """The backend and its devices, like "cuda: 2 x NVIDIA H200", in what llama-bench --list-devices prints.

    Empty where no device is one of GPU_BACKENDS.
    """
    names = {title: b.name for b in BACKENDS if b.name in GPU_BACKENDS for title in (b.title, *b.other_titles)}
    found: dict[str, Counter[str]] = {}
    for title, device in re.findall(r"^ *([A-Za-z]+)\d+: (.*) \(\d+ MiB, \d+ MiB free\)$", output, re.MULTILINE):
        if title in names:
            found.setdefault(names[title], Counter())[device] += 1
    return "; ".join(
        f"{name}: " + ", ".join(device if n == 1 else f"{n} x {device}" for device, n in devices.items())
        for name, devices in found.items()
    )


def processors(gpu_layers: int) -> str:
    """What computes: the backend and the devices that layers go to, else the instruction set of the CPU backend.

    Raises:
        UserError: llama-bench failed.
        NativeError: there is no variant of the CPU backend that this processor can run.
    """
    devices = parse_devices(run_program("llama-bench", "--list-devices", remedy=REMEDY)) if gpu_layers else ""
    return devices or instruction_set()


def build_id() -> str:
    """Eight hexadecimal digits that change with the kernels.

    Raises:
        NotBuiltError: `bof4 build` has not been run.
    """
    folder = installed_bin()
    kinds = ("cpu", *GPU_BACKENDS)
    libraries = sorted({path.resolve() for kind in kinds for path in folder.glob(f"*ggml-{kind}*")}) or [
        folder / "llama-bench"
    ]
    digest = hashlib.sha256()
    for path in libraries:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
