"""Work on the cache that one process does while the others wait: `make test` runs the tests in several."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from gguf_bof4.paths import cache_root


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """No other process is inside a block of this name; the second one finds what the first one has made."""
    folder = cache_root() / "test-locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
