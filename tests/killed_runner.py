"""A process that runs conversions in forked processes and kills each at a chosen moment, or fills its disk then.

It reads jobs as lines of JSON and answers each with one. It imports everything before it forks, so that a conversion
costs no start of Python, and runs no thread before, so that the forked processes can.

Moments are counted in operations on files below the folder of the output (sys.addaudithook): the process is killed just
before one of them, which meets the short ones, such as the renaming of a part; or after some seconds, which meets the
long ones.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.", "shutil.", "tempfile.")


def _fill(disk: Path) -> None:
    """Write until there is no room."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def _watch(job: dict[str, Any], counter: list[int]) -> None:
    folder = str(Path(job["output"]).parent)
    at, action = job.get("operation"), job.get("action", "kill")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith(_EVENTS) or not any(str(a).startswith(folder) for a in arguments[:2]):
            return
        counter[0] += 1
        if counter[0] - 1 != at:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        _fill(Path(job["disk"]))

    sys.addaudithook(hook)


def _convert(job: dict[str, Any], answer: int) -> None:
    """Run the conversion in this forked process, write what came of it, and end the process."""
    from gguf_bof4.convert import convert
    from gguf_bof4.errors import UserError

    said: dict[str, Any] = {"message": None, "bug": None}
    counter = [0]
    try:
        if (limit := job.get("largest_file")) is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _watch(job, counter)
        convert(Path(job["source"]), Path(job["output"]), **job["options"])
    except UserError as error:
        said["message"] = str(error)
    except BaseException:
        said["bug"] = traceback.format_exc()
    os.write(answer, json.dumps(said | {"operations": counter[0]}).encode())
    os._exit(0)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait or kill; the answer of the conversion, or the signal that ended it."""
    reading, writing = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _convert(job, writing)
    os.close(writing)
    if (seconds := job.get("seconds")) is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status)
    answer = {} if killed or not said else json.loads(said)
    return answer | {"signal": os.WTERMSIG(status) if killed else None, "seconds": time.monotonic() - started}


def main() -> None:
    import gguf_bof4.convert
    from gguf_bof4 import native

    native.library()
    if "--gptq" in sys.argv:
        import safetensors.torch  # noqa: F401
        import torch
        import transformers  # noqa: F401

        import gguf_bof4.encoders.gptq.driver  # noqa: F401

        torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
