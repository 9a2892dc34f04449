"""What outlier lists give: bits per weight and distance from the unquantized model, for a few quantiles.

    python bench/opq.py [--models smol gemma] [--quantiles off 0.99 0.95 0.90] [--chunks 16]

Every matrix named blk.* is quantized, embeddings stay F16. All figures of a model and a text come from one run, against
the same logits. Prints a table a model and writes bench/opq.csv.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gguf_bof4.convert import convert
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.reading import open_model
from gguf_bof4.reference_models import reference_model
from gguf_bof4.reference_texts import evaluation_text, held_out_text

MEASURES = {
    "mean KLD": r"Mean\s+KLD:\s+(-?[\d.]+)",
    "99.9 % KLD": r"99\.9%\s+KLD:\s+(-?[\d.]+)",
    "same top token": r"Same top p:\s+([\d.]+)",
}


def perplexity(*arguments: str | Path) -> str:
    """Output of llama-perplexity, both streams."""
    program = installed_bin() / "llama-perplexity"
    command = [str(program), "-c", "512", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def matrix_bits(path: Path) -> float:
    """Bits per weight of the matrices of the blocks, lists included."""
    model = open_model(path)
    tensors = [t for t in model.tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    nbytes = sum(t.nbytes + model.list_nbytes(t) for t in tensors)
    return 8 * nbytes / sum(t.n_weights for t in tensors)


def measure(source: Path, text: Path, files: dict[str, Path], chunks: int, work: Path) -> dict[str, dict[str, float]]:
    """The three measures of each file against `source` on `text`."""
    logits = work / "logits"
    perplexity("-m", source, "-f", text, "--chunks", str(chunks), "--kl-divergence-base", logits)
    found = {}
    for name, path in files.items():
        output = perplexity("-m", path, "--kl-divergence-base", logits, "--kl-divergence", "--chunks", str(chunks))
        matches = {measure: re.search(pattern, output) for measure, pattern in MEASURES.items()}
        found[name] = {measure: float(m[1]) for measure, m in matches.items() if m}
    logits.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smol", "gemma"])
    parser.add_argument("--quantiles", nargs="+", default=["off", "0.99", "0.95", "0.90"])
    parser.add_argument("--encoder", default="absmax")
    parser.add_argument("--chunks", type=int, default=16)
    args = parser.parse_args()
    console, rows = Console(), []
    texts = {"test": evaluation_text(), "held out": held_out_text()}
    for model in args.models:
        source = reference_model(model)
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            files = {q: work / f"{q}.gguf" for q in args.quantiles}
            for q, path in files.items():
                convert(source, path, type="BOF4_S", token_embedding_type="F16", opq=(q,), encoder=args.encoder)
            results = {name: measure(source, text, files, args.chunks, work) for name, text in texts.items()}
            bits = {q: matrix_bits(path) for q, path in files.items()}
        table = Table("opq", "bits/weight", "text", *MEASURES, title=f"{model}, BOF4_S, encoder {args.encoder}")
        for text, found in results.items():
            for q, values in found.items():
                rows.append([model, args.encoder, q, f"{bits[q]:.4f}", text, *(values[m] for m in MEASURES)])
                table.add_row(q, f"{bits[q]:.3f}", text, *(f"{values[m]:.5g}" for m in MEASURES))
        console.print(table)
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "encoder", "opq", "bits_per_weight", "text", *MEASURES])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
