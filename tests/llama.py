"""Run the programs of the patched llama.cpp."""

from __future__ import annotations

import subprocess
from pathlib import Path

from gguf_bof4.ggml_patch.build import installed_bin

THREADS = ("-t", "1")
"""ggml's threads spin while they wait: on a machine with other load, two can take ten times as long as one."""


def llama(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with empty standard input."""
    return subprocess.run(
        [installed_bin() / f"llama-{program}", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300, encoding="utf-8", errors="replace",
    )  # fmt: skip


def succeed(program: str, *arguments: str | Path) -> str:
    """Standard output of a program that must not fail."""
    result = llama(program, *arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def greedy(model: Path, prompt: str, *arguments: str) -> str:
    """The answer of a chat model, most probable tokens only."""
    return succeed(
        "completion", "-m", model, "-p", prompt, "-n", "24", "--temp", "0", "--single-turn", "--no-display-prompt",
        "--log-verbosity", "1", *THREADS, *arguments,
    ).strip()  # fmt: skip
