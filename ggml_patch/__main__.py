"""python -m gguf_bof4.ggml_patch: change the patches, and move to another llama.cpp. For developers of gguf-bof4."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gguf_bof4.errors import UserError
from gguf_bof4.ggml_patch import LOCK, PATCHES
from gguf_bof4.ggml_patch.edit import REJECTED, UPSTREAM, make_tree, recreate_patches
from gguf_bof4.ggml_patch.page import build_page
from gguf_bof4.ggml_patch.source import find_snapshot, snapshot, write_lock
from gguf_bof4.ggml_patch.wheel import make_wheel
from gguf_bof4.progress import progress_bar

app = typer.Typer(
    name="python -m gguf_bof4.ggml_patch",
    help="Change the patches of llama.cpp, move to another version of it, and make a wheel with programs. For "
    "developers of gguf-bof4; `bof4 patch DIR` patches a checkout of your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Tree = Annotated[Path, typer.Argument(metavar="DIR", help="The tree to edit.", show_default=False)]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="Of llama-cpp-python, e.g. 0.3.36.", show_default=False)
]


@app.command()
def edit(
    folder: Tree,
    version: Annotated[
        str,
        typer.Option(metavar="VERSION", help="Of llama-cpp-python. Default: the pinned one.", show_default=False),
    ] = "",
) -> None:
    """Unpack llama.cpp into a new folder, as a git tree with one commit for each patch.

    Our own sources are links to the project's. Edit, build with CMake, amend the commits or add some, then run
    `recreate`. A hunk that does not fit another version is named and written to FILE.rej; exit code 1 then.
    """
    pin = find_snapshot(version or snapshot().version)
    misfits = make_tree(folder, pin)
    print(f"{folder}: {pin.title} in the commit {UPSTREAM}, then one commit for each patch")
    if misfits:
        print(f"{len(misfits)} hunks do not fit; each is in the file of its path with {REJECTED} added:")
        for misfit in misfits:
            print(f"    {misfit}")
        print(
            "Make each change by hand, remove its file, commit with `git commit -a --fixup COMMIT` and join the "
            f"commits with `git rebase -i --autosquash {UPSTREAM}`."
        )
        raise typer.Exit(1)


@app.command()
def recreate(
    folder: Tree,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the patches. Default: the project's.", show_default=False),
    ] = None,
) -> None:
    """Write the numbered patches from the commits of a tree that `edit` made.

    A patch is named by the line `Patch-name:` of its commit's message, else by the subject, and numbered by its place.
    """
    target = output or PATCHES
    target.mkdir(parents=True, exist_ok=True)
    result = recreate_patches(folder, target)
    for what, names in (("wrote", result.changed), ("removed", result.removed)):
        for name in names:
            print(f"{what} {target / name}")
    print(f"{len(result.unchanged)} patches are as before")


@app.command()
def pin(version: Version) -> None:
    """Pin another version of llama-cpp-python in lock.json: its hash, and the commit of the llama.cpp inside it."""
    chosen = find_snapshot(version)
    write_lock(chosen)
    print(f"{LOCK}: {chosen.title}")


@app.command()
def wheel(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")] = Path("dist"),
    cpu_variants: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Variants of the CPU backend, e.g. x64,haswell. Default: all of the architecture.",
            show_default=False,
        ),
    ] = "",
    machine: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="x86_64 or aarch64; needs Debian's cross compilers where it is not this machine's.",
            show_default=False,
        ),
    ] = "",
    cmake: Annotated[
        list[str] | None, typer.Option(metavar="ARGUMENT", help="A further argument for CMake.", show_default=False)
    ] = None,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="With llama-server's web page, which npm builds once.")
    ] = True,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Parallel compilers; 0: one for each core.")] = 0,
) -> None:
    """Make a wheel with the programs of the patched llama.cpp, for every processor of the architecture."""
    variants = tuple(name for name in cpu_variants.split(",") if name)
    with progress_bar("checking the cache", steps_of="wheel") as report:
        built_page = build_page(report) if page else None
        made = make_wheel(folder, variants, machine, tuple(cmake or ()), built_page, jobs, report)
    print(f"{made}: {made.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Exit code 1 for errors caused by user input, 2 for wrong usage."""
    try:
        app()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
