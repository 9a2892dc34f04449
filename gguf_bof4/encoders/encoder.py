"""What an encoder is: its record, and what it exchanges with the converter when it runs the model. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.channel_factors import Factors
from gguf_bof4.formats import FORMAT_OF_TYPE_ID, Kernels
from gguf_bof4.gguf_files.model import Model
from gguf_bof4.lists import OutlierList
from gguf_bof4.native import BlockEncoder
from gguf_bof4.outlier_choice import OutlierRule
from gguf_bof4.progress import Progress

Floats = npt.NDArray[np.float32]


def too_large_message(path: Path, name: str, where: Sequence[int], qtype: gguf.GGMLQuantizationType) -> str:
    """Why a tensor cannot be encoded.

    Args:
        path: of the source.
        where: the index of the weight that is too large, rows before columns.
        qtype: the type that it is too large for.
    """
    # an outlier of a type of this project may be too large for BF16, too
    needs_f32 = qtype == gguf.GGMLQuantizationType.BF16 or int(qtype) in FORMAT_OF_TYPE_ID
    wider = "f32" if needs_f32 else "bf16"
    for_all = "" if needs_f32 else " (--type BF16 for all matrices)"
    return (
        f"{path}: tensor {name} has a weight at {list(where)} that is too large for {qtype.name}; "
        f"give it {wider.upper()}: --tensor-type '^{name}$={wider}'{for_all}"
    )


@dataclass(frozen=True)
class Encoded:
    """A tensor that is ready to be written.

    Attributes:
        data: uint8 [rows, bytes of a row], rows counted over all dimensions above the first.
        outliers: None where it has no list.
        why_not: why errors were not compensated in it; None where they were.
    """

    data: npt.NDArray[np.uint8]
    outliers: OutlierList | None
    why_not: str | None = None


@dataclass(frozen=True)
class Target:
    """A tensor of the output that is to be encoded.

    Attributes:
        shape: rows before columns.
        rule: by which its outliers are chosen; None where it gets no list.
        read: gives its weights, float32 [rows, n], all finite.
        encode_blocks: encodes it by the block encoder, weighted by an importance of float32 [n], or by nothing.
    """

    name: str
    qtype: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    rule: OutlierRule | None
    read: Callable[[], Floats]
    encode_blocks: Callable[[Floats | None], tuple[npt.NDArray[np.uint8], OutlierList | None]]

    @property
    def n_weights(self) -> int:
        """Weights of the tensor."""
        return prod(self.shape)

    @property
    def layer(self) -> int | None:
        """The decoder layer that it belongs to."""
        match = re.match(r"blk\.(\d+)\.", self.name)
        return None if match is None else int(match[1])


PRECISIONS = ("auto", "f32", "bf16")
"""In which an encoder that runs the model multiplies matrices; auto: the one that the processor multiplies faster."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How the model reads the calibration text.

    Attributes:
        texts: paths of the calibration texts, files or folders, in equal shares.
        samples: number of windows of it; None: as many as the widest layer needs.
        length: tokens in each window.
        damping: added to the diagonal of the Hessian, as a fraction of the mean diagonal.
        act_order: blocks of columns with large inputs are quantized first.
        token_weights: tokens count by how much the model's loss depends on them.
        device: as torch names it.
        precision: one of PRECISIONS.
        threads: 0 means all cores.
    """

    texts: tuple[Path, ...]
    samples: int | None
    length: int
    damping: float
    act_order: bool
    token_weights: bool
    device: str
    precision: str
    threads: int = 0


ROUNDING = "rounding"
"""Codes and scales are trained, layer by layer, until the outputs of the layer are those of the unquantized one."""

SCALES = "scales"
"""Scales and norms of the whole model are trained until its next tokens are those of the unquantized one."""

REFINEMENTS = (ROUNDING, SCALES)
"""The parts of a refinement, in the order in which they are done."""


REFINED_SAMPLES = 256
"""Samples of the calibration texts that refinement trains on and judges by, at most, where nothing else is said."""

LEAST_REFINED_SAMPLES = 4
"""Fewer judge nothing."""


@dataclass(frozen=True)
class Refinement:
    """How a model is trained after it was encoded.

    Attributes:
        minutes: of training, of all parts together.
        steps: of training in the place of minutes, of each layer (ROUNDING) and of the model (SCALES): the result does
            not depend on the speed of the machine.
        parts: some of REFINEMENTS, in their order.
        samples: of the calibration texts, at most, those that judge among them.
    """

    minutes: float
    steps: int | None = None
    parts: tuple[str, ...] = (ROUNDING,)
    samples: int = REFINED_SAMPLES


@dataclass(frozen=True)
class Calibration:
    """A model to run on a calibration text, and the tensors to encode.

    Attributes:
        source: the GGUF file (the first of its parts) or the Hugging Face folder.
        files: that hold its weights.
        model: the open GGUF model; None for a folder.
        architecture: general.architecture.
        folder: where finished layers are kept until the output is complete.
        restart: discard finished layers of a job with other options.
        progress: called with the current step, weights done and weights in all.
        refinement: None: encoded tensors stay as they are.
        vectors: gives the vectors of the output in F32, float32 [n], by name; refinement trains norms among them.
        factors: that tensors of the model are multiplied by, by name; `targets` and `vectors` have them.
    """

    source: Path
    files: Sequence[Path]
    model: Model | None
    architecture: str
    targets: Sequence[Target]
    settings: CalibrationSettings
    folder: Path
    restart: bool
    progress: Progress
    refinement: Refinement | None = None
    vectors: Mapping[str, Callable[[], Floats]] = field(default_factory=dict)
    factors: Mapping[str, Factors] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """What calibration has done with a tensor.

    Attributes:
        read: gives the encoded tensor; None where it is to be encoded by the block encoder.
        why_not: why errors were not compensated in it; None where they were.
        is_refined: refinement has changed it.
    """

    read: Callable[[], Encoded] | None
    why_not: str | None
    is_refined: bool = False


@dataclass(frozen=True)
class Encoder:
    """One way to encode tensors in this project's types, and by calibration in types of llama.cpp.

    Attributes:
        name: as --encoder takes it.
        help: what it does, for --help: a clause without a full stop.
        block_encoder: native encoder of tensors that `calibrate` does not encode.
        takes_imatrix: it weights errors by an importance matrix where one is given.
        kernels: what has to be implemented for a type of this project; None: nothing beyond portable code.
        stock_types: llama.cpp's own types that `calibrate` encodes, too.
        calibrate: runs the model on a calibration text and returns what it has done with the targets, by name; None
            where the encoder needs no text. Raises UserError.
        recipe: to be raised with every change of its results: interrupted jobs of another recipe are not resumed, and
            rows of the benches of another recipe are measured again. None where results do not change.
    """

    name: str
    help: str
    block_encoder: BlockEncoder
    takes_imatrix: bool = False
    kernels: Kernels | None = None
    stock_types: frozenset[gguf.GGMLQuantizationType] = frozenset()
    calibrate: Callable[[Calibration], Mapping[str, Finished]] | None = None
    recipe: int | None = None

    def can_encode(self, qtype: gguf.GGMLQuantizationType) -> bool:
        """Is this a type that it encodes itself?"""
        fmt = FORMAT_OF_TYPE_ID.get(int(qtype))
        if fmt is None:
            return qtype in self.stock_types
        return self.kernels is None or self.kernels in fmt.kernels

    def work_folder(self, output: Path) -> Path:
        """Where finished layers are kept until `output` is complete."""
        return output.with_name(f".{output.name}.{self.name}")
