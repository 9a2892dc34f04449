"""bof4 patch: patch the user's own llama.cpp checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gguf_bof4.ggml_patch.apply import SOURCES_IN_TREE, patch_tree


def patch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A llama.cpp checkout.", show_default=False)],
) -> None:
    """Add the BOF4 types to your own llama.cpp checkout; then build it as before.

    Where any change does not fit the checkout, it stays as it was.
    """
    changed = patch_tree(folder)
    print(f"patched {len(changed)} files of {folder}; the sources of the types are in {folder / SOURCES_IN_TREE}")
    print("build it: cmake -B build && cmake --build build -j")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("patch")(patch)
