"""The command line: one module per subcommand, assembled here."""

from __future__ import annotations

import importlib
import sys

import typer

from gguf_bof4.errors import UserError

COMMANDS = ("convert", "run", "inspect", "verify", "build", "patch", "codebook", "bench", "demo")
"""Subcommands, in the order of --help; each module has a function `register(app)`."""


def make_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="bof4",
        help="4-bit BOF4-S tensor types for GGUF: convert models, build the patched llama.cpp, check and run.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        importlib.import_module(f"gguf_bof4.cli.{name}").register(app)
    return app


def main() -> None:
    """Entry point of the `bof4` program: exit code 1 for what the user can mend, 2 for wrong usage."""
    try:
        make_app()()
    except UserError as error:
        print(f"bof4: {error}", file=sys.stderr)
        sys.exit(1)
