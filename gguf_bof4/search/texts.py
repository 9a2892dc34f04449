"""The calibration texts of a search, as `bof4 convert --calibration` has them: as samples, and for llama-imatrix."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_bof4.convert import convert
from gguf_bof4.convert.own_text import RUN_AS
from gguf_bof4.convert.preparation import self_text, with_own_text
from gguf_bof4.encoders.gptq.sources import JSON_LINES, files_of, read_files, tokens_of
from gguf_bof4.errors import UserError, require
from gguf_bof4.paths import write_text
from gguf_bof4.progress import Progress

if TYPE_CHECKING:
    import torch


def resolved(
    model: Path, sources: Sequence[str], samples: int, length: int, threads: int, progress: Progress
) -> tuple[Path, ...]:
    """Files and folders of the sources; in the place of "self" the text that the model wrote, or writes now.

    Args:
        model: a GGUF file or a Hugging Face folder.
        samples: of `length` tokens, in all.

    Raises:
        UserError: the model cannot write text.
    """

    def written(own: int) -> Path:
        with tempfile.TemporaryDirectory(prefix="bof4-search-") as folder:

            def runnable() -> Path:
                target = Path(folder) / "fast.gguf"
                convert(model, target, type=RUN_AS, threads=threads)
                return target

            return self_text(model, own, length, runnable, threads, progress)

    return tuple(map(Path, with_own_text(sources, samples, written)))


def files_of_all(texts: Sequence[Path]) -> list[Path]:
    """All files of the sources, in their order."""
    return [path for text in texts for path in files_of(text)]


def single_text(texts: Sequence[Path]) -> Path | None:
    """The text, where there is one and it is plain: llama.cpp's programs read it as it is."""
    (text,) = texts if len(texts) == 1 else (None,)
    return None if text is None or text.is_dir() or text.suffix.lower() in JSON_LINES else text


def samples_of(tokenizer: Any, texts: Sequence[Path], count: int, length: int) -> torch.Tensor:
    """Samples spread evenly over the texts, in equal shares: int64 [samples, length], fewer where they are short.

    Args:
        tokenizer: of transformers.

    Raises:
        UserError: a text cannot be read, or has less than one sample; or there are more texts than samples.
    """
    from gguf_bof4.encoders.gptq.samples import make_samples

    if len(texts) > count:
        raise UserError(f"{len(texts)} calibration texts have no equal shares of {count} --chunks: give more of them")
    sources = [(text, tokens_of(read_files(text), tokenizer)) for text in dict.fromkeys(texts)]
    for text, tokens in sources:
        if len(tokens) < length:
            raise UserError(
                f"the calibration text {text} has {len(tokens)} tokens, less than one chunk of {length}: give a longer "
                "text"
            )
    return make_samples(tokenizer, sources, count, length).tokens


def write_for_imatrix(tokenizer: Any, texts: Sequence[Path], count: int, length: int, target: Path) -> None:
    """Write samples as one text for llama-imatrix, special tokens by their names.

    Raises:
        UserError: as `samples_of`.
    """
    from gguf_bof4.encoders.gptq.samples import beginning

    first = len(beginning(tokenizer))
    rows = samples_of(tokenizer, texts, count, length)[:, first:].tolist()
    write_text(target, "".join(tokenizer.decode(row, skip_special_tokens=False) for row in rows))


def require_tokenizer() -> None:
    """Raise UserError where transformers is missing, which reads chats and mixes texts."""
    require("hf", "several calibration texts, folders, chats and the model's own text", "torch", "transformers")
