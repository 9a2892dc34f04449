"""How the command line ends after an exception that nothing below has turned into a message."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback

from gguf_bof4.errors import as_user_error

REPORT_TO = "the issue tracker of gguf-bof4"

_OPTIONS = ("--verbose", "-v")


def wants_traceback(arguments: list[str]) -> bool:
    """Is there --verbose in a command line? Asked when its parsing may be what failed."""
    return any(option in arguments for option in _OPTIONS)


def discard_output() -> None:
    """Send the rest of standard output nowhere, so that Python does not fail once more when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def report(error: BaseException, verbose: bool) -> int:
    """Print what an exception means for the user, on standard error.

    Args:
        verbose: print the traceback, too, except for errors that their message explains.

    Returns:
        The exit code.
    """
    if isinstance(error, BrokenPipeError):
        discard_output()
        return 1
    if isinstance(error, KeyboardInterrupt):
        print("bof4: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    if (known := as_user_error(error)) is not None:
        if verbose and known is not error:
            traceback.print_exception(type(error), error, error.__traceback__)
        print(f"bof4: {known}", file=sys.stderr)
        return 1
    if verbose:
        traceback.print_exception(type(error), error, error.__traceback__)
    how = "" if verbose else "; with --verbose the same command prints the traceback to send along"
    print(
        f"bof4: internal error: {_one_line(error)}. This is a fault of bof4, not yours: please report it with the "
        f"command line at {REPORT_TO}{how}",
        file=sys.stderr,
    )
    return 1
