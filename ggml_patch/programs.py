"""Run the programs of the patched llama.cpp to their end."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.build import program_path
from gguf_bof4.progress import NOTE, Progress, duration_text, no_progress

_ESTIMATE = re.compile(r"seconds per pass - ETA (?:(\d+) hours )?([\d.]+) minutes")
"""What llama-imatrix prints after the first chunk."""


def thread_options(threads: int) -> list[str]:
    """The option for the number of threads, of every program but llama-quantize; 0: the program's default."""
    return ["-t", str(threads)] if threads else []


def run_program(
    name: str,
    *arguments: str | Path,
    remedy: str,
    folder: Path | None = None,
    on_output: Callable[[str], None] | None = None,
) -> str:
    """The output of a program, both streams. It ends with the caller, also where that is interrupted.

    Args:
        remedy: the last line of the message where it fails.
        folder: its working directory.
        on_output: called with all of the output so far, whenever there is more.

    Raises:
        UserError: it is not built, or it failed; its last lines are in the message.
    """
    command = [str(program_path(name)), *map(str, arguments)]
    output = b""
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            while chunk := os.read(process.stdout.fileno(), 1 << 16):
                output += chunk
                if on_output is not None:
                    on_output(output.decode(errors="replace"))
            process.wait()
        except BaseException:
            process.kill()
            raise
    text = output.decode(errors="replace")
    if process.returncode != 0:
        raise UserError(
            f"{' '.join(command)}\nfailed with exit code {process.returncode}:\n{text.strip()[-1500:]}\n{remedy}"
        )
    return text


def make_imatrix(
    source: Path,
    text: Path,
    target: Path,
    chunks: int,
    threads: int,
    remedy: str,
    folder: Path | None = None,
    special: bool = False,
    progress: Progress = no_progress,
) -> None:
    """llama-imatrix on the first `chunks` chunks of 512 tokens of a text.

    Args:
        special: names of special tokens in the text are these tokens.
        progress: called with an estimate of the time after the first chunk.

    Raises:
        UserError: as `run_program`.
    """
    noted = False

    def on_output(output: str) -> None:
        nonlocal noted
        if not noted and (found := _ESTIMATE.search(output)):
            noted = True
            seconds = duration_text(3600 * int(found[1] or 0) + 60 * float(found[2]))
            progress(f"about {seconds}: importance matrix, {chunks} chunks of 512 tokens", 0, NOTE)

    progress("making an importance matrix", 0, 0)
    run_program(
        "llama-imatrix", "-m", source, "-f", text, "-o", target, "-c", "512", "--chunks", str(chunks),
        "--no-ppl", *(["--parse-special"] if special else []), *thread_options(threads), remedy=remedy, folder=folder,
        on_output=on_output,
    )  # fmt: skip
