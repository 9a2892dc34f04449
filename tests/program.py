"""Run the real programs, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def bof4(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The `bof4` of this environment; keyword arguments are environment variables."""
    program = Path(sys.executable).with_name("bof4")
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip
