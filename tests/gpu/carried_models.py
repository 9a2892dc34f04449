"""What bench/gpu/prepare.sh carries to a machine with a GPU: two small models with lists, and two texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from listed import Encoded, quantized, tensors_of, write, write_listed, write_mixture

from gguf_bof4.reference_models import reference_model
from gguf_bof4.reference_texts import evaluation_text

LAYERS = 6
"""Layers of SmolLM2 that are kept, of 30, to keep the file small."""


def first_layers(source: Path) -> Iterator[tuple[str, Encoded]]:
    """The tensors of a model's first layers, matrices in BOF4_S with lists.

    Token embeddings, too: they are half of the size, and a matrix of 49152 rows with a list.
    """
    for name, (data, of) in tensors_of(source).items():
        if name.startswith("blk.") and int(name.split(".")[1]) >= LAYERS:
            continue
        if data.ndim > 1:
            yield from quantized(name, np.asarray(data, dtype=np.float32))
        else:
            yield name, (data, of)


def main(target: Path) -> None:
    """Write the models and texts."""
    text = evaluation_text().read_text("utf-8")
    (target / "text.txt").write_text(text[:60_000], "utf-8")
    (target / "calibration.txt").write_text(text[100_000:300_000], "utf-8")
    smol = reference_model("smol")
    write(target / "small-s.gguf", gguf.GGUFReader(smol), first_layers(smol), {"llama.block_count": LAYERS})
    mixture = write_mixture(smol, target / "mixture-f32.gguf")
    write_listed(mixture, target / "mixture-s.gguf", chosen=lambda name: True)
    mixture.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
