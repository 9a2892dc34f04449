"""Calibration text that the model itself writes, so that none has to be chosen: samples of its own distribution.

The model is run in a type that is fast and hardly changes the distribution, from its start token on. Texts are kept in
the cache, by the contents of the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gguf_bof4.download import sha256_of
from gguf_bof4.errors import UserError
from gguf_bof4.native import NativeError, Writer
from gguf_bof4.paths import atomic_path, cache_root
from gguf_bof4.progress import NOTE, Progress, duration_text

RUN_AS = "Q6_K"
"""The type that the model is run in: the repacked kernels multiply it by 32 columns twice as fast as Q8_0's, to which
matrices fall back whose rows do not divide into 256."""

RECIPE = 2
"""Part of the cache's key: to be raised with every change of the texts."""

SEED = 2505

AT_ONCE = 32
"""Sequences that are written at once: enough that the arithmetic, not reading the weights, takes the time, and few
enough that their keys and values stay small."""

_MARGIN = 1.0625
"""Tokens written over tokens needed: the tokenizer makes fewer of the same text."""

_SHORTEST = 8
"""Tokens of a text, on average, below which the model does not write at all."""

_TIMED = 16
"""Tokens of each sequence after which the time of the rest is estimated."""


def needed_sequences(samples: int) -> int:
    """Sequences as long as a sample that hold this many samples."""
    return math.ceil(samples * _MARGIN)


def write_texts(model: Path, sequences: int, length: int, threads: int, progress: Progress) -> list[str]:
    """Texts that a model writes.

    Args:
        model: a GGUF file that llama.cpp runs.
        sequences: number of runs of tokens.
        length: tokens in each; a run of them may be several texts.
        progress: called with the tokens done and in all; first with an estimate of the time.

    Returns:
        The texts in the order of the sequences; special tokens by their names.

    Raises:
        UserError: the model cannot write text.
    """
    waves = math.ceil(sequences / AT_ONCE)
    at_once = math.ceil(sequences / waves)
    steps, step = waves * (length - 1), "the model writes its calibration text"
    texts: list[list[list[int]]] = [[[]] for _ in range(at_once)]
    progress(step, 0, steps * at_once)
    with Writer(model, at_once, length, SEED, threads) as writer:
        started = time.monotonic()
        for done in range(steps):
            tokens, ended = writer.next()
            for own, token, end in zip(texts, tokens.tolist(), ended, strict=True):
                own[-1].append(token)
                if end:
                    own.append([])
            if done + 1 == _TIMED < steps:
                seconds = (time.monotonic() - started) * steps / _TIMED
                size = f"{waves * at_once} runs of {length} tokens"
                progress(f"about {duration_text(seconds)}: the model writes {size} to calibrate with", 0, NOTE)
            progress(step, (done + 1) * at_once, steps * at_once)
        start = [] if (token := writer.visible_start()) is None else [token]
        written = [text for own in texts for text in own if text]
        found = [writer.text([*start, *text]) for text in written]
    if steps * at_once < _SHORTEST * len(written):
        raise NativeError(f"it ends its texts after {steps * at_once / len(written):.1f} tokens on average")
    if not "".join(found).strip():
        raise NativeError("it writes nothing but blanks")
    return found


def _key(files: Sequence[Path], sequences: int, length: int) -> str:
    contents = [[path.name, sha256_of(path)] for path in sorted(files)]
    return hashlib.sha256(json.dumps([RECIPE, SEED, AT_ONCE, sequences, length, contents]).encode()).hexdigest()[:16]


def own_text(
    source: Path,
    files: Sequence[Path],
    sequences: int,
    length: int,
    make_runnable: Callable[[], Path],
    threads: int,
    progress: Progress,
) -> Path:
    """A file of JSON Lines with the texts that a model writes, from the cache or made.

    Args:
        source: the GGUF file or the Hugging Face folder, for messages.
        files: all that the model depends on.
        sequences: number of runs of tokens.
        length: tokens in each.
        make_runnable: gives the model as a GGUF file that llama.cpp runs fast.

    Raises:
        UserError: the model cannot write text.
    """
    progress("looking for the text that the model wrote before", 0, 0)
    target = cache_root() / "own-texts" / f"self-{_key(files, sequences, length)}.jsonl"
    if not target.is_file():
        try:
            texts = write_texts(make_runnable(), sequences, length, threads, progress)
        except NativeError as error:
            raise UserError(
                f"{source} cannot write a calibration text of its own: {error}. Give texts: --calibration FILE"
            ) from error
        with atomic_path(target) as partial:
            partial.write_text(
                "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
            )
    return target


def read_texts(path: Path) -> str:
    """The texts of such a file, one behind the other."""
    return "".join(str(json.loads(line)["text"]) for line in path.read_text(encoding="utf-8").splitlines())
