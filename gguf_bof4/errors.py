"""Errors caused by user input or by the machine, and packages that the base installation does without."""

from __future__ import annotations

import errno
import importlib.util

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a write that found no room: a full disk, a quota, a limit on the size of files."""

_OF_THE_MACHINE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.EBUSY),
    }
)
"""Error numbers that say something about the user's files and rights, and nothing about this program."""

_MEMORY_TEXTS = ("std::bad_alloc", "can't allocate memory", "CUDA out of memory")
"""How C++ and PyTorch say in a RuntimeError that memory ran out."""


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


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


def as_user_error(error: BaseException) -> UserError | None:
    """What a user can do about an exception that the machine has caused: no memory, no room, no right.

    Returns:
        None where the exception is none of these.
    """
    if isinstance(error, UserError):
        return error
    if _is_out_of_memory(error):
        return UserError(
            "memory ran out: close other programs, or use a machine with more memory. "
            "For --encoder gptq, fewer --calibration-samples or a smaller --calibration-length need less"
        )
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in DISK_FULL:
        return UserError(f"{where}{error.strerror}. Make room, or write to another disk")
    if error.errno in _OF_THE_MACHINE:
        return UserError(f"{where}{error.strerror}")
    return None


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
