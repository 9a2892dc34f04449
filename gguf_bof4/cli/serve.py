"""bof4 serve: serve a GGUF file over HTTP with the patched llama.cpp's llama-server."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Annotated

import typer

from gguf_bof4.cli.listening import Address, choose_addresses, option_value
from gguf_bof4.cli.model_file import HELP
from gguf_bof4.cli.run import Program, command_line, model_to_run
from gguf_bof4.cores import allowed_cores
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model
from gguf_bof4.progress import progress_bar

CONTEXT = 8192
"""Tokens of the context where none is given and the model was trained with more: keys and values for all that some
models can read take gigabytes."""

_POLL = 0.1  # seconds
_UNTIL_LISTENING = 1.0
"""Seconds between llama-server's first answer and the last line of its start, after which it heeds signals. Options may
turn that line off."""

_STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def default_arguments(
    arguments: Sequence[str], environment: Mapping[str, str], trained_context: int | None, cores: int | None
) -> list[str]:
    """Context and threads, where neither an option nor an environment variable gives them.

    Args:
        trained_context: tokens of context that the model was trained with; None: unknown.
        cores: how many this process may use, where that is fewer than the machine has.
    """
    added: list[str] = []
    pools = ["-c", "--ctx-size", "--kv-unified-per-slot"]
    if (
        option_value(arguments, environment, pools, "LLAMA_ARG_CTX_SIZE") is None
        and "LLAMA_ARG_KV_UNIFIED_PER_SLOT" not in environment
    ):
        added += ["-c", str(min(trained_context or CONTEXT, CONTEXT))]
    threads = option_value(arguments, environment, ["-t", "--threads"], "LLAMA_ARG_THREADS")
    if threads is None and cores is not None:
        added += ["-t", str(cores)]
    return added


def _trained_context(model: Model) -> int | None:
    return model.integer(f"{model.value('general.architecture')}.context_length")


def _end_with_parent() -> Callable[[], None] | None:
    """What a child process calls so that it ends when bof4 is killed, which no signal handler sees; Linux only."""
    if sys.platform != "linux":
        return None
    library, pr_set_pdeathsig = ctypes.CDLL(None), 1
    return lambda: library.prctl(pr_set_pdeathsig, signal.SIGTERM)


def _start(command: list[str]) -> subprocess.Popen[str]:
    # a group of its own: Ctrl-C at a terminal goes to bof4, which passes it on once; llama-server would end at once
    # without cleaning up when the second one came
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", bufsize=1,
        start_new_session=True, preexec_fn=_end_with_parent(),  # noqa: PLW1509 - no thread runs yet
    )  # fmt: skip


def _print_log(server: subprocess.Popen[str], listening: threading.Event) -> None:
    """Print what llama-server reports, which is little, until it ends.

    Args:
        listening: set at the line that says so.
    """
    assert server.stderr is not None
    for line in server.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        if "listening on " in line:
            listening.set()


def _pass_signals_on(server: subprocess.Popen[str]) -> list[int]:
    """Send signals that end a program to llama-server; returns the list of those that came."""
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        server.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, pass_on)
    return received


def _wait_until_ready(server: subprocess.Popen[str], address: Address, report: Callable[[int], None]) -> bool:
    """Wait until llama-server answers; False where it has ended.

    Args:
        report: called with the seconds since the start.
    """
    start = time.monotonic()
    while server.poll() is None:
        if address.is_ready():
            return server.poll() is None  # another server may have got the port first
        report(int(time.monotonic() - start))
        time.sleep(_POLL)
    return False


def _exit_code(code: int, received: Sequence[int]) -> int:
    """llama-server's own; where a signal ended it, 128 and its number.

    Raises:
        UserError: a signal ended it that bof4 had not passed on.
    """
    if code >= 0:
        return code
    if not received:
        name = signal.Signals(-code).name
        hint = ": memory may have run out; a smaller context needs less (-c 2048)" if name == "SIGKILL" else ""
        raise UserError(f"llama-server was ended by {name}{hint}")
    return 128 + received[-1]


def serve(
    file: Annotated[str, typer.Argument(metavar="FILE", help=HELP, show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENTS", help="Of llama-server, passed on unchanged.", show_default=False),
    ] = None,
) -> None:
    """Serve a GGUF file over HTTP: OpenAI's interface, and a web page where `bof4 build --ui` has made it.

    The address is printed once the model is loaded. Everything after FILE is passed to llama-server:

        bof4 serve model.gguf

        bof4 serve model.gguf --port 9000 --host 0.0.0.0 --api-key SECRET -c 32768

        bof4 serve hf:ORGANIZATION/NAME:Q4_K_M

        bof4 serve model.gguf -h

    Without --port it is 8080 or the next free one; without -c the context has 8192 tokens, or what the model was
    trained with if that is less (-c 0: always that). llama-server's environment variables (LLAMA_ARG_...) count as
    options.

    Ctrl-C and SIGTERM stop the server; the exit code is llama-server's, 0 after that.
    """
    path, model = model_to_run(file, Program.SERVER)
    command = command_line(Program.SERVER, path, arguments or [], at_terminal=False)
    given = command[3:]
    addresses, of_port = choose_addresses(given, os.environ)
    command += [*of_port, *default_arguments(given, os.environ, _trained_context(model), allowed_cores())]
    server = _start(command)
    received = _pass_signals_on(server)
    listening = threading.Event()
    log = threading.Thread(target=_print_log, args=(server, listening), daemon=True)
    log.start()
    print(f"bof4 serve: loading {file}", file=sys.stderr, flush=True)
    with progress_bar("loading") as report:
        is_ready = _wait_until_ready(server, addresses[0], lambda seconds: report(f"loading, {seconds} s", 0, 0))
    if is_ready:
        listening.wait(_UNTIL_LISTENING)
        print("bof4 serve: ready; Ctrl-C stops it", file=sys.stderr, flush=True)
        for address in addresses:
            print(address.url, flush=True)
    code = server.wait()
    log.join()
    raise typer.Exit(_exit_code(code, received))


def register(app: typer.Typer) -> None:
    """Add the command."""
    # arguments after FILE belong to llama-server, also those that are options of this command
    app.command("serve", context_settings={"allow_interspersed_args": False})(serve)
