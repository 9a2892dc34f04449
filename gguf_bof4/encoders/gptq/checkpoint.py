"""Finished layers beside the output, from which an interrupted job resumes.

The folder `.NAME.gptq` has job.json, which holds everything that the result depends on; a file with the encoded tensors
of each finished decoder layer; and the activations after the last of them. A file gets its name when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

from gguf_bof4.encoders.encoder import Encoded
from gguf_bof4.errors import UserError
from gguf_bof4.lists import OutlierList, list_name
from gguf_bof4.paths import atomic_path, write_text

_JOB = "job.json"
_NOTHING = "nothing"


@dataclass(frozen=True)
class _About:
    rows: int
    why_not: str | None


class Checkpoint:
    """The work folder of one output.

    Args:
        folder: is made where it is missing.
        job: everything that the result depends on, as JSON.
        restart: discard finished layers of another job.

    Raises:
        UserError: the folder holds layers of another job, or cannot be written to.
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
                    f"{self.folder} holds layers of an interrupted job with other options: {differ} differ. Repeat the "
                    "interrupted command to resume it, or discard its layers: remove the folder, or use --force"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(exist_ok=True)
        write_text(place, json.dumps(job, indent=1))

    def _layer(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"

    def _activations(self, layer: int) -> Path:
        return self.folder / f"activations-{layer:05d}.safetensors"

    def finished(self) -> int:
        """Number of finished layers, from the first on."""
        done = 0
        while self._layer(done).is_file():
            done += 1
        return done

    def activations(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of a finished layer in the quantized and the unquantized model, float32 [samples, tokens, width]."""
        stored = load_file(self._activations(layer))
        return stored["quantized"], stored["unquantized"]

    def save(
        self, layer: int, tensors: Mapping[str, Encoded], hidden: tuple[torch.Tensor, torch.Tensor] | None
    ) -> None:
        """Keep a finished layer.

        Args:
            tensors: of the layer, encoded, by name.
            hidden: its outputs, the inputs of the next layer, in the quantized and the unquantized model, float32
                [samples, tokens, width]; None for the last layer.

        Raises:
            UserError: the disk is full or cannot be written to.
        """
        arrays: dict[str, npt.NDArray[Any]] = {name: t.data for name, t in tensors.items()}
        about = {name: json.dumps(asdict(_About(len(t.data), t.why_not))) for name, t in tensors.items()}
        for name, t in tensors.items():
            if t.outliers is not None:
                arrays[list_name(name)] = t.outliers.packed()
        if not arrays:  # all of its tensors have other types; safetensors cannot read a file without tensors
            arrays[_NOTHING] = np.zeros(1, dtype=np.uint8)
        try:
            if hidden is not None:  # first, so that a layer which counts as finished has its activations
                with atomic_path(self._activations(layer)) as partial:
                    save_torch(dict(zip(("quantized", "unquantized"), hidden, strict=True)), partial)
            with atomic_path(self._layer(layer)) as partial:
                save_file(arrays, partial, about)
            if layer:
                self._activations(layer - 1).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:  # the library hides the error of the system in a text
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(
                f"{self.folder} cannot be written: {reason}. Finished layers are kept: make room where the disk is "
                "full, and repeat the command to resume from them"
            ) from error

    def read(self, layer: int, name: str) -> Encoded:
        """A tensor of a finished layer."""
        with safe_open(self._layer(layer), framework="numpy") as file:
            about = _About(**json.loads(file.metadata()[name]))
            outliers = None
            if (companion := list_name(name)) in set(file.keys()):
                packed = file.get_tensor(companion)
                outliers = OutlierList(packed[: about.rows + 1], packed[about.rows + 1 :])
            return Encoded(file.get_tensor(name), outliers, about.why_not)

    def why_not(self, layer: int) -> dict[str, str | None]:
        """The tensors of a finished layer, and why errors were not compensated in them."""
        with safe_open(self._layer(layer), framework="numpy") as file:
            return {name: json.loads(text)["why_not"] for name, text in (file.metadata() or {}).items()}
