"""The registry of encoders, and what is derived from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_bof4.bench.variants import OUR_ENCODERS
from gguf_bof4.convert.options import Options
from gguf_bof4.encoders import DEFAULT, ENCODERS, encoder_of
from gguf_bof4.encoders.encoder import Encoder
from gguf_bof4.errors import UserError
from gguf_bof4.formats import FORMATS

every_encoder = pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: e.name)


def test_names_are_unique_and_found() -> None:
    assert len({encoder.name for encoder in ENCODERS}) == len(ENCODERS)
    assert all(encoder_of(encoder.name) is encoder for encoder in ENCODERS)
    assert encoder_of(Options.encoder) is DEFAULT
    with pytest.raises(UserError, match="no encoder 'best'; --encoder takes absmax or search or gptq"):
        encoder_of("best")


@every_encoder
def test_options_are_checked_by_the_record(encoder: Encoder) -> None:
    text = None if encoder.calibrate is None else "text.txt"
    for fmt in FORMATS:
        if encoder.kernels is None or encoder.kernels in fmt.kernels:
            Options(type=fmt.name, encoder=encoder.name, calibration=text).check()
    if text is None:
        with pytest.raises(UserError, match="--calibration"):
            Options(encoder=encoder.name, calibration="text.txt").check()
    else:
        Options(encoder=encoder.name).check()  # the model writes its own text
    weighted = Options(encoder=encoder.name, calibration=text, imatrix="matrix.gguf")
    if encoder.takes_imatrix:
        weighted.check()
    else:
        with pytest.raises(UserError, match="--imatrix"):
            weighted.check()


@every_encoder
def test_the_bench_measures_every_encoder(encoder: Encoder) -> None:
    assert encoder.name in OUR_ENCODERS


def test_finished_layers_of_encoders_are_apart() -> None:
    assert len({encoder.work_folder(Path("model.gguf")) for encoder in ENCODERS}) == len(ENCODERS)
