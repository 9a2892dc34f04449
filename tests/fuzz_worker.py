"""A process that gives mutated inputs to the command line; run it with --seed to see what one of them does.

    python tests/fuzz_worker.py BASES WORK --kind files --seed 4711

Each seed is one case. The number of the current one is in WORK/last, so that a parent sees which one ended the process.
Failures are printed as lines of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

KINDS = ("files", "folders")


class TooSlowError(BaseException):
    """A case took longer than its limit; no `except Exception` hides it."""


def _too_slow(signum: int, frame: FrameType | None) -> NoReturn:
    raise TooSlowError


class CommandLine:
    """The program `bof4` within this process: its command line is assembled once."""

    def __init__(self) -> None:
        import typer

        from gguf_bof4 import cli

        self._main = cli.main
        command = typer.main.get_command(cli.make_app())
        cli.make_app = lambda: command.main

    def __call__(self, arguments: list[str]) -> tuple[int, str, str]:
        """Exit code and both streams."""
        output, errors = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            mock.patch.object(sys, "argv", ["bof4", "--verbose", *arguments]),
        ):
            try:
                self._main()
                code = 0
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
        return code, output.getvalue(), errors.getvalue()


def _commands(rng: random.Random, source: str, output: str) -> list[str]:
    convert = ["convert", source, output, "-t", "1"]
    return rng.choice(
        [
            *[["inspect", source]] * 5,
            *[["inspect", "--json", source]] * 3,
            *[["verify", source]] * 4,
            *[[*convert, "--type", rng.choice(["F16", "BF16", "F32", "Q8_0"])]] * 4,
            *[[*convert, "--type", rng.choice(["BOF4_S", "BOF4_K"])]] * 4,
            [*convert, "--dry-run"],
            [*convert, "--pure", "--encoder", "absmax", "--opq", rng.choice(["off", "0.5", "0.99", "q=0.9"])],
            [*convert, "--split-max-size", rng.choice(["1", "5K", "20K"])],
        ]
    )


def _split(raw: bytes, rng: random.Random) -> list[Any]:
    """A model cut into parts as llama-gguf-split does it."""
    from fuzz_gguf import File, Value, parse

    whole, count = parse(raw), rng.choice([2, 3])
    cuts = sorted(rng.randrange(len(whole.tensors) + 1) for _ in range(count - 1))
    parts = []
    for i, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(whole.tensors)], strict=True)):
        values = [*(whole.values if i == 0 else [])]
        values += [
            Value(b"split.no", 2, struct.pack("<H", i)),
            Value(b"split.count", 2, struct.pack("<H", count)),
            Value(b"split.tensors.count", 5, struct.pack("<i", len(whole.tensors))),
        ]
        tensors, offset = whole.tensors[begin:end], 0
        for t in tensors:
            t.offset = offset
            offset += len(t.data)
        parts.append(File(3, values, tensors))
    return parts


def _write_split(raw: bytes, work: Path, rng: random.Random) -> Path:
    """Write the parts, some of them mutated; returns the file to give."""
    from fuzz_gguf import NUMBERS, mutate

    parts = _split(raw, rng)
    names = [f"model-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
    what = rng.randrange(7)
    if what <= 2:
        mutate(rng.choice(parts), rng)
    elif what == 3:
        value = rng.choice(parts).values[-rng.choice([1, 2, 3])]
        value.kind, value.payload = rng.choice([(4, struct.pack("<I", rng.choice(NUMBERS) % 2**32)), (2, b"\x07\x00")])
    elif what == 4:
        names[rng.randrange(len(names))] = rng.choice(
            ["model-00001-of-00003.gguf", "model-00002-of-00002.gguf", "model-00000-of-00002.gguf",
             "model-00002-of-99999.gguf", "other.gguf", "model-1-of-2.gguf"]
        )  # fmt: skip
    elif what == 5:
        parts[rng.randrange(len(parts))] = rng.choice(parts)
    contents = dict(zip(names, (part.packed() for part in parts), strict=True))
    if what == 6:
        del contents[rng.choice(names)]
    for name, content in contents.items():
        (work / name).write_bytes(content)
    if rng.random() < 0.1 and contents:
        name = rng.choice(sorted(contents))
        (work / name).rename(work / "blob")
        (work / name).symlink_to("blob")
    return work / (names[0] if rng.random() < 0.9 else rng.choice(names))


def files_case(bases: dict[str, bytes], work: Path, rng: random.Random) -> list[str]:
    """Write a mutated GGUF file, split file or importance matrix; returns the command."""
    from fuzz_gguf import mutate, parse

    output = str(work / "out.gguf")
    models = sorted(name for name in bases if name != "imatrix.gguf")
    raw, what = bases[rng.choice(models)], rng.random()
    if what < 0.25:
        return _commands(rng, str(_write_split(raw, work, rng)), output)
    model = work / "model.gguf"
    if what < 0.35:
        model.write_bytes(bases["plain.gguf"])
        matrix, path = parse(bases["imatrix.gguf"]), work / "imatrix.gguf"
        mutate(matrix, rng)
        path.write_bytes(matrix.packed())
        return ["convert", str(model), output, "--imatrix", str(path), "-t", "1"]
    file = parse(raw)
    mutate(file, rng)
    model.write_bytes(file.packed())
    return _commands(rng, str(model), output)


def folders_case(bases: dict[str, bytes], work: Path, rng: random.Random) -> list[str]:
    """Write a mutated Hugging Face folder; returns the command."""
    from fuzz_folder import Folder, mutate_folder

    folder: Folder = {name.removeprefix("hf/"): raw for name, raw in bases.items() if name.startswith("hf/")}
    mutate_folder(folder, rng)
    source = work / "model"
    source.mkdir()
    for name, content in folder.items():
        if content is None:
            (source / name).mkdir()
        else:
            (source / name).write_bytes(content)
    command = ["convert", str(source), str(work / "out.gguf"), "-t", "1"]
    return [*command, *rng.choice([[], ["--type", "F16"], ["--dry-run"], ["--split-max-size", "20K"]])]


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def _complaint(code: int, errors: str) -> str | None:
    """What is wrong with how a command ended."""
    if code not in {0, 1}:
        return f"exit code {code}"
    if "internal error" in errors or "Traceback" in errors:
        return "an exception that is no UserError"
    if "memory ran out" in errors:
        return "it wanted as much memory as a damaged number says"
    if code == 1 and not errors.startswith("bof4: "):
        return "no message"
    if code == 0 and errors:
        return "a message on standard error, but exit code 0"
    return None


def judge(bof4: CommandLine, command: list[str], work: Path) -> str | None:
    """Run a case; returns what is wrong."""
    before = _contents(work)
    code, output, errors = bof4(command)
    if complaint := _complaint(code, errors):
        return f"{complaint}\n{errors}"
    after = _contents(work)
    new = [work / name for name in after if name not in before]
    if {name: after.get(name) for name in before} != before:
        return "a file of the source has changed"
    is_written = code == 0 and command[0] == "convert" and "--dry-run" not in command
    if not is_written:
        return f"left behind: {new}\n{errors}" if new else None
    if not new or not all(path.name.startswith("out") and path.suffix == ".gguf" for path in new):
        return f"exit code 0, but it wrote {new}\n{output}"
    code, _, errors = bof4(["inspect", str(min(new))])
    return None if code == 0 else f"what it wrote is refused: {errors}"


@contextlib.contextmanager
def _converter_here() -> Any:
    """Upstream's converter in this process instead of one child per case."""
    from gguf_bof4.convert import from_huggingface, upstream
    from gguf_bof4.convert.pipeline import Converted
    from gguf_bof4.errors import UserError

    def convert_folder(source: Path, output: Path, staging: Path | None, options: Any, progress: Any) -> Converted:
        channel = io.StringIO()
        upstream.Collector.written = []
        log = io.StringIO()
        heuristic = upstream.gguf.Metadata.apply_metadata_heuristic
        with contextlib.redirect_stderr(log):
            try:
                upstream.convert_folder(source.resolve(), output, staging, options, channel)
            finally:
                upstream.gguf.Metadata.apply_metadata_heuristic = staticmethod(heuristic)
        message = json.loads(channel.getvalue().splitlines()[-1])
        if "error" in message:
            raise UserError(message["error"])
        if "bug" in message:
            raise RuntimeError(message["bug"] + message["traceback"])
        reports = tuple(from_huggingface.tensor_report_of(t) for t in message["tensors"])
        return Converted(message["architecture"], tuple(Path(p) for p in message["outputs"]), reports)

    with mock.patch.object(from_huggingface, "convert_folder", convert_folder):
        yield


def run(kind: str, bases: dict[str, bytes], work: Path, seeds: range, limit: float) -> int:
    """Run cases; returns the number of failures."""
    bof4, failures = CommandLine(), 0
    make = {"files": files_case, "folders": folders_case}[kind]
    signal.signal(signal.SIGALRM, _too_slow)
    last = os.open(work / "last", os.O_WRONLY | os.O_CREAT)
    for seed in seeds:
        os.pwrite(last, f"{seed:<20}".encode(), 0)
        case = work / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        command = make(bases, case, random.Random(seed))
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            wrong = judge(bof4, command, case)
        except TooSlowError:
            wrong = f"no end within {limit} s"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if wrong:
            failures += 1
            print(json.dumps({"seed": seed, "kind": kind, "command": command, "wrong": wrong[-6000:]}), flush=True)
    os.close(last)
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", type=Path, help="folder of valid inputs")
    parser.add_argument("work", type=Path, help="folder for the cases")
    parser.add_argument("--kind", choices=KINDS, default="files")
    parser.add_argument("--seed", type=int, default=0, help="the first case")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for a case")
    parser.add_argument("--memory", type=int, default=0, help="limit of the address space in bytes; 0: none")
    given = parser.parse_args()
    if given.memory:
        resource.setrlimit(resource.RLIMIT_AS, (given.memory, given.memory))
    bases = {str(p.relative_to(given.bases)): p.read_bytes() for p in sorted(given.bases.rglob("*")) if p.is_file()}
    given.work.mkdir(parents=True, exist_ok=True)
    seeds = range(given.seed, given.seed + given.count)
    if given.kind == "files":
        sys.exit(bool(run("files", {n: b for n, b in bases.items() if "/" not in n}, given.work, seeds, given.limit)))
    from gguf_bof4.ggml_patch.build import source_tree

    tree = source_tree()
    sys.path[:0] = [str(tree / "gguf-py"), str(tree)]
    for name in [name for name in sys.modules if name.split(".")[0] == "gguf" or name.startswith("gguf_bof4")]:
        del sys.modules[name]  # this process uses the pinned tree's gguf, as the converter's child does
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with torch.inference_mode(), _converter_here():
        sys.exit(bool(run("folders", bases, given.work, seeds, given.limit)))


if __name__ == "__main__":
    main()
