"""Pictures of --plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gguf_bof4.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(figure: Figure, target: Path) -> None:
    """Write a figure in the format that the name ends in.

    Raises:
        UserError: the file cannot be written, or matplotlib does not know the format.
    """
    try:
        figure.savefig(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}. Give another name for --plot") from error
    except ValueError as error:
        raise UserError(f"{target} cannot be drawn: {error}. Give a name that ends in .png, .svg or .pdf") from error
