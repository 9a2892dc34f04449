"""What is studied: a model and its texts, loaded when a measurement is missing, and only once."""

from __future__ import annotations

from pathlib import Path

from gguf_bof4.progress import Progress, no_progress
from gguf_bof4.reference_texts import calibration_text, evaluation_text
from gguf_bof4.study.models import Loaded, load, model_name
from gguf_bof4.study.quality import Bench, Calibrated


class Subject:
    """A model, the text that it is judged on, and the calibration text.

    Attributes:
        name: of the model in tables.
        text_name: of the text in tables.
        chunks: of 512 tokens that are judged.
    """

    def __init__(self, source: str, text: Path | None = None, calibration: Path | None = None, chunks: int = 1) -> None:
        """Args:
            source: a Hugging Face folder, a GGUF file, or a name of the reference models.
            text: to judge on; None: the reference text.
            calibration: another text, for importance, variances and codebooks; None: the reference text.

        Raises:
            UserError: there is no such model or text.
        """
        self.name = model_name(source)
        self.text_name = "test" if text is None else model_name(str(text))
        self.chunks = chunks
        self.text, self.calibration = text, calibration
        self._source = source
        self._loaded: Loaded | None = None
        self._calibrated: Calibrated | None = None
        self._bench: Bench | None = None

    def loaded(self) -> Loaded:
        """The model.

        Raises:
            UserError: it cannot be loaded.
        """
        if self._loaded is None:
            self._loaded = load(self._source)
        return self._loaded

    def calibrated(self) -> Calibrated:
        """The model with what is measured on the calibration text.

        Raises:
            UserError: the model cannot be loaded.
        """
        if self._calibrated is None:
            calibration = calibration_text() if self.calibration is None else self.calibration
            self._calibrated = Calibrated(self.loaded(), calibration)
        return self._calibrated

    def bench(self, progress: Progress = no_progress) -> Bench:
        """The model with its distributions on the text.

        Raises:
            UserError: the model cannot be loaded, or the text is too short.
        """
        if self._bench is None:
            text = evaluation_text() if self.text is None else self.text
            self._bench = Bench(self.calibrated(), text, self.chunks, progress)
        return self._bench
