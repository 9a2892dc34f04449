"""An importance matrix without a text, from the inputs of each matrix when the model reads random tokens.

Which columns have large inputs depends mostly on the model and little on the text, so random tokens of its vocabulary
give most of what a text gives (bench/NOTES.md). No text has to be chosen, and none can be favoured.
"""

from __future__ import annotations

import random
from pathlib import Path

from gguf_bof4.convert.imatrix import RANDOM_TOKENS_FILE
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.programs import make_imatrix
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.progress import Progress, no_progress

CHUNKS = 8
"""Chunks of 512 tokens: the mean square of an input is then known to a few percent."""

_NORMAL = 1
_SEED = 2505


def _bytes_of_letters() -> dict[str, int]:
    """The letters of byte-level vocabularies (GPT-2), and the bytes they stand for; printable bytes are themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def words(model: Model) -> list[str]:
    """The printable ones of the ordinary tokens of a model's vocabulary, as text.

    Raises:
        UserError: the file has no vocabulary, or no printable token in it.
    """
    # a token that is no UTF-8 gets a replacement character, and is left out for it
    tokens = model.strings("tokenizer.ggml.tokens", errors="replace")
    kinds = model.integers("tokenizer.ggml.token_type")
    if not tokens:
        raise UserError(f"{model.path} has no vocabulary to draw random tokens from: give --imatrix a file")
    if kinds is not None and len(kinds) != len(tokens):
        raise UserError(f"{model.path} is damaged: it has {len(tokens)} tokens and {len(kinds)} types of tokens")
    letters = _bytes_of_letters() if model.value("tokenizer.ggml.model") == "gpt2" else None
    found = []
    for token, kind in zip(tokens, kinds or [_NORMAL] * len(tokens), strict=True):
        if kind != _NORMAL:
            continue
        if letters is None:
            text = token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        elif all(letter in letters for letter in token):
            text = bytes(letters[letter] for letter in token).decode(errors="replace")
        else:
            text = token
        if text.strip() and text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text:
            found.append(text)
    if not found:
        raise UserError(f"{model.path} has no printable token in its vocabulary: give --imatrix a file")
    return found


def random_imatrix(source: Path, folder: Path, threads: int, progress: Progress = no_progress) -> Path:
    """The importance matrix of a GGUF file on random tokens, in `folder`.

    Raises:
        UserError: the file has no vocabulary, or llama-imatrix cannot run it.
    """
    # 1.5 times as many as needed, because adjacent ones may be tokenized as one
    vocabulary, generator = words(open_model(source)), random.Random(_SEED)
    text = folder / RANDOM_TOKENS_FILE  # llama-imatrix records the name as the dataset
    text.write_text("".join(generator.choices(vocabulary, k=CHUNKS * 512 * 3 // 2)), encoding="utf-8")
    target = folder / "random-tokens.gguf"
    make_imatrix(
        source, Path(text.name), Path(target.name), CHUNKS, threads,
        remedy="Convert without --imatrix, or give it a file that was made elsewhere.", folder=folder,
        progress=progress,
    )  # fmt: skip
    return target
