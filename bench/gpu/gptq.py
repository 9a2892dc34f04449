"""The encoder gptq on a GPU against the CPU: KL divergence of both results from the unquantized model, and the time.

Needs gguf_bof4 and BOF4_BIN, which check.sh provides. The unquantized model has the decoded weights of a small file,
its input channels rescaled so that they are not on the grid of the type that they get.

Exit code: 0 if the result of each device is better than that of the encoder search, and the divergences of two devices
differ by at most three standard errors.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SPREAD = 3.0
"""Standard errors by which the divergences of two devices may differ. The errors of the two are not independent, so
that chance makes a difference this large even more rarely than in one case of 300."""


@dataclass(frozen=True)
class Divergence:
    """Mean KL divergence and its standard error."""

    mean: float
    error: float

    def agrees(self, other: Divergence) -> bool:
        return abs(self.mean - other.mean) <= SPREAD * math.hypot(self.error, other.error)


def parse_divergence(output: str) -> Divergence:
    """The mean KL divergence that llama-perplexity printed."""
    found = re.search(r"^Mean\s+KLD:\s+([-\d.einfa]+)\s+±\s+([-\d.einfa]+)", output, re.MULTILINE)
    if found is None:
        raise SystemExit(f"llama-perplexity printed no KL divergence:\n{output[-2000:]}")
    return Divergence(float(found[1]), float(found[2]))


def verdict(search: Divergence, of_device: dict[str, Divergence]) -> list[str]:
    """What is wrong; nothing where all is right. A NaN is wrong."""
    wrong = [
        f"by gptq on {device} it is not less than by search"
        for device, found in of_device.items()
        if not found.mean < search.mean
    ]
    first, *others = of_device
    wrong += [
        f"{first} and {device} differ by more than {SPREAD:g} standard errors"
        for device in others
        if not of_device[first].agrees(of_device[device])
    ]
    return wrong


def write_reference(model: Path, target: Path) -> None:
    """Decode a llama to F32 and rescale its channels, which changes no result but for rounding."""
    import gguf

    from gguf_bof4.convert import convert
    from gguf_bof4.reference_models import rescale_channels

    convert(model, target, type="BOF4_S", opq=("off",), tensor_types=(".=f32",), token_embedding_type="f16", force=True)
    reader = gguf.GGUFReader(target, "r+")
    counts = {
        key: int(reader.fields[f"llama.{key}"].contents())
        for key in ("block_count", "attention.head_count", "attention.head_count_kv")
    }
    rescale_channels(
        {t.name: t.data for t in reader.tensors},  # a memory map: changed in place
        layers=counts["block_count"], kv_heads=counts["attention.head_count_kv"], heads=counts["attention.head_count"],
    )  # fmt: skip


def perplexity(bin_folder: Path, *arguments: str | Path) -> str:
    """Output of llama-perplexity over short chunks of the text."""
    done = subprocess.run(
        [bin_folder / "llama-perplexity", "-c", "128", "-b", "128", "--chunks", "32", *arguments],
        capture_output=True, check=False, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"llama-perplexity failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


def compare(options: argparse.Namespace, devices: Iterable[str]) -> list[str]:
    """Encode with `search` and on each device, print the divergences and times; what is wrong."""
    from gguf_bof4.convert import convert

    work: Path = options.work
    reference, base, encoded = work / "reference.gguf", work / "base.dat", work / "encoded.gguf"
    write_reference(options.model, reference)
    perplexity(options.bin, "-m", reference, "-f", options.text, "--kl-divergence-base", base)

    def divergence() -> Divergence:
        return parse_divergence(
            perplexity(options.bin, "-m", encoded, "--kl-divergence-base", base, "--kl-divergence")
        )

    convert(reference, encoded, type="BOF4_S", token_embedding_type="f16", force=True)
    search = divergence()
    print(f"GPTQ instead of which search: mean KLD {search.mean:.4f} +- {search.error:.4f}", flush=True)
    found = {}
    for device in devices:
        began = time.perf_counter()
        convert(
            reference, encoded, type="BOF4_S", token_embedding_type="f16", encoder="gptq",
            calibration=str(options.calibration), device=device, force=True,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        found[device] = divergence()
        line = f"mean KLD {found[device].mean:.4f} +- {found[device].error:.4f}, {seconds:.1f} s"
        print(f"GPTQ on {device}: {line}", flush=True)
    return verdict(search, found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a llama, any type")
    parser.add_argument("--calibration", type=Path, required=True, help="calibration text")
    parser.add_argument("--text", type=Path, required=True, help="text on which the results are compared")
    parser.add_argument("--bin", type=Path, required=True, help="folder of llama-perplexity and libbof4")
    parser.add_argument("--work", type=Path, required=True, help="folder for files, emptied first")
    parser.add_argument("--devices", nargs="+", default=["cuda", "cpu"], help="as torch names them")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    wrong = compare(options, options.devices)
    for text in wrong:
        print(f"GPTQ WRONG: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
