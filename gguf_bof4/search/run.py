"""bof4 search: measure, assign, write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType as TensorType

from gguf_bof4 import native
from gguf_bof4.convert import convert
from gguf_bof4.convert.huggingface_folder import check_folder
from gguf_bof4.convert.imatrix import Imatrix
from gguf_bof4.convert.imatrix import load as load_imatrix
from gguf_bof4.convert.pipeline import why_no_list
from gguf_bof4.convert.policy import FLOATS, is_embedding, is_output, is_quantizable, with_fallback
from gguf_bof4.convert.random_tokens import random_imatrix
from gguf_bof4.errors import UserError, require
from gguf_bof4.ggml_patch.programs import make_imatrix
from gguf_bof4.gguf_files.model import Model, Tensor, bits_per_weight, open_model
from gguf_bof4.progress import Progress
from gguf_bof4.search import losses, sensitivity, texts, work
from gguf_bof4.search.allocation import Choice, TooSmallBudgetError, allocate
from gguf_bof4.search.candidates import Candidate, candidates_of
from gguf_bof4.search.losses import Losses, Store, Wanted
from gguf_bof4.search.sensitivity import Term, Terms
from gguf_bof4.search.targets import Target, header_bytes, padded

CHUNKS = 16
"""Of 512 tokens, for sensitivities."""

IMATRIX_SHARE = 2
"""Chunks for the importance matrix, for each one for sensitivities: it takes less time."""

CONTEXT = 512
"""Tokens of a chunk."""

UNQUANTIZED, IMATRIX, SENSITIVITY, LOSSES = "unquantized.gguf", "imatrix.gguf", "sensitivity.npz", "losses.jsonl"
"""Files of the folder that keeps measurements."""

TABLE_TYPE = TensorType.Q6_K
"""Of embeddings and output matrix where they are not searched: that of bof4 convert."""

_SECONDS = {"imatrix": 3.1e-11, "gradients": 8e-11, "losses": 3.0e-7}
"""On one core of a Zen 3 server: per token and weight; per weight and candidate."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Attributes:
        calibration: texts; none: errors are weighted by second moments only.
        imatrix: an importance matrix; None: one is made from the text, or from random tokens.
        gradients: measure sensitivities by gradients.
        types: candidate types.
        list_bits: bits per weight of outlier lists; None: no candidate has one.
        tables: types of embeddings and output matrix; None: they are searched where the target is a size of the file,
            and get `TABLE_TYPE` otherwise.
        chunks: of 512 tokens of the text, for gradients; twice as many for the importance matrix.
        threads: 0: all cores.
    """

    calibration: tuple[Path, ...]
    imatrix: Path | None
    gradients: bool
    types: tuple[TensorType, ...]
    list_bits: float | None
    tables: Mapping[str, TensorType]
    chunks: int = CHUNKS
    threads: int = 0

    @property
    def imatrix_chunks(self) -> int:
        """Chunks for the importance matrix."""
        return IMATRIX_SHARE * self.chunks


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        imatrix: the path of the importance matrix.
        matrices: tensors that a target counts in bits per weight: those of decoder layers and others, but no tables.
        tables: token embeddings and output matrix.
        losses: of both.
    """

    model: Model
    settings: Settings
    folder: Path
    imatrix: Path
    matrices: tuple[Wanted, ...]
    tables: tuple[Wanted, ...]
    losses: Losses

    def free(self, target: Target) -> tuple[Wanted, ...]:
        """The tensors whose types are chosen under a target: it counts tables where it is of a file."""
        return (*self.tables, *self.matrices) if target.nbytes is not None else self.matrices


@dataclass(frozen=True)
class Assigned:
    """The type of one tensor."""

    tensor: Tensor
    candidate: Candidate
    loss: float

    @property
    def nbytes(self) -> int:
        """With its list."""
        return self.candidate.data_bytes(self.tensor.shape) + self.candidate.list_bytes(self.tensor.shape)

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.nbytes, self.tensor.n_weights)


@dataclass(frozen=True)
class Assignment:
    """The type of every tensor that is quantized.

    Attributes:
        matrices: all but tables.
        tables: token embeddings and output matrix.
        file_bytes: of the file, at most.
    """

    matrices: tuple[Assigned, ...]
    tables: tuple[Assigned, ...]
    file_bytes: int

    @property
    def all(self) -> tuple[Assigned, ...]:
        return (*self.tables, *self.matrices)

    @property
    def bits_per_weight(self) -> float:
        """Of the matrices, with their lists."""
        return bits_per_weight(sum(a.nbytes for a in self.matrices), sum(a.tensor.n_weights for a in self.matrices))

    @property
    def loss(self) -> float:
        """Predicted."""
        return sum(a.loss for a in self.all)


def quantizable(model: Model) -> list[Tensor]:
    """The tensors that llama-quantize would quantize.

    Raises:
        UserError: the model is quantized already, or llama.cpp does not know its architecture.
    """
    architecture = str(model.value("general.architecture"))
    try:
        found = [t for t in model.tensors if is_quantizable(architecture, t.name, t.shape, t.qtype)]
    except native.NativeError as error:
        raise UserError(f"{model.path}: llama.cpp does not know the architecture {architecture!r} ({error})") from error
    if not found:
        raise UserError(f"{model.path} has no matrices that llama.cpp quantizes")
    for t in found:
        if t.qtype not in FLOATS:
            raise UserError(
                f"{model.path}: {t.name} is {t.qtype.name}, quantized already: give bof4 search the unquantized model "
                "(F32, F16 or BF16)"
            )
    return found


def _is_table(name: str) -> bool:
    return is_embedding(name) or is_output(name)


def unquantized(path: Path, folder: Path) -> Path:
    """The GGUF file that is measured: the model itself, or one of BF16 that is made of a Hugging Face folder and kept.

    Raises:
        UserError: the folder cannot be converted.
    """
    if not path.is_dir():
        return path
    target = folder / UNQUANTIZED
    if not target.exists():
        convert(path, target, type="BF16")
    return target


def fingerprint(path: Path, settings: Settings) -> dict[str, object]:
    """Of what losses are, and how they are measured.

    Args:
        path: a GGUF file, or a Hugging Face folder.

    Raises:
        UserError: a file cannot be read.
    """
    files = check_folder(path) if path.is_dir() else open_model(path).files
    text, imatrix = texts.files_of_all(settings.calibration), settings.imatrix
    return {
        "model": work.content_key(files),
        "calibration text": work.content_key(text) if text else None,
        "importance matrix": None if imatrix is None else work.content_key([imatrix]),
        "--sensitivity": "gradient" if settings.gradients else "none",
        "--chunks": settings.chunks,
        "recipe": losses.RECIPE,
    }


def estimated_seconds(model: Model, settings: Settings, folder: Path) -> dict[str, float]:
    """An estimate of what is still to be done, by step."""
    cores = settings.threads or os.cpu_count() or 1
    weights = sum(t.n_weights for t in quantizable(model))
    sampled = sum(min(t.n_weights, losses.SAMPLED_WEIGHTS) for t in quantizable(model))
    found = {}
    if settings.imatrix is None and not (folder / IMATRIX).exists():
        found["importance matrix"] = _SECONDS["imatrix"] * weights * CONTEXT * settings.imatrix_chunks / cores
    if settings.gradients and not (folder / SENSITIVITY).exists():
        found["gradients"] = _SECONDS["gradients"] * weights * CONTEXT * settings.chunks / cores
    stored = len(Store(folder / LOSSES).found) / len(quantizable(model))
    kinds = len(settings.types) * (1.5 if settings.list_bits else 1)
    if stored < 1:
        found["losses"] = _SECONDS["losses"] * sampled * kinds * (1 - stored) / cores
    return found


def importance_matrix(model: Model, settings: Settings, folder: Path, progress: Progress) -> Path:
    """The importance matrix of the settings, or one that is made from their texts and kept in the folder.

    Raises:
        UserError: llama.cpp cannot run the model, or a text cannot be read.
    """
    if settings.imatrix is not None:
        return settings.imatrix
    target = folder / IMATRIX
    if target.exists():
        return target
    progress("importance matrix", 0, 0)
    partial = folder / f"partial-{IMATRIX}"
    if not settings.calibration:
        random_imatrix(model.path.absolute(), folder, settings.threads).replace(partial)
    else:
        chunks, text = settings.imatrix_chunks, texts.single_text(settings.calibration)
        special = text is None
        if text is None:
            texts.require_tokenizer()
            from gguf_bof4.encoders.gptq.weights import GgufWeights

            text = folder / "calibration.txt"
            texts.write_for_imatrix(GgufWeights(model).tokenizer(), settings.calibration, chunks, CONTEXT, text)
        make_imatrix(
            model.path, text, partial, chunks, settings.threads,
            remedy="Give --imatrix a file that was made elsewhere.", special=special,
        )  # fmt: skip
    partial.replace(target)
    return target


def require_gradients(purpose: str = "bof4 search --sensitivity gradient") -> None:
    """Raise UserError where a package is missing that gradients need.

    Args:
        purpose: what needs them, for the message.
    """
    require("hf", purpose, "torch", "transformers", "accelerate")


def _sensitivities(
    model: Model, settings: Settings, folder: Path, tensors: Sequence[Tensor], imatrix: Imatrix, progress: Progress
) -> dict[str, Terms]:
    """The terms of each tensor.

    Where gradients do not reach a tensor (experts), its columns are weighted by the importance matrix, and its rows so
    that its alpha is the mean of those that are reached; without gradients, every tensor has rows of weight 1.
    """
    found: dict[str, Terms] = {}
    if settings.gradients:
        path = folder / SENSITIVITY
        if not path.exists():
            require_gradients()
            from gguf_bof4.search.gradients import measure

            sensitivity.save(
                path, measure(model, settings.calibration, settings.chunks, CONTEXT, settings.threads, progress)
            )
        found.update(sensitivity.load(path))
    missing = [t for t in tensors if t.name not in found]
    if missing and found:
        names = ", ".join(t.name for t in missing[:3])
        raise UserError(
            f"{model.path}: transformers does not run {len(missing)} of its tensors as matrices of their own ({names}"
            f"{' and more' if missing[3:] else ''}), so gradients do not say how much they matter: use "
            "--sensitivity none"
        )
    for t in missing:
        found[t.name] = [_unit_term(t, imatrix)]
    return found


def _unit_term(tensor: Tensor, imatrix: Imatrix) -> Term:
    """Squared errors weighted by second moments of the inputs alone."""
    import numpy as np

    importance = imatrix.of(tensor.name, tensor.shape)
    columns = np.ones(tensor.shape[-1], np.float32) if importance is None else importance.mean(axis=0, dtype=np.float32)
    return Term(np.ones(1, dtype=np.float32), columns)


def measure(model: Model, settings: Settings, target: Target, folder: Path, progress: Progress) -> Measured:
    """Measure what is not in the folder yet.

    Raises:
        UserError: the model cannot be run, or a tensor cannot be read.
    """
    tensors = quantizable(model)
    imatrix_path = importance_matrix(model, settings, folder, progress)
    imatrix = load_imatrix(imatrix_path)
    terms = _sensitivities(model, settings, folder, tensors, imatrix, progress)
    architecture = str(model.value("general.architecture"))
    matrices, tables = [], []
    for t in tensors:
        columns = t.shape[-1]
        if not _is_table(t.name):
            may_have_list = why_no_list(architecture, t.name, columns) is None
            kinds = candidates_of(settings.types, settings.list_bits, columns, may_have_list)
            matrices.append(Wanted(t, kinds, terms[t.name]))
        elif target.nbytes is None or t.name in settings.tables:
            fixed = with_fallback(settings.tables.get(t.name, TABLE_TYPE), columns).qtype
            tables.append(Wanted(t, (Candidate(fixed),), terms[t.name]))
        else:
            tables.append(Wanted(t, candidates_of(settings.types, None, columns, False), terms[t.name]))
    found = losses.measure(
        model, [*tables, *matrices], imatrix, Store(folder / LOSSES), settings.threads, progress
    )
    return Measured(model, settings, folder, imatrix_path, tuple(matrices), tuple(tables), found)


def overhead(measured: Measured) -> int:
    """Bytes of a file beside the tensors that are quantized."""
    model = measured.model
    alignment = model.readers[0].alignment
    quantized = {w.tensor.name for w in (*measured.matrices, *measured.tables)}
    listed = [w.tensor.name for w in measured.matrices if any(c.rule for c in w.candidates)]
    rest = sum(padded(t.nbytes, alignment) for t in model.tensors if t.name not in quantized)
    return header_bytes(model, listed, alignment) + rest


def stored_bytes(measured: Measured, wanted: Wanted, candidate: Candidate, in_file: bool) -> int:
    """Bytes of a tensor and its list.

    Args:
        in_file: with what aligns them in a file.
    """
    shape, alignment = wanted.tensor.shape, measured.model.readers[0].alignment
    parts = (candidate.data_bytes(shape), candidate.list_bytes(shape))
    return sum(padded(n, alignment) for n in parts) if in_file else sum(parts)


def _impossible(measured: Measured, target: Target, least: int) -> UserError:
    path, types = measured.model.path, ", ".join(t.name for t in measured.settings.types)
    if target.bits is not None:
        bits = bits_per_weight(least, sum(w.tensor.n_weights for w in measured.matrices))
        # rounded up, so that the number is possible
        return UserError(
            f"--target-bpw {target.bits:g} is below what is possible for {path}: with {types} the least is "
            f"{int(bits * 1000 + 0.999) / 1000:.3f}"
        )
    assert target.nbytes is not None
    needed = least + overhead(measured)
    return UserError(
        f"--target-size {target.nbytes} is below what is possible for {path}: with {types} the least is {needed} "
        f"({needed / 1e6:.1f}M)"
    )


def assign(measured: Measured, target: Target, weights: Mapping[str, float] | None = None) -> Assignment:
    """The best types under a target.

    Args:
        weights: factors of the losses, by tensor; None: 1.

    Raises:
        UserError: the target is below what is possible; the least is named.
    """
    factor = weights or {}
    in_file = target.nbytes is not None
    free = measured.free(target)
    if in_file:
        assert target.nbytes is not None
        budget = target.nbytes - overhead(measured)
    else:
        assert target.bits is not None
        budget = int(target.bits * sum(w.tensor.n_weights for w in free) / 8)

    def choice(wanted: Wanted, candidate: Candidate) -> Choice:
        name = wanted.tensor.name
        loss = factor.get(name, 1.0) * measured.losses[name][candidate.name].loss
        return Choice(stored_bytes(measured, wanted, candidate, in_file), loss)

    choices = [[choice(w, c) for c in w.candidates] for w in free]
    try:
        chosen = allocate(choices, budget)
    except TooSmallBudgetError as error:
        raise _impossible(measured, target, error.least) from error
    picked = dict(zip((w.tensor.name for w in free), chosen, strict=True))

    def assigned(wanted: Wanted) -> Assigned:
        candidate = wanted.candidates[picked.get(wanted.tensor.name, 0)]
        return Assigned(wanted.tensor, candidate, measured.losses[wanted.tensor.name][candidate.name].loss)

    matrices, tables = tuple(map(assigned, measured.matrices)), tuple(map(assigned, measured.tables))
    wanted_and_found = zip((*measured.matrices, *measured.tables), (*matrices, *tables), strict=True)
    data = sum(stored_bytes(measured, w, a.candidate, True) for w, a in wanted_and_found)
    return Assignment(matrices, tables, overhead(measured) + data)
