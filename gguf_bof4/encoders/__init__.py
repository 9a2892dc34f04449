"""The encoders of this project's types: a registry of records.

A new encoder is one file here, a line in ENCODERS and, where it has native code, one case in C.
"""

from __future__ import annotations

from gguf_bof4.encoders import absmax, gptq, search
from gguf_bof4.encoders.encoder import Encoder
from gguf_bof4.errors import UserError

ENCODERS: tuple[Encoder, ...] = (absmax.ENCODER, search.ENCODER, gptq.ENCODER)
"""All encoders, in the order of --help and of the benches."""

DEFAULT: Encoder = search.ENCODER
"""The encoder of a conversion that names none."""


def encoder_of(name: str) -> Encoder:
    """The encoder of this name.

    Raises:
        UserError: there is none.
    """
    for encoder in ENCODERS:
        if encoder.name == name:
            return encoder
    raise UserError(f"there is no encoder {name!r}; --encoder takes {' or '.join(e.name for e in ENCODERS)}")
