"""The types of llama.cpp, made by its own llama-quantize."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.divergence import REMEDY
from gguf_bof4.ggml_patch.programs import run_program

IMATRIX_CHUNKS = 64
"""Chunks of 512 tokens for the importance matrix: 32768 tokens give the mean square of an activation to a percent or
so, and all of the calibration text would take the 1.5B model an hour on two cores."""


@dataclass(frozen=True)
class Peer:
    """A type that llama-quantize makes.

    Attributes:
        name: the ggml type.
        file_type: the file type of llama-quantize whose default type this is.
        uses_imatrix: the encoder uses an importance matrix.
    """

    name: str
    file_type: str
    uses_imatrix: bool = True


PEERS = {
    peer.name: peer
    for peer in (
        Peer("Q4_0", "Q4_0"),
        Peer("IQ4_NL", "IQ4_NL"),
        Peer("IQ4_XS", "IQ4_XS"),
        Peer("Q4_K", "Q4_K_S"),
        Peer("MXFP4", "MXFP4_MOE", uses_imatrix=False),
        Peer("Q5_0", "Q5_0"),
        Peer("Q5_K", "Q5_K_S"),
    )
}


def make_peer(peer: Peer, source: Path, target: Path, imatrix: Path | None, threads: int, tables: str = "f16") -> None:
    """Quantize all matrices of the decoder layers to one type; other tensors keep their type.

    A pattern for all blocks takes the place of llama-quantize's mixtures (which give some matrices more bits) and of
    MXFP4_MOE's rule (MXFP4 for experts, Q8_0 for everything else); fallbacks for short rows still apply.

    Args:
        tables: the type of token embeddings and output matrix.

    Raises:
        UserError: llama-quantize failed.
    """
    run_program(
        "llama-quantize",
        *(() if imatrix is None else ("--imatrix", imatrix)),
        "--token-embedding-type", tables, "--output-tensor-type", tables,
        "--tensor-type", rf"^blk\.={peer.name.lower()}",
        source, target, peer.file_type, *([str(threads)] if threads else []), remedy=REMEDY,
    )  # fmt: skip
