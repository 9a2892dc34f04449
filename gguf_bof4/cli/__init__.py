"""The command line: one module per subcommand, assembled here."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Annotated

import typer

from gguf_bof4.cli import failures

COMMANDS = (
    "convert", "search", "run", "serve", "compare", "inspect", "verify", "build", "patch", "codebook", "bench", "study",
    "demo",
)  # fmt: skip
"""Subcommands, in the order of --help; each module has a function `register(app)`."""


def make_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="bof4",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in COMMANDS:
        importlib.import_module(f"gguf_bof4.cli.{name}").register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from gguf_bof4 import __version__

        print(f"bof4 {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print the traceback of an internal error, for a report.")
    ] = False,
) -> None:
    """4-bit BOF4 tensor types for GGUF: convert models, build the patched llama.cpp, check and run."""


def _flush() -> None:
    """Write what is buffered for standard output, so that a failure is reported here."""
    try:
        sys.stdout.flush()
    except OSError:
        failures.discard_output()
        raise


def main() -> None:
    """Entry point of the `bof4` program.

    Exit codes: 1 for errors caused by user input or the machine, for internal errors and where the reader of standard
    output has gone; 2 for wrong usage; 128 and the signal's number after Ctrl-C and SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files may have bytes that are no text; standard error is escaped by Python itself
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            make_app()()
        finally:
            if sys.stdout is not None:
                _flush()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(failures.report(error, failures.wants_traceback(sys.argv[1:])))
