"""The encoder gptq: runs the model layer by layer and quantizes each layer for the inputs that it gets."""

from __future__ import annotations

from collections.abc import Mapping

from gguf_bof4.encoders.encoder import Calibration, Encoder, Finished
from gguf_bof4.encoders.gptq.layouts import STOCK_TYPES
from gguf_bof4.errors import require
from gguf_bof4.formats import Kernels
from gguf_bof4.native import BlockEncoder

RECIPE = 4


def _calibrate(job: Calibration) -> Mapping[str, Finished]:
    require("hf", "--encoder gptq", "torch", "transformers", "safetensors")
    from gguf_bof4.encoders.gptq.driver import calibrate, with_precision
    from gguf_bof4.encoders.gptq.weights import EqualizedWeights, FolderWeights, GgufWeights, Weights

    weights: Weights = FolderWeights(job.source, job.files) if job.model is None else GgufWeights(job.model)
    if job.factors:
        weights = EqualizedWeights(weights, job.factors, job.architecture)
    job = with_precision(job)
    finished = calibrate(job, weights, RECIPE)
    if job.refinement is None:
        return finished
    from gguf_bof4.encoders.gptq.refine.driver import refine

    return refine(job, job.refinement, weights, finished)


ENCODER = Encoder(
    name="gptq",
    help="compensates errors for the inputs of each layer, for which it runs the model on the text of --calibration",
    block_encoder=BlockEncoder.SEARCH,
    takes_imatrix=True,
    kernels=Kernels.GPTQ,
    stock_types=STOCK_TYPES,
    calibrate=_calibrate,
    recipe=RECIPE,
)
