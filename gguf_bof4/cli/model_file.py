"""The argument FILE of commands that read or run a GGUF file: a path, or a file of a repository on a model hub."""

from __future__ import annotations

from pathlib import Path

from gguf_bof4.hub import FORM, PREFIX, model_path
from gguf_bof4.progress import progress_bar

HELP = f"A GGUF file (the first of its parts), or one on a model hub: {FORM}."


def local_path(text: str) -> Path:
    """The file that the argument names; one on a model hub is downloaded, with a progress bar, into the hub's cache.

    Raises:
        UserError: the hub has no such file, or it cannot be downloaded. That a path exists is not checked.
    """
    if not text.startswith(PREFIX):
        return Path(text)
    with progress_bar("asking the hub") as progress:
        return model_path(text, progress)
