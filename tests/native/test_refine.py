"""Refinement after gptq: what is trained, what stays as it is, and that the result is never worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_models import family_folder
from convert_models import tensors

from gguf_bof4 import native
from gguf_bof4.convert import convert
from gguf_bof4.encoders.encoder import Encoded, Target
from gguf_bof4.encoders.gptq.layer import Workers
from gguf_bof4.encoders.gptq.model import make_skeleton
from gguf_bof4.encoders.gptq.refine import training
from gguf_bof4.encoders.gptq.refine.factors import factors
from gguf_bof4.encoders.gptq.refine.student import Student, make_student
from gguf_bof4.encoders.gptq.weights import GgufWeights
from gguf_bof4.errors import UserError
from gguf_bof4.formats import BOF4_S, FORMAT_OF_TYPE_ID, FORMATS, SCALE_BYTES
from gguf_bof4.gguf_files.model import Model, open_model

TEXT = Path(__file__)
"""Any text will do."""

SHORT: dict[str, Any] = {
    "encoder": "gptq", "calibration": str(TEXT), "samples": 4, "sample_length": 48, "type": "BOF4_S", "opq": ("0.9",),
    "threads": 1,  # products of small matrices are slower on two
}  # fmt: skip

SHORT_TEXT = str(Path(__file__).with_name("conftest.py"))

FAMILIES = ("llama", "gemma3", "qwen2")
"""Rows in another order, norms with an offset, biases."""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Unquantized files of small models, made when they are asked for."""

    class Made(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            folder = tmp_path_factory.mktemp(family)
            self[family] = folder / "f32.gguf"
            convert(family_folder(folder, family), self[family], type="F32")
            return self[family]

    return Made()


def refined(source: Path, target: Path, **options: Any) -> None:
    convert(source, target, **{**SHORT, "refine": True, "refine_parts": "scales", "refine_steps": 12, **options})


def student_of(source: Path, quantized: Path, samples: int = 2) -> Student:
    """The student of a file that is quantized already, and its unquantized source."""
    plain, coded = open_model(source), open_model(quantized)
    by_name = {t.name: t for t in plain.tensors}

    def values(model: Model, name: str) -> Any:
        tensor = {t.name: t for t in model.tensors}[name]
        return model.read_weights(tensor, native.dequantize).reshape(tensor.shape)

    ours = [t for t in coded.tensors if int(t.qtype) in FORMAT_OF_TYPE_ID]
    weights = GgufWeights(plain)
    return make_student(
        make_skeleton(weights.config(), source),
        weights,
        str(plain.value("general.architecture")),
        [Target(t.name, t.qtype, t.shape, None, lambda t=t: values(plain, t.name), None) for t in ours],  # type: ignore
        {t.name: Encoded(t.read_rows(), coded.outliers(t)) for t in ours},
        {name: lambda name=name: values(plain, name) for name, t in by_name.items() if len(t.shape) == 1},  # type: ignore
        torch.arange(samples * 32).reshape(samples, 32) * 7 % 389,
        Workers(1, torch.device("cpu")),
        lambda i: None,
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_factors_are_the_weights(fmt: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 4 * fmt.block_size), dtype=np.float32)
    qtype: Any = fmt.type_id
    data = native.quantize(rows, qtype)
    made = factors(data, fmt)
    products = made.multipliers.reshape(6, -1, fmt.block_size) * (made.scales * np.float32(made.unit))[..., None]
    np.testing.assert_allclose(products.reshape(rows.shape), native.dequantize(data, qtype), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_is_that_of_the_decoded_model(family: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """Against transformers with the decoded file in the place of the weights, and torch's own divergence."""
    convert(sources[family], tmp_path / "coded.gguf", type="BOF4_S", opq=("0.9",), token_embedding_type="f32",
            output_tensor_type="f32")  # fmt: skip
    convert(tmp_path / "coded.gguf", tmp_path / "decoded.gguf", type="F32")
    student = student_of(sources[family], tmp_path / "coded.gguf")
    assert len(student.matrices) == sum(t.qtype.name == "BOF4_S" for t in open_model(tmp_path / "coded.gguf").tensors)
    assert len(student.vectors) >= 2 * 2
    logits = []
    for name in (sources[family], tmp_path / "decoded.gguf"):
        weights = GgufWeights(open_model(name))
        skeleton = make_skeleton(weights.config(), name)
        names = [n for n, _ in skeleton.model.named_parameters() if n != "lm_head.weight" or family != "gemma3"]
        weights.fill(skeleton, names)
        if family == "gemma3":  # has its embeddings as output matrix, and stores them once
            skeleton.model.lm_head.weight = skeleton.model.model.embed_tokens.weight
        logits.append(skeleton.model(input_ids=student.tokens, use_cache=False).logits.double().log_softmax(-1))
    wanted = torch.nn.functional.kl_div(logits[1], logits[0], log_target=True, reduction="none").sum((1, 2))
    found = [float(student.divergence(i).detach()) for i in range(2)]
    np.testing.assert_allclose(found, wanted.tolist(), rtol=2e-3)


def test_gradients_are_differences(sources: dict[str, Path], tmp_path: Path) -> None:
    convert(sources["llama"], tmp_path / "coded.gguf", type="BOF4_S", opq=("0.9",))
    student = student_of(sources["llama"], tmp_path / "coded.gguf")
    matrix = student.matrices["blk.1.ffn_down.weight"]
    vector = student.vectors["blk.1.ffn_norm.weight"].parameter
    student.divergence(0).backward()
    for parameter in (matrix.change, vector):
        assert parameter.grad is not None
        slope = parameter.grad.norm()
        step = 0.02 * parameter.grad / slope
        values = []
        for sign in (-1, 1):
            with torch.no_grad():
                parameter.add_(step, alpha=sign)
                values.append(float(student.divergence(0)))
                parameter.sub_(step, alpha=sign)
        assert float(slope) == pytest.approx((values[1] - values[0]) / 0.04, rel=0.05)


def test_only_scales_and_norms_change(sources: dict[str, Path], tmp_path: Path) -> None:
    convert(sources["gemma3"], tmp_path / "before.gguf", **SHORT)
    refined(sources["gemma3"], tmp_path / "after.gguf")
    before, after = tensors(tmp_path / "before.gguf"), tensors(tmp_path / "after.gguf")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    coded = {t.name for t in open_model(tmp_path / "after.gguf").tensors if t.qtype.name == "BOF4_S"}
    norms = {name for name in before if name.startswith("blk.") and "norm" in name}
    assert coded <= changed <= coded | norms and changed & norms
    for name in coded:
        blocks = [np.frombuffer(x[name][2], np.uint8).reshape(-1, BOF4_S.block_bytes) for x in (before, after)]
        np.testing.assert_array_equal(blocks[0][:, SCALE_BYTES:], blocks[1][:, SCALE_BYTES:])
    assert open_model(tmp_path / "after.gguf").value("bof4.refined") is True
    assert "bof4.refined" not in open_model(tmp_path / "before.gguf").fields
    assert not list(tmp_path.glob(".*"))


def test_folders_and_transposed_matrices(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    folder = family_folder(tmp_path / "gpt2", "gpt2")
    convert(folder, tmp_path / "before.gguf", **SHORT)
    refined(folder, tmp_path / "after.gguf")
    before, after = tensors(tmp_path / "before.gguf"), tensors(tmp_path / "after.gguf")
    coded = {t.name for t in open_model(tmp_path / "after.gguf").tensors if t.qtype.name == "BOF4_S"}
    assert len(coded) == 2 * 4 and all(before[name] != after[name] for name in coded)


def test_training_lowers_the_divergence_of_what_it_has_not_seen(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With scales that are wrong by a tenth, so that there is something to learn."""
    monkeypatch.setattr(training, "LEARNING_RATE", 1e-2)
    convert(sources["llama"], tmp_path / "coded.gguf", type="BOF4_S", opq=("off",))
    student = student_of(sources["llama"], tmp_path / "coded.gguf", samples=16)
    for matrix in student.matrices.values():
        matrix.scales_before *= 1.1
    course = training.train(student, training.Budget(1.0, 20), tmp_path / "work", lambda *_: None)
    assert course.steps == 20 and course.after < 0.8 * course.before
    judged = training.split(16).judged
    assert training.judge(student, judged) == pytest.approx(course.after, rel=1e-3)


def test_steps_give_the_same_file_again_and_after_an_interruption(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refined(sources["qwen2"], tmp_path / "once.gguf")
    saved = training._State.save

    def interrupted(self: Any) -> None:
        saved(self)
        if self.step >= 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._State, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refined(sources["qwen2"], tmp_path / "twice.gguf")
    monkeypatch.undo()
    assert (tmp_path / ".twice.gguf.gptq" / "refine.pt").is_file()
    load, loaded = training._State.load, []

    def watched(self: Any) -> bool:
        loaded.append(load(self))
        return loaded[-1]

    monkeypatch.setattr(training._State, "load", watched)
    refined(sources["qwen2"], tmp_path / "twice.gguf")
    assert loaded == [True]
    assert (tmp_path / "once.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def test_what_does_not_help_is_not_kept(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate that ruins the model the tensors stay as gptq made them."""
    convert(sources["llama"], tmp_path / "before.gguf", **SHORT)
    monkeypatch.setattr(training, "LEARNING_RATE", 30.0)
    refined(sources["llama"], tmp_path / "after.gguf", refine_steps=6)
    assert tensors(tmp_path / "before.gguf") == tensors(tmp_path / "after.gguf")


def test_minutes_end(sources: dict[str, Path], tmp_path: Path) -> None:
    refined(sources["llama"], tmp_path / "after.gguf", refine_steps=None, refine_minutes=0.02)
    assert open_model(tmp_path / "after.gguf").value("bof4.refined") is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "search", "calibration": None}, "--encoder search runs no model, so it takes no --refine"),
        ({"refine": False}, "--refine-steps say how long --refine trains: give --refine, too"),
        ({"refine": False, "refine_steps": None}, "--refine-parts says what --refine trains: give --refine, too"),
        ({"refine": False, "refine_steps": None, "refine_minutes": 5.0}, "--refine-minutes .* give --refine, too"),
        ({"refine_minutes": 0.0}, "--refine-minutes 0.0: give a number above 0"),
        ({"refine_steps": 0}, "--refine-steps 0: give 1 or more"),
        ({"refine_samples": 3}, "--refine-samples 3: some train and others judge, so give 4 or more"),
        (
            {"refine": False, "refine_steps": None, "refine_parts": "rounding", "refine_samples": 8},
            "--refine-samples says how much text --refine trains on: give --refine, too",
        ),
        (
            {"sample_length": 250, "samples": 1, "calibration": SHORT_TEXT},
            "--refine trains on some samples and judges by others",
        ),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, Any], message: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        refined(sources["llama"], tmp_path / "out.gguf", **options)
    assert not (tmp_path / "out.gguf").exists()
