"""What a search has before it measures: the unquantized file, the folder of its measurements, an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.progress import duration_text
from gguf_bof4.search import run, work


@dataclass(frozen=True)
class Prepared:
    """A model that can be measured.

    Attributes:
        model: unquantized.
        folder: that keeps its measurements.
        fingerprint: of its contents, and of how it is measured.
    """

    model: Model
    settings: run.Settings
    folder: Path
    fingerprint: Mapping[str, object]

    @property
    def estimate(self) -> str | None:
        """How long the measurements take that are missing; None: all are there."""
        steps = run.estimated_seconds(self.model, self.settings, self.folder)
        if not steps:
            return None
        parts = ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in steps.items())
        return f"about {duration_text(sum(steps.values()))} ({parts}); kept in {self.folder}"


def prepare(path: Path, settings: run.Settings, work_folder: Path | None = None) -> Prepared:
    """Open the model, and the folder of its measurements.

    Args:
        path: a GGUF file, or a Hugging Face folder.
        work_folder: None: in the cache, by the contents of the model and how it is measured.

    Raises:
        UserError: the folder has other measurements, or the model cannot be converted.
    """
    fingerprint = run.fingerprint(path, settings)
    folder = work_folder or work.default_folder(path, fingerprint)
    work.open_folder(folder, path, fingerprint)
    return Prepared(open_model(run.unquantized(path, folder)), settings, folder, fingerprint)
