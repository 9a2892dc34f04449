"""An open model to convert, the same for a GGUF file and a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf

from gguf_bof4.channel_factors import Factors
from gguf_bof4.convert.output import Writer
from gguf_bof4.convert.sources import Source
from gguf_bof4.gguf_files.model import Model, Tensor


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights have not been read yet.

    Attributes:
        path: the GGUF file (the first of its parts) or the folder.
        files: that hold the weights.
        architecture: general.architecture.
        sources: its tensors.
        writer: holds the metadata of the output, and no tensors.
        fixed: types that are not up to the rules, by the names of the tensors.
        lists: outlier lists of the sources, by the names of their weights.
        model: the open GGUF model; None for a folder.
        factors: that the sources are multiplied by, where channels are equalized, by the names of the tensors.
    """

    path: Path
    files: Sequence[Path]
    architecture: str
    sources: Sequence[Source]
    writer: Writer
    fixed: Mapping[str, gguf.GGMLQuantizationType] = field(default_factory=dict)
    lists: Mapping[str, Tensor] = field(default_factory=dict)
    model: Model | None = None
    factors: Mapping[str, Factors] = field(default_factory=dict)
