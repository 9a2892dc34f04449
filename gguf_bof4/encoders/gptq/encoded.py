"""What calibration hands to the converter, and where it keeps its work until then. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguf_bof4 import lists as opq


def work_folder(output: Path) -> Path:
    """Where the work on an output is kept."""
    return output.with_name(f".{output.name}.gptq")


@dataclass(frozen=True)
class Encoded:
    """A tensor that is ready to be written.

    Attributes:
        data: uint8 [rows, bytes of a row], rows counted over all dimensions above the first.
        outliers: None where it has no list.
        why_not: why errors were not compensated in it; None where they were.
    """

    data: npt.NDArray[np.uint8]
    outliers: opq.OutlierList | None
    why_not: str | None = None
