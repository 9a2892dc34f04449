"""A Hugging Face folder as the source of a conversion, which a child process converts (`upstream`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from gguf_bof4.convert.options import Options
from gguf_bof4.convert.pipeline import Converted
from gguf_bof4.convert.report import TensorReport
from gguf_bof4.errors import UserError, require
from gguf_bof4.ggml_patch.build import source_tree
from gguf_bof4.progress import Progress
from gguf_bof4.weight_errors import ErrorSums

# not `python -m`, which puts the user's current folder before the pinned tree
_START = (
    "import sys; sys.path[:] = sys.argv[1:3] + [p for p in sys.path if p]; "
    "from gguf_bof4.convert.upstream import main; main(sys.argv[3])"
)


class _ChildOutput(Exception):
    """What the child process wrote to standard error, or its traceback: the cause of an exception here."""


@contextmanager
def _child(job: dict[str, Any], stderr: IO[bytes] | None) -> Iterator[subprocess.Popen[str]]:
    """The running child process, which is terminated when the block ends, also after an exception."""
    tree = source_tree()
    command = [sys.executable, "-c", _START, str(tree / "gguf-py"), str(tree), json.dumps(job)]
    # the folder is local: without this, transformers may wait for a network that is missing
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8",
        env=environment,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _failure(source: Path, code: int, stderr: IO[bytes] | None) -> Exception:
    if code < 0:
        return UserError(
            f"{source}: the converter was ended by signal {-code}; the system does that where memory runs out"
        )
    failure = RuntimeError(f"the converter's process for {source} ended with {code}")
    if stderr is not None:
        stderr.seek(0)
        failure.__cause__ = _ChildOutput("\n" + stderr.read().decode(errors="replace"))
    return failure


def tensor_report_of(sent: dict[str, Any]) -> TensorReport:
    """A report that came from the child process, as JSON."""
    errors = sent["errors"]
    found = None if errors is None else ErrorSums(**errors)
    return TensorReport(**{**sent, "shape": tuple(sent["shape"]), "errors": found})


def convert_folder(
    source: Path, output: Path, staging: Path | None, options: Options, progress: Progress
) -> Converted:
    """Convert a checked folder in a child process.

    Args:
        output: the name of the file, or of the parts before they are numbered.
        staging: the folder to write into; None writes nothing.

    Raises:
        UserError: as `pipeline.run`, upstream's converter cannot convert the folder, or a package of the extra "hf" is
            missing.
    """
    require("hf", "converting a Hugging Face folder", "torch", "transformers", "safetensors")
    job = {
        "source": str(source.resolve()),
        "output": str(output),
        "staging": None if staging is None else str(staging),
        "options": asdict(options),
    }
    progress("reading the model's layout", 0, 0)
    with tempfile.TemporaryFile() as log:
        stderr = None if options.verbose else log
        with _child(job, stderr) as child:
            assert child.stdout is not None
            for line in child.stdout:
                message = json.loads(line)
                if "progress" in message:
                    progress(*message["progress"])
                elif "error" in message:
                    raise UserError(message["error"])
                elif "bug" in message:
                    raise RuntimeError(message["bug"]) from _ChildOutput("\n" + message["traceback"])
                else:
                    child.wait()
                    return Converted(
                        message["architecture"],
                        tuple(Path(p) for p in message["outputs"]),
                        tuple(tensor_report_of(t) for t in message["tensors"]),
                    )
            code = child.wait()
        raise _failure(source, code, stderr)
