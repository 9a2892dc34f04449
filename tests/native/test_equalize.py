"""Equalized input channels: the model computes the same, blocks fit better, and what cannot be equalized says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from calibration_models import family_folder
from convert_models import tensors
from gguf_writing import write_imatrix
from program import bof4

from gguf_bof4.channel_factors import Factors
from gguf_bof4.convert import Options, convert
from gguf_bof4.convert.equalize import CANDIDATES, LARGEST, Heads, channel_factors, equalizing_factors
from gguf_bof4.encoders.gptq.weights import GgufWeights
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.quants import BOF4_S

Floats = npt.NDArray[np.float32]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")

PARTS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
"""All that is changed in a layer."""

TEXT = Path(__file__)
"""Any text will do."""

GPTQ: dict[str, Any] = {
    "encoder": "gptq", "calibration": str(TEXT), "samples": 4, "sample_length": 48, "type": "BOF4_S", "threads": 1
}  # fmt: skip


def powers(model: Path) -> dict[str, tuple[Floats, Floats]]:
    """Of inputs that differ by a factor of a hundred and more; matrices that read the same input have the same."""
    generator = np.random.default_rng(4)
    found: dict[str, tuple[Floats, Floats]] = {}
    for t in open_model(model).tensors:
        if t.name.startswith("blk.") and len(t.shape) == 2:
            shared = t.name.replace("attn_k", "attn_q").replace("attn_v", "attn_q").replace("ffn_up", "ffn_gate")
            own = np.exp(2 * generator.standard_normal((1, t.shape[1]))).astype(np.float32)
            found[t.name] = found.get(shared, (own, np.ones(1, np.float32)))
    return found


def logits(model: Path) -> Floats:
    skeleton = GgufWeights(open_model(model)).whole()
    tokens = torch.arange(3, 67)[None] % skeleton.model.config.vocab_size
    with torch.no_grad():
        return np.asarray(skeleton.model(input_ids=tokens).logits[0].float().numpy())


@dataclass(frozen=True)
class Source:
    """A model as a folder and as a file in F32, and an importance matrix of it."""

    folder: Path
    file: Path
    imatrix: Path


def make_source(folder: Path, family: str) -> Source:
    (folder / family).mkdir()
    file = folder / f"{family}.gguf"
    convert(family_folder(folder / family, family), file, type="F32")
    return Source(folder / family, file, write_imatrix(folder / "imatrix.gguf", powers(file)))


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Of each family."""
    return make_source(tmp_path_factory.mktemp("family"), request.param)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_source(tmp_path_factory.mktemp("gemma"), "gemma3")


def test_the_model_computes_the_same(source: Source, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "type": "F32", "imatrix": str(source.imatrix), "equalize": True, "equalize_strength": 0.5
    }  # fmt: skip
    convert(source.file, tmp_path / "equalized.gguf", **options)
    before, after = tensors(source.file), tensors(tmp_path / "equalized.gguf")
    changed = {name for name in before if before[name] != after[name]}
    weights = {f"blk.{i}.{part}.weight" for i in range(2) for part in PARTS}
    biases = {name for name in before if name.endswith("attn_v.bias")}
    assert changed == weights | biases
    wanted, found = logits(source.file), logits(tmp_path / "equalized.gguf")
    np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())
    assert open_model(tmp_path / "equalized.gguf").value("bof4.equalized") is True
    # of a folder the same
    convert(source.folder, tmp_path / "of-folder.gguf", **options)
    assert tensors(tmp_path / "of-folder.gguf") == after


def test_what_is_made_of_an_equalized_file_says_so(gemma: Source, tmp_path: Path) -> None:
    convert(gemma.file, tmp_path / "equalized.gguf", type="F32", imatrix=str(gemma.imatrix), equalize=True)
    convert(tmp_path / "equalized.gguf", tmp_path / "out.gguf", type="BOF4_S")
    assert open_model(tmp_path / "out.gguf").value("bof4.equalized") is True


def test_without_importance_matrix_the_model_writes_a_text(gemma: Source, tmp_path: Path) -> None:
    assert Options(equalize=True).completed.imatrix == "self"
    assert Options(equalize=True, imatrix="random").completed.imatrix == "random"
    assert Options().completed.imatrix is None
    made = convert(gemma.file, tmp_path / "out.gguf", equalize=True, dry_run=True)
    assert made.dry_run


def test_gptq_encodes_the_equalized_weights(source: Source, tmp_path: Path) -> None:
    """Its model has the same weights as the targets, bit for bit, of a file and of a folder: no matrix is left out."""
    options: dict[str, Any] = {"imatrix": str(source.imatrix), "equalize": True, "equalize_strength": 0.3}
    for given in (source.file, source.folder):
        made = convert(given, tmp_path / "out.gguf", force=True, **GPTQ, **options)
        left_out = [t.not_compensated for t in made.tensors if t.not_compensated is not None]
        assert not [why for why in left_out if "no multiple of 64" not in why]
    convert(source.file, tmp_path / "exact.gguf", type="F32", **options)
    exact = {t.name: t for t in open_model(tmp_path / "exact.gguf").tensors}
    convert(tmp_path / "out.gguf", tmp_path / "decoded.gguf", type="F32")
    for t in open_model(tmp_path / "decoded.gguf").tensors:
        if t.name in exact and len(t.shape) == 2 and t.name.startswith("blk."):
            wanted = exact[t.name].read_rows().view(np.float32)
            error = np.square(t.read_rows().view(np.float32) - wanted).sum() / np.square(wanted).sum()
            assert error < 0.05, (t.name, error)


def test_refinement_trains_the_equalized_model(gemma: Source, tmp_path: Path) -> None:
    notes: list[str] = []
    convert(
        gemma.file, tmp_path / "out.gguf", progress=lambda step, *_: notes.append(step), **GPTQ,
        imatrix=str(gemma.imatrix), equalize=True, refine=True, refine_parts="rounding,scales", refine_steps=2,
    )  # fmt: skip
    assert any("error of samples not trained on" in note for note in notes)
    assert any("KL divergence of samples not trained on" in note for note in notes)


def test_factors_of_channels() -> None:
    inputs, weights = np.array([1, 4, 1, 1 / 4], np.float32), np.ones(4, np.float32)
    np.testing.assert_allclose(channel_factors(inputs, weights, 1.0), [1, 2, 1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(channel_factors(weights, inputs, 1.0), [1, 0.5, 1, 2], rtol=1e-6)
    assert channel_factors(np.zeros(3, np.float32), np.ones(3, np.float32), 0.5).tolist() == [1, 1, 1]
    assert channel_factors(np.ones(2, np.float32), np.array([1, np.nan], np.float32), 0.5).tolist() == [1, 1]
    found = channel_factors(np.array([1, 0], np.float32), np.array([0, 1], np.float32), 1.0)
    assert np.isfinite(found).all()
    assert found[0] > found[1] > 0


def test_channels_that_are_large_for_few_tokens_do_not_stretch_their_blocks() -> None:
    inputs, weights = np.array([1, 2, 1, 1, 1e6], np.float32), np.ones(5, np.float32)
    clipped = np.array([1, 2, 1, 1, LARGEST], np.float32)
    assert channel_factors(inputs, weights, 0.5).tolist() == channel_factors(clipped, weights, 0.5).tolist()
    # most channels without inputs
    assert np.isfinite(channel_factors(np.array([0, 0, 1], np.float32), np.ones(3, np.float32), 0.5)).all()


def test_the_best_of_several_factors_is_found_for_each_group() -> None:
    given, asked = shapes(), []
    powers = {name: np.array([1, 2, 4, 8] * (s[-1] // 4), np.float32) for name, s in given.items() if len(s) == 2}

    def loss(names: Sequence[str], columns: Floats) -> float:
        """Attention is best with strength 0.25, everything else as it is."""
        asked.append(tuple(name.split(".")[2] for name in names))
        wanted = 0.25 if "attn" in names[0] else 0.0
        largest = 2 ** (3 * wanted / 2)
        return abs(float(columns.max() / columns.min()) - largest)

    found = equalizing_factors("llama", given, powers, lambda name: np.ones(given[name][-1], np.float32), HEADS, loss)
    wanted = channel_factors(powers["blk.0.attn_q.weight"], np.ones(16, np.float32), 0.25)
    for part in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{part}.weight"].columns, wanted, rtol=1e-6)
    for part in ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"):
        of_part = found[f"blk.0.{part}.weight"]
        assert all((x == 1).all() for x in (of_part.rows, of_part.columns) if x is not None)
    groups = {("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",)}
    assert set(asked) == groups and len(asked) == len(groups) * (1 + len(CANDIDATES))


def test_measured_factors_have_less_error_where_there_is_something_to_gain(gemma: Source, tmp_path: Path) -> None:
    """The weighted error of every matrix that has whole blocks, for its own inputs, against the exact weights."""
    options: dict[str, Any] = {"type": "BOF4_S", "imatrix": str(gemma.imatrix), "opq": ("off",), "pure": False}
    errors = []
    for name, equalize in (("plain", False), ("equalized", True)):
        convert(gemma.file, tmp_path / f"{name}.gguf", equalize=equalize, **options)
        convert(tmp_path / f"{name}.gguf", tmp_path / f"{name}-decoded.gguf", type="F32")
        errors.append({t.name: t for t in open_model(tmp_path / f"{name}-decoded.gguf").tensors})
    convert(gemma.file, tmp_path / "exact.gguf", type="F32", imatrix=str(gemma.imatrix), equalize=True)
    exact = {t.name: t.read_rows().view(np.float32) for t in open_model(tmp_path / "exact.gguf").tensors}
    plain = {t.name: t.read_rows().view(np.float32) for t in open_model(gemma.file).tensors}
    inputs, ratios = powers(gemma.file), []
    for name, (power, _) in inputs.items():
        if power.shape[1] % 64 == 0:
            scale = np.linalg.norm(exact[name], axis=0) / np.linalg.norm(plain[name], axis=0)
            before = (np.square(errors[0][name].read_rows().view(np.float32) - plain[name]) * power).sum()
            after = (np.square((errors[1][name].read_rows().view(np.float32) - exact[name]) / scale) * power).sum()
            ratios.append(after / before)
    assert len(ratios) > 8 and np.mean(ratios) < 0.97 and min(ratios) < 0.93 and max(ratios) < 1.1


def test_weights_that_cannot_be_encoded_are_named_by_the_encoder(gemma: Source, tmp_path: Path) -> None:
    """Measuring says nothing about them; nor about matrices that the importance matrix does not know."""
    model = open_model(gemma.file)
    for value, message in ((np.nan, "NaN or infinite, at \\[0, 3\\]"), (1e6, "at \\[0, 3\\]")):
        damaged = tmp_path / "damaged.gguf"
        data = bytearray(gemma.file.read_bytes())
        tensor = next(t for t in model.tensors if t.name == "blk.0.attn_k.weight")
        at = gemma.file.read_bytes().index(tensor.read_rows()[0].tobytes()) + 4 * 3
        data[at : at + 4] = np.float32(value).tobytes()
        damaged.write_bytes(data)
        with pytest.raises(UserError, match=f"blk.0.attn_k.weight .*{message}"):
            convert(damaged, tmp_path / "out.gguf", imatrix=str(gemma.imatrix), equalize=True, opq=("off",))
    known = {name: entry for name, entry in powers(gemma.file).items() if "attn_k" not in name}
    convert(gemma.file, tmp_path / "out.gguf", imatrix=str(write_imatrix(tmp_path / "some.gguf", known)), equalize=True)


def test_half_strength_takes_back_factors_that_a_model_has() -> None:
    """Channels of other sizes, for which inputs are the reciprocal, end as the same weights."""
    generator = np.random.default_rng(6)
    weights, inputs = generator.standard_normal((40, 64)), generator.uniform(0.5, 2, size=64)
    others = np.exp(0.2 * generator.standard_normal(64))

    def equalized(w: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        power = np.square(w).sum(axis=0).astype(np.float32)
        made: npt.NDArray[np.float64] = w * channel_factors(x.astype(np.float32), power, 0.5)
        return made / np.abs(made).max()

    np.testing.assert_allclose(
        equalized(weights * others, inputs / np.square(others)), equalized(weights, inputs), rtol=1e-5
    )


def test_half_strength_has_the_least_error() -> None:
    """The weighted error of BOF4_S, without importance matrix: less than with other strengths, and than without."""
    generator = np.random.default_rng(7)
    weights = generator.standard_normal((64, 256)) * np.exp(0.7 * generator.standard_normal(256))
    inputs = np.exp(0.7 * generator.standard_normal(256))

    def error(strength: float) -> float:
        power = np.square(weights).sum(axis=0).astype(np.float32)
        factors = channel_factors(inputs.astype(np.float32), power, strength)
        scaled = (weights * factors).astype(np.float32)
        decoded = BOF4_S.dequantize(BOF4_S.quantize(scaled))
        return float((np.square((decoded - scaled) / factors) * inputs).sum())

    assert error(0.5) < 0.9 * min(error(0.0), error(1.0))
    assert error(0.5) < min(error(0.2), error(0.8))


def test_factors_of_rows_and_columns() -> None:
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    made = Factors(np.array([1, 2, 4], np.float32), np.array([1, 10], np.float32))
    assert made.applied(weights).tolist() == [[0, 10], [4, 60], [16, 200]]
    assert made.applied(weights[1:], 1).tolist() == [[4, 60], [16, 200]]
    assert Factors().applied(weights) is weights


def shapes(**others: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """A layer of four heads of queries and two of keys, of 8 each."""
    of_parts = {
        "attn_norm": (16,), "attn_q": (32, 16), "attn_k": (16, 16), "attn_v": (16, 16), "attn_output": (16, 32),
        "ffn_norm": (16,), "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24), **others,
    }  # fmt: skip
    return {f"blk.0.{part}.weight": shape for part, shape in of_parts.items()}


HEADS = Heads(4, 2)


def factors_of(given: dict[str, tuple[int, ...]], heads: Heads | None = HEADS) -> set[str]:
    generator = np.random.default_rng(1)
    known = {name: generator.gamma(1, size=s[-1]).astype(np.float32) for name, s in given.items() if len(s) == 2}
    found = equalizing_factors("llama", given, known, lambda name: np.ones(given[name][-1], np.float32), heads, 0.5)
    return {name.split(".")[2] for name in found}


def test_parts_that_are_not_known_stay() -> None:
    attention = {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"}
    forward = {"ffn_norm", "ffn_gate", "ffn_up", "ffn_down"}
    assert factors_of(shapes()) == attention | forward
    assert factors_of(shapes(ffn_gate_inp=(4, 16))) == attention, "a router reads the norm, too"
    assert factors_of(shapes(attn_gate=(32, 16))) == forward, "so does a gate of attention"
    assert factors_of(shapes(), None) == (attention | forward) - {"attn_output"}
    assert factors_of(shapes(), Heads(4, 1)) == (attention | forward) - {"attn_output"}, "not of these shapes"
    none: dict[str, Floats] = {}
    for architecture in ("phi3", "llama"):
        assert equalizing_factors(architecture, shapes(), none, none.__getitem__, HEADS, 0.5) == {}


def test_what_cannot_be_equalized_is_refused(gemma: Source, tmp_path: Path) -> None:
    ones = {"other.weight": (np.ones((1, 8), np.float32), np.ones(1, np.float32))}
    known, other = {"imatrix": str(gemma.imatrix)}, {"imatrix": str(write_imatrix(tmp_path / "other.gguf", ones))}
    convert(gemma.file, tmp_path / "q8.gguf", type="Q8_0")
    phi = make_source(tmp_path, "phi").file
    cases: tuple[tuple[Path, dict[str, Any], str], ...] = (
        (gemma.file, {"encoder": "absmax"}, "--encoder absmax uses no importance matrix"),
        (gemma.file, {"equalize": False, "equalize_strength": 0.3}, "--equalize-strength says .* give --equalize, too"),
        (gemma.file, {**known, "equalize_strength": 0.0}, "--equalize-strength 0.0: give a number above 0, at most 1"),
        (gemma.file, other, "--equalize found no layer whose parts it knows"),
        (tmp_path / "q8.gguf", known, "is Q8_0, and --equalize needs an unquantized"),
        (phi, known, "--equalize knows the layers of gemma, gemma2, gemma3, llama, qwen2, qwen3, and this model"),
        (phi, {"dry_run": True}, "--equalize knows the layers of "),
        (phi, {}, "--equalize knows the layers of "),  # before the model writes a text for the importance matrix
    )
    for file, options, message in cases:
        with pytest.raises(UserError, match=message):
            convert(file, tmp_path / "out.gguf", **{"equalize": True, **options})
        assert not (tmp_path / "out.gguf").exists()


def test_the_command_line(gemma: Source, tmp_path: Path) -> None:
    options = ("--imatrix", gemma.imatrix, "--equalize", "--equalize-strength", "0.5")
    done = bof4("convert", gemma.file, tmp_path / "out.gguf", *options)
    assert done.returncode == 0, done.stderr
    model = open_model(tmp_path / "out.gguf")
    assert model.value("bof4.equalized") is True
    assert {t.qtype for t in model.tensors if "ffn_up" in t.name} == {gguf.GGMLQuantizationType(176)}
