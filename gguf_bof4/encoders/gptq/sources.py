"""What --calibration names: text files, folders of them, and JSON Lines of chats or texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_bof4.errors import UserError

JSON_LINES = (".jsonl", ".ndjson")

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
"""Of chats that name the speaker "from" and what is said "value"."""

_CHAT_KEYS = ("messages", "conversations")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"the calibration text {path} cannot be read: {error.strerror}")


def files_of(source: Path) -> list[Path]:
    """The files of a source: itself, or all files below a folder but hidden ones, in the order of their names.

    Raises:
        UserError: it cannot be read, or is a folder without files.
    """
    if not source.is_dir():
        return [source]
    try:
        below = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    except OSError as error:
        raise _unreadable(source, error) from error
    found = [source / p for p in below if not any(part.startswith(".") for part in p.parts)]
    if not found:
        raise UserError(f"the calibration folder {source} has no files")
    return found


@dataclass(frozen=True)
class TextFile:
    """A file of a source, read."""

    path: Path
    data: bytes


def read_files(source: Path) -> list[TextFile]:
    """The files of a source, read once.

    Raises:
        UserError: one cannot be read.
    """
    found = []
    for path in files_of(source):
        try:
            found.append(TextFile(path, path.read_bytes()))
        except OSError as error:
            raise _unreadable(path, error) from error
    return found


def check_readable(source: Path) -> None:
    """Check that all files of a source can be opened.

    Raises:
        UserError: one cannot be.
    """
    for path in files_of(source):
        try:
            path.open("rb").close()
        except OSError as error:
            raise _unreadable(path, error) from error


def digest(files: Iterable[TextFile]) -> str:
    """A hash of the contents of all files."""
    made = hashlib.sha256()
    for file in files:
        made.update(hashlib.sha256(file.data).digest())
    return made.hexdigest()


def _messages(value: Any) -> list[dict[str, str]] | None:
    """A chat as transformers takes it: {"role": ..., "content": ...}; None where it is none."""
    if not isinstance(value, list) or not value:
        return None
    made = []
    for message in value:
        if not isinstance(message, dict):
            return None
        role = message.get("role", _ROLES.get(str(message.get("from"))))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        made.append({"role": role, "content": content})
    return made


def _text_of(value: Any, tokenizer: Any, where: str) -> str:
    """One line of JSON as the text that the model reads."""
    if isinstance(value, str):
        return value
    keys = _CHAT_KEYS if isinstance(value, dict) else ()
    chat = next((value[key] for key in keys if key in value), value)
    if (messages := _messages(chat)) is None:
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            return str(value["text"])
        raise UserError(
            f'{where} is neither a chat nor a text: give {{"messages": [{{"role": "user", "content": "..."}}, ...]}}, '
            'or {"text": "..."}'
        )
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{where} is a chat, and the tokenizer of the model has no chat template: give plain text")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template may raise anything, in its own words
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: the chat template of the model refuses this chat: {reason}") from error


def _documents(path: Path, text: str, tokenizer: Any) -> Iterable[str]:
    """The texts of a file."""
    if path.suffix.lower() not in JSON_LINES:
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON: {error}") from error
            yield _text_of(value, tokenizer, f"{path}, line {number}")


def tokens_of(files: Iterable[TextFile], tokenizer: Any) -> list[int]:
    """The tokens of a source, without those that the tokenizer puts before every text.

    Args:
        files: UTF-8 texts and files of JSON Lines (.jsonl).
        tokenizer: of transformers; its chat template is applied to chats.

    Raises:
        UserError: a file is no UTF-8 text, a line is no JSON or no chat, or chats have no template.
    """
    tokens: list[int] = []
    for file in files:
        try:
            text = file.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"the calibration text {file.path} is not UTF-8: {error}. Give a plain text file"
            ) from error
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads text files
        for document in _documents(file.path, text, tokenizer):
            tokens += tokenizer(document, add_special_tokens=False, verbose=False).input_ids
    return tokens
