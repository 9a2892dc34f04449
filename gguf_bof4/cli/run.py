"""bof4 run: run a GGUF file with the patched llama.cpp."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from gguf_bof4.cli.model_file import HELP, local_path
from gguf_bof4.ggml_patch.build import program_path
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.hub import PREFIX

_PROMPTS = {"-p", "--prompt", "-f", "--file", "-bf", "--binary-file"}
_SINGLE_TURN = "--single-turn"


class Program(str, Enum):
    """Programs that take a model with -m."""

    CLI = "llama-cli"
    COMPLETION = "llama-completion"
    SERVER = "llama-server"
    PERPLEXITY = "llama-perplexity"
    BENCH = "llama-bench"
    IMATRIX = "llama-imatrix"
    EMBEDDING = "llama-embedding"


def command_line(program: Program, file: Path, arguments: list[str], at_terminal: bool) -> list[str]:
    """The command that `bof4 run` executes, with the arguments unchanged.

    llama-cli starts a chat after it has answered a prompt. Where standard input is no terminal, it gets --single-turn.
    """
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    command = [str(program_path(program.value)), "-m", str(file), *arguments]
    if program is Program.CLI and not at_terminal and _PROMPTS & set(arguments):
        command.append(_SINGLE_TURN)
    return command


def model_to_run(file: str, program: Program) -> tuple[Path, Model]:
    """The file that an argument FILE names, opened. One on a model hub is downloaded, once the program is found.

    Raises:
        UserError: there is no such file, it is malformed, or the program is not built.
    """
    if file.startswith(PREFIX):
        program_path(program.value)
    path = local_path(file)
    return path, open_model(path)


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help=HELP, show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENTS", help="Of the program, passed on unchanged.", show_default=False),
    ] = None,
    program: Annotated[Program, typer.Option("--program", help="The program to run.")] = Program.CLI,
) -> None:
    """Run a GGUF file with the patched llama.cpp: chat, or answer one prompt with -p.

    Everything after FILE is passed to the program unchanged:

        bof4 run model.gguf -p "hello" -n 64 -t 2

        bof4 run model.gguf -h

        bof4 run --program llama-server model.gguf --port 8080

        bof4 run hf:ORGANIZATION/NAME:Q4_K_M -p "hello"
    """
    path, _ = model_to_run(file, program)
    command = command_line(program, path, arguments or [], sys.stdin.isatty())
    if sys.platform == "win32":
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    os.execv(command[0], command)


def register(app: typer.Typer) -> None:
    """Add the command."""
    # arguments after FILE belong to the program, also those that are options of this command
    app.command("run", context_settings={"allow_interspersed_args": False})(run)
