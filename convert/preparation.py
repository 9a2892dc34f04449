"""What the model has to be run for before it is converted: its own calibration text, and importance matrices."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gguf_bof4.convert.huggingface_folder import weight_files
from gguf_bof4.convert.imatrix import OWN_TEXT_FILE
from gguf_bof4.convert.options import RANDOM_TOKENS, SELF, Options
from gguf_bof4.convert.own_text import RUN_AS, needed_sequences, own_text, read_texts
from gguf_bof4.convert.pipeline import Converted
from gguf_bof4.convert.random_tokens import random_imatrix
from gguf_bof4.convert.report import TensorReport
from gguf_bof4.encoders.gptq.shares import enough_samples
from gguf_bof4.encoders.gptq.sources import check_readable
from gguf_bof4.ggml_patch.programs import make_imatrix
from gguf_bof4.gguf_files.model import open_model, part_files
from gguf_bof4.progress import Progress

Run = Callable[[Path, Path, Path | None, Options, Progress], Converted]
"""Converts a source (its path, the output, the folder to write into or None, options, progress)."""

IMATRIX_SAMPLES = 32
"""Chunks of 512 tokens of the model's own text that an importance matrix is made from."""

_CHUNK = 512

_DESCRIPTIONS = {".json", ".model", ".txt", ".tiktoken", ".jinja", ".py"}
"""Suffixes of the files of a folder that describe the model and its tokenizer."""


def _files(source: Path) -> Sequence[Path]:
    """All that the model and its tokenizer depend on."""
    if not source.is_dir():
        return part_files(source)
    descriptions = (p for p in source.iterdir() if p.is_file() and p.suffix in _DESCRIPTIONS)
    return [*weight_files(source), *descriptions]


def self_text(
    source: Path, samples: int, length: int, make_runnable: Callable[[], Path], threads: int, progress: Progress
) -> Path:
    """The text that a model writes, of at least so many samples of `length` tokens: from the cache, or made.

    Args:
        source: a GGUF file or a Hugging Face folder.
        make_runnable: gives the model as a GGUF file that llama.cpp runs fast.

    Raises:
        UserError: the model cannot write text.
    """
    return own_text(source, _files(source), needed_sequences(samples), length, make_runnable, threads, progress)


def check_sources(texts: Sequence[str]) -> None:
    """Check calibration texts before time is spent on the model's own.

    Raises:
        UserError: one cannot be read.
    """
    for text in texts:
        if text != SELF:
            check_readable(Path(text))


def with_own_text(texts: Sequence[str], samples: int, write: Callable[[int], Path]) -> tuple[str, ...]:
    """Calibration texts with a path in the place of SELF.

    Args:
        samples: of all texts, in equal shares.
        write: gives the model's own text, of at least so many samples.
    """
    if SELF not in texts:
        return tuple(texts)
    path = write(-(-samples // len(texts)) * list(texts).count(SELF))
    return tuple(str(path) if text == SELF else text for text in texts)


def needed_samples(options: Options, tensors: Sequence[TensorReport]) -> int:
    """Samples of the calibration texts that an encoder which runs the model reads, at most.

    Args:
        tensors: of the model, of which the widest layer counts.
    """
    widest = max((t.shape[-1] for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1), default=1)
    samples = options.samples or enough_samples(widest, options.sample_length)
    return max(samples, options.refine_samples) if options.refine else samples


@dataclass
class _Preparation:
    """The model, and files made of it in a temporary folder.

    Attributes:
        tensors: of a dry run.
    """

    source: Path
    tensors: Sequence[TensorReport]
    options: Options
    folder: Path
    run: Run
    progress: Progress

    @cached_property
    def fast(self) -> Path:
        """The model as a GGUF file that has several times the speed of F16 in products of few columns."""
        target = self.folder / "fast.gguf"
        self.run(self.source, target, self.folder, Options(type=RUN_AS, threads=self.options.threads), self.progress)
        return target

    @property
    def runnable(self) -> Path:
        """The model as a GGUF file: itself, or made of the folder."""
        # not resolved: the target of a symbolic link, such as a blob of a cache, may lack the name of a part
        return self.fast if self.source.is_dir() else self.source.absolute()

    def text(self, samples: int, length: int) -> Path:
        """The model's own text, of at least so many samples of `length` tokens."""
        return self_text(self.source, samples, length, lambda: self.fast, self.options.threads, self.progress)

    def calibration(self) -> tuple[str, ...]:
        """The calibration texts, the model's own among them."""
        options, texts = self.options, self.options.calibration_sources
        check_sources(texts)
        samples = needed_samples(options, self.tensors)
        return with_own_text(texts, samples, lambda own: self.text(own, options.sample_length))

    def imatrix(self) -> Path:
        """The importance matrix that the options want to be made."""
        threads = self.options.threads
        if self.options.imatrix == RANDOM_TOKENS:
            return random_imatrix(self.runnable, self.folder, threads, self.progress)
        text, target = self.folder / OWN_TEXT_FILE, self.folder / "own-text.gguf"
        model = open_model(self.runnable)
        longest = model.integer(f"{model.value('general.architecture')}.context_length") or _CHUNK
        length = min(_CHUNK, longest)
        own = self.text(-(-IMATRIX_SAMPLES * _CHUNK // length), length)
        text.write_text(read_texts(own), encoding="utf-8")
        make_imatrix(
            self.runnable, Path(text.name), Path(target.name), IMATRIX_SAMPLES, threads,
            remedy="Convert without --imatrix, or give it a file that was made elsewhere.", folder=self.folder,
            special=True, progress=self.progress,
        )  # fmt: skip
        return target


@contextlib.contextmanager
def prepared(options: Options, source: Path, run: Run, progress: Progress) -> Iterator[Options]:
    """The options, with paths instead of what is to be made by running the model. In a dry run nothing is made.

    Args:
        run: converts the source; first dry, which says what is wrong before the model is run.

    Raises:
        UserError: the conversion is not possible, the model cannot write text, or llama.cpp cannot run it.
    """
    own, made = SELF in options.calibration_sources, options.imatrix in {RANDOM_TOKENS, SELF}
    if options.dry_run or not (own or made):
        yield options
        return
    with tempfile.TemporaryDirectory(prefix="bof4-convert-") as folder:
        tried = run(source, Path(folder) / "unused.gguf", None, replace(options, dry_run=True), progress)
        preparation = _Preparation(source, tried.tensors, options, Path(folder), run, progress)
        yield replace(
            options,
            calibration=preparation.calibration() if own else options.calibration,
            imatrix=str(preparation.imatrix()) if made else options.imatrix,
        )
