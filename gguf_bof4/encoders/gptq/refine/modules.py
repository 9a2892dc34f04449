"""The linear modules of a layer whose weights are encoded tensors."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gguf_bof4.encoders.encoder import Target
from gguf_bof4.encoders.gptq.model import assign_linear, find_linear_rows
from gguf_bof4.formats import FORMAT_OF_TYPE_ID, Format

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodedModule:
    """A linear module that has the weights of an encoded tensor.

    Attributes:
        layer: the decoder layer that it belongs to.
        path: its name in the layer.
        target: the tensor.
        rows: its unquantized weights, float32 [rows, n].
        places: for each of these rows the row of the module, int64 [rows].
    """

    layer: nn.Module
    path: str
    target: Target
    rows: Floats
    places: npt.NDArray[np.int64]

    @property
    def format(self) -> Format | None:
        """The tensor's type, where it is one of this project's."""
        return FORMAT_OF_TYPE_ID.get(int(self.target.qtype))

    @property
    def bias(self) -> nn.Parameter | None:
        bias = self.layer.get_submodule(self.path).bias
        assert bias is None or isinstance(bias, nn.Parameter)
        return bias

    def assign(self, decoded: Floats, device: torch.device) -> None:
        """Set the weights of the module.

        Args:
            decoded: float32 [rows, n], in the order of the tensor.
        """
        assign_linear(self.layer, self.path, decoded, self.places, device)

    def replace(self, module: nn.Module) -> None:
        """Put another module in its place."""
        parent, _, leaf = self.path.rpartition(".")
        setattr(self.layer.get_submodule(parent), leaf, module)


def encoded_modules(
    layer: nn.Module, names: Mapping[str, str], targets: Mapping[str, Target], encoded: Container[str]
) -> Iterator[EncodedModule]:
    """The modules of a layer whose weights are encoded tensors, row for row.

    Args:
        names: of the tensors, by those of the modules.
        targets: of the calibration, by name.
        encoded: names of those that are encoded.
    """
    for path, name in names.items():
        if name not in encoded:
            continue
        rows = targets[name].read()
        places = find_linear_rows(layer.get_submodule(path), rows)
        if places is not None:
            yield EncodedModule(layer, path, targets[name], rows, places)
