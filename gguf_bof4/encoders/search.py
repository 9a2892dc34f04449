"""The encoder search: of a grid of scales (Format.search), the one with the least squared error, for each sub-block."""

from __future__ import annotations

from gguf_bof4.encoders.encoder import Encoder
from gguf_bof4.native import BlockEncoder

ENCODER = Encoder(
    name="search",
    help="scales with the least squared error, weighted by --imatrix",
    block_encoder=BlockEncoder.SEARCH,
    takes_imatrix=True,
)
