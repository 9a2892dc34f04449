"""AutoRound's GGUF export (arXiv 2309.05516, package auto-round) as a peer: its matrices, everything else as it was.

AutoRound is a program of its own, in an environment of its own, because it brings its versions of torch and
transformers. It reads a Hugging Face folder, which is written here from the unquantized GGUF file, and writes a GGUF
file. Embeddings and output matrix, which it quantizes too, are taken from the unquantized file, as for all peers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from gguf_bof4.bench.measure import block_matrices
from gguf_bof4.errors import UserError, require
from gguf_bof4.gguf_files.model import Model, Tensor, open_model
from gguf_bof4.reference_models import copy_metadata, finish

VERSION = "0.16.1"
"""Of the package auto-round that the options below are known to fit."""

SCHEMES: Mapping[str, tuple[str, gguf.LlamaFileType]] = {
    "Q4_0": ("gguf:q4_0", gguf.LlamaFileType.MOSTLY_Q4_0),
    "Q4_K": ("gguf:q4_k_s", gguf.LlamaFileType.MOSTLY_Q4_K_S),
}
"""AutoRound's schemes and the file types of the types that are measured.

Like llama-quantize's file types they are mixtures: gguf:q4_k_s has attn_v of the first four layers and ffn_down of the
first eighth in Q5_K, which its --layer_config cannot take away; gguf:q4_0 is of one type. Rows that do not divide into
256 fall back from Q4_K to Q5_0, as by llama-quantize."""

LARGEST_ERROR = 0.1
"""Squared error over squared weights of a matrix. Four bits have 0.01; another matrix, or permuted rows, 1 or more."""

INSTALL = f"python -m venv auto-round && auto-round/bin/pip install auto-round=={VERSION} gguf sentencepiece"

_CHARACTERS_PER_TOKEN = 6
"""More than English texts have: AutoRound drops samples that are too short, and cuts off the rest."""


@dataclass(frozen=True)
class Recipe:
    """How AutoRound is run.

    Attributes:
        iterations: steps of tuning for each decoder layer; 0: rounding to nearest with AutoRound's own search for
            scales, weighted by its importance matrix, which it recommends for GGUF.
        samples: windows of the calibration text.
        length: tokens in each.
        batch: samples of a step.
        learning_rate: None: AutoRound's own.
    """

    iterations: int
    samples: int = 64
    length: int = 512
    batch: int = 8
    learning_rate: float | None = None

    def __str__(self) -> str:
        rate = "" if self.learning_rate is None else f" lr={self.learning_rate:g}"
        return (
            f"auto-round:{VERSION} iters={self.iterations} nsamples={self.samples} seqlen={self.length} "
            f"batch={self.batch}{rate}"
        )


RECIPES: Mapping[str, Recipe] = {
    "auto-round": Recipe(iterations=50, batch=4, learning_rate=5e-3),
    "auto-round:rtn": Recipe(iterations=0),
}
"""By the names that the encoders have in the bench. The first has the steps and the rate of auto-round-light on fewer
and shorter samples (there: 128 of 2048 tokens, batches of 8); AutoRound's default is 200 steps."""

ENCODERS = tuple(RECIPES)


def find_program(given: Path | None) -> Path:
    """AutoRound's command line.

    Args:
        given: by the user; None: the first `auto-round` in PATH.

    Raises:
        UserError: it is not there.
    """
    name = "auto-round" if given is None else str(given)
    found = shutil.which(name)
    if found is None:
        where = "there is no auto-round in PATH" if given is None else f"{given} is no program"
        raise UserError(f"{where}: {INSTALL}, then give --auto-round auto-round/bin/auto-round")
    return Path(found).absolute()


def write_calibration(text: Path, length: int, target: Path) -> int:
    """Cut a text into samples, one a line of JSON; returns their number.

    Args:
        length: tokens that each must have at least.
    """
    characters = text.read_text(encoding="utf-8")
    size = length * _CHARACTERS_PER_TOKEN
    pieces = [characters[i : i + size] for i in range(0, len(characters) - size + 1, size)]
    target.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    return len(pieces)


def write_folder(source: Model, folder: Path) -> None:
    """Write an unquantized GGUF model as a Hugging Face folder, in float32.

    Raises:
        UserError: transformers does not know the architecture, or a package of the extra "hf" is missing.
    """
    require("hf", "the encoder auto-round of the bench", "torch", "transformers", "safetensors")
    # it takes seconds to import
    from gguf_bof4.encoders.gptq.weights import GgufWeights

    weights = GgufWeights(source)
    weights.whole().model.save_pretrained(folder)
    weights.tokenizer().save_pretrained(folder)


def command(program: Path, folder: Path, calibration: Path, output: Path, type_: str, recipe: Recipe) -> list[str]:
    """The command line that makes AutoRound's file of a model.

    Args:
        folder: the model, a Hugging Face folder.
        calibration: from `write_calibration`.
        output: the folder that the file gets into.
        type_: a key of SCHEMES.
    """
    rate = [] if recipe.learning_rate is None else ["--lr", f"{recipe.learning_rate:g}"]
    return [
        str(program), "quantize", str(folder), "--format", SCHEMES[type_][0], "--device_map", "cpu",
        "--dataset", str(calibration),
        "--iters", str(recipe.iterations), "--nsamples", str(recipe.samples), "--seqlen", str(recipe.length),
        "--batch_size", str(recipe.batch), *rate, "--disable_torch_compile", "--output_dir", str(output),
    ]  # fmt: skip


def _environment(folder: Path, threads: int) -> dict[str, str]:
    """Without network, with caches in `folder`; idle threads sleep: on a loaded machine they hinder the others."""
    own = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    own |= {"HF_HOME": str(folder / "cache"), "OMP_WAIT_POLICY": "passive"}
    return os.environ | own | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def export(arguments: list[str], folder: Path, output: Path, threads: int) -> Path:
    """Run AutoRound; returns the file that it wrote.

    Args:
        arguments: from `command`.
        folder: its working directory; it writes there, too.
        output: the folder of its output.

    Raises:
        UserError: it failed, or wrote no file or several.
    """
    result = subprocess.run(
        arguments, cwd=folder, env=_environment(folder, threads), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    last = result.stdout.strip()[-1500:]
    remedy = f"This bench is made for auto-round {VERSION}: {INSTALL}"
    if result.returncode != 0:
        raise UserError(f"{' '.join(arguments)}\nfailed with exit code {result.returncode}:\n{last}\n{remedy}")
    files = sorted(output.rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"{' '.join(arguments)}\nwrote {len(files)} GGUF files instead of one:\n{last}\n{remedy}")
    return files[0]


def _check_matrix(made: Model, tensor: Tensor, source: Model, original: Tensor) -> None:
    weights = source.read_weights(original)
    error = made.read_weights(tensor) - weights
    ratio = float(np.square(error).sum() / max(float(np.square(weights).sum()), np.finfo(np.float32).tiny))
    if not ratio <= LARGEST_ERROR:
        raise UserError(
            f"{made.path}: {tensor.name} is not the matrix of {source.path}: its squared error is {ratio:.3g} of the "
            "squared weights, so its rows may be in another order, or AutoRound has changed it"
        )


def take_over(made: Path, source: Model, target: Path, file_type: gguf.LlamaFileType) -> None:
    """Write `source` with the matrices of its blocks from another file, in the types that they have there.

    Raises:
        UserError: a matrix is missing there, or has another shape or other weights.
    """
    exported = open_model(made)
    there = {t.name: t for t in exported.tensors}
    matrices = {t.name for t in block_matrices(source)}
    writer = gguf.GGUFWriter(target, source.value("general.architecture"))
    copy_metadata(source, writer)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for original in source.tensors:
        tensor = there.get(original.name) if original.name in matrices else original
        if tensor is None:
            raise UserError(f"{made}: there is no {original.name}, which {source.path} has")
        if tensor.shape != original.shape:
            raise UserError(f"{made}: {tensor.name} has the shape {tensor.shape} instead of {original.shape}")
        if tensor is not original:
            _check_matrix(exported, tensor, source, original)
        rows = tensor.read_rows().reshape(*tensor.shape[:-1], -1)
        writer.add_tensor(tensor.name, rows, raw_dtype=tensor.qtype)
    finish(writer)


def make_auto_round(
    type_: str, encoder: str, source: Model, text: Path, target: Path, program: Path, threads: int
) -> None:
    """A model whose matrices of the blocks AutoRound has quantized.

    Args:
        type_, encoder: keys of SCHEMES and RECIPES.
        source: the unquantized model, a GGUF file.
        text: to calibrate with.
        target: the file to write; there are gigabytes of temporary files beside it meanwhile.
        threads: 0: torch's default.

    Raises:
        UserError: AutoRound failed, or its file does not fit the source.
    """
    recipe = RECIPES[encoder]
    work = target.with_name("auto-round")
    folder, output, calibration = work / "model", work / "output", work / "calibration.jsonl"
    output.mkdir(parents=True)
    try:
        if (samples := write_calibration(text, recipe.length, calibration)) < recipe.samples:
            raise UserError(
                f"{text} has {samples} samples of {recipe.length} tokens, and AutoRound gets {recipe.samples}: give a "
                "longer text"
            )
        write_folder(source, folder)
        made = export(command(program, folder, calibration, output, type_, recipe), work, output, threads)
        take_over(made, source, target, SCHEMES[type_][1])
    finally:
        shutil.rmtree(work)
