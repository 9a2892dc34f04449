"""The folder that keeps what was measured of a model, and a fingerprint that says of which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguf_bof4.download import sha256_of
from gguf_bof4.errors import UserError
from gguf_bof4.paths import cache_root, write_text

_FINGERPRINT = "search.json"


def content_key(paths: Sequence[Path]) -> str:
    """A hash of the contents of files.

    Raises:
        UserError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(sha256_of(path).encode())
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def default_folder(model: Path, measured: Mapping[str, object]) -> Path:
    """The folder in the cache of what was measured in this way."""
    key = hashlib.blake2b(json.dumps(dict(measured), sort_keys=True).encode(), digest_size=8).hexdigest()
    return cache_root() / "search" / f"{model.stem}-{key}"


def open_folder(folder: Path, model: Path, measured: Mapping[str, object]) -> None:
    """Make the folder, or check that what it has was measured of the same model in the same way.

    Args:
        model: for messages.
        measured: of what and how, for JSON: "model" and others.

    Raises:
        UserError: it was not, or the folder cannot be used.
    """
    path = folder / _FINGERPRINT
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(folder.iterdir()):
                raise UserError(f"{folder} is not empty, and not of bof4 search: give --work another folder")
            write_text(path, json.dumps(dict(measured), indent=1) + "\n")
            return
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be used: {error.strerror}. Give --work another folder") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: remove the folder {folder}, or give --work another one") from error
    if not isinstance(found, dict) or found.get("model") != measured["model"]:
        raise UserError(f"{folder} has losses of another model than {model}: give --work another folder")
    changed = [key for key in measured if found.get(key) != measured[key]]
    if changed:
        raise UserError(
            f"{folder} has losses of {model} with another {changed[0]}: give --work another folder, or the same options"
        )
