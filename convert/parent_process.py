"""The end of a child process when its parent is killed, which nothing tells it."""

from __future__ import annotations

import os
import threading


def end_with_parent() -> None:
    """End this process when its standard input does, a pipe whose other end only the parent has.

    To everything else standard input is empty from now on, so that no library waits for an answer.
    """
    watched = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        os.read(watched, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
