"""The paper's encoder: the scale is the signed block maximum."""

from __future__ import annotations

from gguf_bof4.encoders.encoder import Encoder
from gguf_bof4.native import BlockEncoder

ENCODER = Encoder(
    name="absmax",
    help="the paper's, with scales from the largest weight of each block",
    block_encoder=BlockEncoder.ABSMAX,
)
