"""The quantized files that speed is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf

from gguf_bof4.bench.disk import check_disk
from gguf_bof4.bench.measure import bits_per_weight, block_matrices, fallbacks
from gguf_bof4.bench.peers import PEERS, make_peer
from gguf_bof4.bench.speed.measure import bytes_per_token
from gguf_bof4.bench.variants import NO_LISTS, OUR_TYPES, Variant
from gguf_bof4.convert import convert
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.paths import atomic_path

TABLES = "Q6_K"
"""Token embeddings and output matrix, in all files alike: what llama-quantize and `bof4 convert` make of them."""

FOUR_BIT_PEERS = ("Q4_0", "IQ4_NL", "IQ4_XS", "Q4_K", "MXFP4")
"""Types of llama.cpp with four bits for each code."""

TYPES = (*PEERS, *OUR_TYPES)
DEFAULT_TYPES = (*FOUR_BIT_PEERS, *OUR_TYPES)

_UNQUANTIZED = {gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16")}
_RECIPE = 1
"""To be raised with every change of how files are made: those of another recipe are made again."""


@dataclass(frozen=True)
class File:
    """A quantized file.

    Attributes:
        bits_per_weight: of the matrices of the blocks, lists included.
        others: matrices of the blocks that fell back, like {"Q5_0": 180}.
    """

    variant: Variant
    path: Path
    bits_per_weight: float
    bytes_per_token: int
    others: dict[str, int]


def open_source(path: Path) -> Model:
    """A model to quantize.

    Raises:
        UserError: its matrices are quantized already, or there are none.
    """
    model = open_model(path)
    matrices = block_matrices(model)
    if not matrices:
        raise UserError(f"{path} has no matrices named blk.*: there is nothing to quantize")
    for t in matrices:
        if t.qtype not in _UNQUANTIZED:
            raise UserError(
                f"{path}: {t.name} is {t.qtype.name}: give the unquantized model, in F16, BF16 or F32, which all types "
                "can be made of"
            )
    return model


def file_bytes(source: Model, variant: Variant) -> float:
    """Estimated bytes of a file."""
    bits = 6 if variant.type.startswith("Q5") else 4.9
    matrices = {t.name for t in block_matrices(source)}
    return sum(t.n_weights * (bits if t.name in matrices else 8.6) / 8 for t in source.tensors)


def _name(source: Path, variant: Variant) -> str:
    stat = source.stat()
    identity = f"{_RECIPE} {source.resolve()} {stat.st_size} {stat.st_mtime_ns} {TABLES}"
    lists = "" if variant.opq == NO_LISTS else f"-opq{variant.opq}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return f"{source.stem}-{digest}-{variant.type}{lists}.gguf"


def _make(source: Path, variant: Variant, target: Path, threads: int) -> None:
    if variant.type in PEERS:
        make_peer(PEERS[variant.type], source, target, None, threads, tables=TABLES)
    else:
        convert(
            source, target, type=variant.type, encoder=variant.encoder, opq=(variant.opq,), threads=threads,
            token_embedding_type=TABLES, output_tensor_type=TABLES,
        )  # fmt: skip


def _tables(model: Model) -> dict[str, str]:
    blocks = {t.name for t in block_matrices(model)}
    return {t.name: t.qtype.name for t in model.tensors if t.name not in blocks}


class Files:
    """Files of one source in a folder, made at the first use; existing ones are reused."""

    def __init__(self, source: Path, folder: Path, threads: int) -> None:
        """Open the source.

        Raises:
            UserError: it is not an unquantized model.
        """
        self.source, self.folder, self.threads = source, folder, threads
        self.model = open_source(source)
        self._first: dict[str, str] | None = None

    def missing(self, variants: Sequence[Variant]) -> list[Variant]:
        return [v for v in variants if not (self.folder / _name(self.source, v)).exists()]

    def check_disk(self, variants: Sequence[Variant]) -> None:
        """Raise UserError where the disk has too little space for the missing files."""
        needed = sum(file_bytes(self.model, variant) for variant in self.missing(variants))
        remedy = "set TMPDIR or --files to a folder with more, or name fewer --types"
        check_disk(self.folder, needed, "quantizing the model", remedy)

    def get(self, variant: Variant) -> File:
        """The file of a variant.

        Raises:
            UserError: it cannot be made, or more than the matrices of the blocks differs from the other files.
        """
        path = self.folder / _name(self.source, variant)
        if not path.exists():
            with atomic_path(path) as partial:
                _make(self.source, variant, partial, self.threads)
        model = open_model(path)
        tables = _tables(model)
        self._first = self._first or tables
        for name, qtype in self._first.items():
            if tables.get(name) != qtype:
                raise UserError(f"{path}: {name} is {tables.get(name)}, but {qtype} in other files: no comparison")
        return File(variant, path, bits_per_weight(model), bytes_per_token(model), fallbacks(model, variant.type))
