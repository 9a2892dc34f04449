"""The command line within this process: starting Python takes longer than most commands do."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from gguf_bof4.cli import main


def bof4(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the program `bof4` does with these arguments: its exit code and both streams."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", ["bof4", *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
    ):
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
    return subprocess.CompletedProcess(["bof4", *arguments], code, output.getvalue(), errors.getvalue())
