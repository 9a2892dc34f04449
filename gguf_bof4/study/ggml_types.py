"""Tensor types of this project and of llama.cpp, through their own encoders and decoders in the native library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import gguf
import numpy as np
import torch

from gguf_bof4 import native
from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.formats import FORMATS
from gguf_bof4.lists import ENTRY_BITS, LONGEST_ROW, POINTER_BITS
from gguf_bof4.native import BlockEncoder
from gguf_bof4.study.record import Format, Quantized, Tensor, choice, fraction, numbers

TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4_GGML",
)  # fmt: skip
"""Of llama.cpp. MXFP4_GGML is its MXFP4: its encoder may differ from the specification's, which is MXFP4 here."""

OWN_TYPES = tuple(fmt.name for fmt in FORMATS)


class _Ggml(Format):
    """A tensor type of ggml."""

    native: ClassVar[bool] = True
    uses_importance: ClassVar[bool] = True

    type: str

    @property
    def name(self) -> str:
        given = [part for part in super().name.split(":")[1:] if not part.startswith("type=")]
        return ":".join([self.type, *given])

    @property
    def qtype(self) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType[self.type.removesuffix("_GGML")]

    @property
    def multiple(self) -> int:
        return gguf.GGML_QUANT_SIZES[self.qtype][0]

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        block, nbytes = gguf.GGML_QUANT_SIZES[self.qtype]
        return 8 * nbytes * numbers(shape) // block


@dataclass(frozen=True)
class UpstreamType(_Ggml):
    """A type of llama.cpp, encoded by ggml, with the importance of columns where it is given."""

    family: ClassVar[str] = "GGML"
    summary: ClassVar[str] = "llama.cpp's type, through its own encoder"

    type: str = choice(*TYPES)

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        imatrix = None if importance is None else importance.numpy().astype(np.float32)
        data = native.quantize(x, self.qtype, imatrix, threads=1)
        return Quantized(torch.from_numpy(native.dequantize(data, self.qtype)), self.stored_bits(tuple(x.shape)))


@dataclass(frozen=True)
class OwnType(_Ggml):
    """A type of this project.

    Attributes:
        encoder: "search" (scales of least error) or "absmax" (the paper's).
        opq: the quantile of its outlier list; 0: none.
    """

    family: ClassVar[str] = "OWN"
    summary: ClassVar[str] = "this project's type, through its own encoder"

    type: str = choice(*OWN_TYPES)
    encoder: str = choice("search", "absmax")
    opq: float = fraction(0.0, 0.0, 1.0)

    def check_row(self, n: int, what: str) -> None:
        super().check_row(n, what)
        if self.opq and n > LONGEST_ROW:
            raise UserError(f"{what}: rows of {n} are too long for the outlier lists of {self.name}: {LONGEST_ROW}")

    def decoded(self, x: Tensor, importance: Tensor | None) -> Quantized:
        rows = x.reshape(-1, x.shape[-1]).numpy()
        imatrix = None if importance is None else importance.numpy().astype(np.float32)
        bits = self.stored_bits(tuple(x.shape))
        try:
            kept = native.select_outliers(rows, self.opq, threads=1) if self.opq else None
            data = native.quantize(
                rows, self.qtype, imatrix, threads=1, encoder=BlockEncoder[self.encoder.upper()], outliers=kept
            )
        except TooLargeWeightError as error:
            raise UserError(f"{self.name}: {error} for the type, at {list(error.position)}") from error
        values = native.dequantize(data, self.qtype)
        if kept is not None:
            kept.add_to(values)
            bits += POINTER_BITS * (kept.n_rows + 1) + ENTRY_BITS * kept.entries.size
        return Quantized(torch.from_numpy(values).reshape(x.shape), bits)
