"""Finished layers beside the output, so that interrupted work goes on where it stopped.

The folder `.NAME.gptq` holds job.json, which says what the work is; of each finished decoder layer a file with its
encoded tensors; and the activations behind the last of them. A file gets its name when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

from gguf_bof4 import lists as opq
from gguf_bof4.encoders.gptq.encoded import Encoded
from gguf_bof4.errors import UserError

_JOB = "job.json"


@dataclass(frozen=True)
class _About:
    rows: int
    why_not: str | None


class Checkpoint:
    """The work folder of one output.

    Args:
        folder: is made where it is missing.
        job: everything that the result depends on.
        restart: give up work of another job.

    Raises:
        UserError: the folder holds work of another job, or cannot be written to.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], restart: bool) -> None:
        self.folder = folder
        try:
            self._open(json.loads(json.dumps(job)), restart)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error

    def _open(self, job: dict[str, Any], restart: bool) -> None:
        place = self.folder / _JOB
        if place.is_file():
            try:
                old = json.loads(place.read_text(encoding="utf-8"))
            except ValueError:
                old = {}
            if old == job:
                return
            if not restart:
                differ = ", ".join(sorted(k for k in {*old, *job} if old.get(k) != job.get(k)))
                raise UserError(
                    f"{self.folder} holds interrupted work that does not fit this command: {differ} differ. Repeat the "
                    "command that was interrupted, or give up that work: remove the folder, or use --force"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(exist_ok=True)
        partial = place.with_suffix(".part")
        partial.write_text(json.dumps(job, indent=1), encoding="utf-8")
        partial.replace(place)

    def _layer(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"

    def _activations(self, layer: int) -> Path:
        return self.folder / f"activations-{layer:05d}.safetensors"

    def finished(self) -> int:
        """How many layers are done, from the first on."""
        done = 0
        while self._layer(done).is_file():
            done += 1
        return done

    def activations(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What comes out of the last finished layer: float32 [samples, tokens, width], quantized and not."""
        stored = load_file(self._activations(layer))
        return stored["quantized"], stored["unquantized"]

    def save(
        self, layer: int, tensors: Mapping[str, Encoded], hidden: tuple[torch.Tensor, torch.Tensor] | None
    ) -> None:
        """Keep a finished layer, and what comes out of it, which the next one starts from, quantized and not.

        Raises:
            UserError: the disk is full or cannot be written to.
        """
        arrays: dict[str, npt.NDArray[Any]] = {name: t.data for name, t in tensors.items()}
        about = {name: json.dumps(asdict(_About(len(t.data), t.why_not))) for name, t in tensors.items()}
        for name, t in tensors.items():
            if t.outliers is not None:
                arrays[opq.list_name(name)] = t.outliers.packed()
        try:
            if hidden is not None:  # first, so that a layer which counts as finished has its activations
                partial = self.folder / "activations.part"
                save_torch(dict(zip(("quantized", "unquantized"), hidden, strict=True)), partial)
                partial.replace(self._activations(layer))
            partial = self.folder / "layer.part"
            save_file(arrays, partial, about)
            partial.replace(self._layer(layer))
            if layer:
                self._activations(layer - 1).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error.strerror or error}") from error

    def read(self, layer: int, name: str) -> Encoded:
        """A tensor of a finished layer."""
        with safe_open(self._layer(layer), framework="numpy") as file:
            about = _About(**json.loads(file.metadata()[name]))
            outliers = None
            if (companion := opq.list_name(name)) in set(file.keys()):
                packed = file.get_tensor(companion)
                outliers = opq.OutlierList(packed[: about.rows + 1], packed[about.rows + 1 :])
            return Encoded(file.get_tensor(name), outliers, about.why_not)

    def why_not(self, layer: int) -> dict[str, str | None]:
        """The tensors of a finished layer, and why errors were not compensated in them."""
        with safe_open(self._layer(layer), framework="numpy") as file:
            return {name: json.loads(text)["why_not"] for name, text in file.metadata().items()}
