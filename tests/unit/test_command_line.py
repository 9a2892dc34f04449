"""The command line as a whole: its commands, their help, and exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from command_line import bof4

from gguf_bof4.cli import make_app

COMMANDS = {
    "convert", "run", "serve", "compare", "search", "inspect", "verify", "build", "patch", "codebook", "bench", "study",
    "demo",
}  # fmt: skip
"""What users know; scripts call them by these names."""

BENCHES = {"quality", "speed", "kernels"}
STUDIES = {"formats", "error", "quality", "activations", "capture", "all"}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that has no commands itself, as click's object, and the words that it is called by."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path, command


LEAVES = dict(leaves(typer.main.get_command(make_app())))
each_command = pytest.mark.parametrize("path", LEAVES, ids=" ".join)


def listed_commands(*path: str) -> set[str]:
    """The names in the table of commands that --help prints."""
    shown = bof4(*path, "--help")
    assert shown.returncode == 0, shown.stderr
    table = shown.stdout[shown.stdout.index("Commands") :]
    return set(re.findall(r"^[│|] ([a-z]+)  ", table, re.MULTILINE))


def test_help_lists_exactly_the_commands() -> None:
    assert listed_commands() == COMMANDS
    assert listed_commands("bench") == BENCHES
    assert listed_commands("study") == STUDIES
    assert {path[0] for path in LEAVES} == COMMANDS


@each_command
def test_help_names_and_explains_each_option(path: tuple[str, ...]) -> None:
    shown = bof4(*path, "--help")
    assert shown.returncode == 0, shown.stderr
    command = LEAVES[path]
    assert command.help and command.help.splitlines()[0].endswith(".")
    assert command.help.splitlines()[0] in shown.stdout
    said = set(re.findall(r"--?[a-z][\w-]*", shown.stdout))
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert set(parameter.opts) <= said, parameter.name
        assert getattr(parameter, "help", ""), f"{' '.join(path)}: no help for {parameter.name}"


@pytest.mark.parametrize("path", [path for path in LEAVES if path != ("run",)], ids=" ".join)
def test_unknown_options_exit_with_2(path: tuple[str, ...]) -> None:
    """But for `bof4 run`, which passes options on to llama-cli."""
    refused = bof4(*path, "--no-such-option")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--no-such-option" in refused.stderr


def test_an_unknown_command_exits_with_2() -> None:
    refused = bof4("no-such-command")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no-such-command" in refused.stderr


def test_errors_caused_by_user_input_are_one_message_and_exit_code_1() -> None:
    refused = bof4("inspect", "no-such-file.gguf")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("bof4: no-such-file.gguf does not exist")
    assert "Traceback" not in refused.stderr
