"""Errors caused by user input, and packages that the base installation does without."""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """The message names the file, the tensor where there is one, and the remedy.

    The command line prints it and exits with 1; any other exception is a bug.
    """


class TooLargeWeightError(ValueError):
    """A weight is finite, but too large for the scales of the type, or for the BF16 of an outlier list.

    Attributes:
        position: index of the first such weight, one number a dimension, rows before columns.
    """

    def __init__(self, position: tuple[int, ...]) -> None:
        super().__init__(f"weight {list(position)} is too large")
        self.position = position


def require(extra: str, purpose: str, *packages: str) -> None:
    """Check that optional Python packages are installed, without importing them.

    Args:
        extra: of this distribution, which installs them: "hf", "codebook" or "bench".
        purpose: what needs them, for the message.
        packages: names as they are imported.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{purpose} needs {', '.join(missing)}: pip install 'gguf-bof4[{extra}]'")
