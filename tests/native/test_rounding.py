"""Progressive adaptive rounding after gptq: gradients, what is kept, and the same result again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_models import family_folder
from convert_models import tensors
from gguf import GGMLQuantizationType
from torch import nn

from gguf_bof4 import native
from gguf_bof4.convert import convert
from gguf_bof4.encoders.encoder import Encoded, Finished, Target
from gguf_bof4.encoders.gptq.layer import Layer, Workers
from gguf_bof4.encoders.gptq.model import linear_weight
from gguf_bof4.encoders.gptq.refine import driver, reconstruction, rounding
from gguf_bof4.encoders.gptq.refine.factors import codes_of, factors, sub_scales, with_codes
from gguf_bof4.encoders.gptq.refine.reconstruction import SoftMatrix, alpha_of, reconstruct, start
from gguf_bof4.encoders.gptq.refine.training import Budget, split
from gguf_bof4.encoders.gptq.samples import make_samples
from gguf_bof4.formats import BOF4_K, BOF4_S, FORMATS, SCALE_BYTES, Format
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.lists import decode
from gguf_bof4.native import BlockEncoder
from gguf_bof4.progress import NOTE

TEXT = Path(__file__)
"""Any text will do."""

SHORT: dict[str, Any] = {
    "encoder": "gptq", "calibration": str(TEXT), "samples": 4, "sample_length": 48, "type": "BOF4_S", "opq": ("0.9",),
    "threads": 1,  # products of small matrices are slower on two
}  # fmt: skip


def source_of(folder: Path, family: str) -> Path:
    (folder / family).mkdir()
    convert(family_folder(folder / family, family), folder / f"{family}.gguf", type="F32")
    return folder / f"{family}.gguf"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, unquantized."""
    return source_of(tmp_path_factory.mktemp("models"), "llama")


def rounded(source: Path, target: Path, **options: Any) -> list[str]:
    """Convert with rounding, and return the lines that stay on the screen."""
    notes: list[str] = []

    def progress(step: str, done: int, total: int) -> None:
        if total == NOTE:
            notes.append(step)

    given = {**SHORT, "refine": True, "refine_parts": "rounding", "refine_steps": 60, **options}
    convert(source, target, progress=progress, **given)
    return [note for note in notes if "refine:" in note]


def encoded_rows(fmt: Format, quantile: float | None, rows: int = 6) -> tuple[Any, Encoded]:
    """Random rows, and the same by the encoder search."""
    made = np.random.default_rng(0).standard_normal((rows, 2 * fmt.block_size)).astype(np.float32)
    qtype = GGMLQuantizationType(fmt.type_id)
    outliers = None if quantile is None else native.select_outliers(made, quantile)
    base = made.copy()
    if outliers is not None:
        base[outliers.rows, outliers.columns] = 0
    return made, Encoded(native.quantize(base, qtype, encoder=BlockEncoder.SEARCH), outliers)


def decoded(encoded: Encoded, fmt: Format) -> Any:
    return decode(encoded.data, GGMLQuantizationType(fmt.type_id), encoded.outliers, native.dequantize)


def soft(fmt: Format, quantile: float | None = None, bias: torch.Tensor | None = None) -> tuple[Any, Encoded, Any]:
    """Random rows, encoded, as a matrix of a module that has them in another order; the places of the rows."""
    rows, encoded = encoded_rows(fmt, quantile)
    places = np.array([2, 0, 1, 5, 3, 4])
    return rows, encoded, SoftMatrix(encoded, fmt, rows, places, bias, torch.device("cpu"))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_codes_come_out_of_a_tensor_and_go_back(fmt: Format) -> None:
    _, encoded = encoded_rows(fmt, None)
    codes = codes_of(encoded.data, fmt)
    made = factors(encoded.data, fmt)
    levels = np.array(fmt.levels)[codes].reshape(len(codes), -1, fmt.sub_block_size)
    products = levels * sub_scales(encoded.data, fmt)[..., None]
    np.testing.assert_array_equal(products.reshape(codes.shape), made.multipliers)
    np.testing.assert_array_equal(with_codes(encoded.data, fmt, codes), encoded.data)
    other = (codes + 7) % 16
    np.testing.assert_array_equal(codes_of(with_codes(encoded.data, fmt, other), fmt), other)


@pytest.mark.parametrize("quantile", [None, 0.9])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_a_matrix_has_the_encoded_weights_then_softer_ones_and_then_those_of_its_tensor(
    fmt: Format, quantile: float | None
) -> None:
    rows, encoded, matrix = soft(fmt, quantile)
    places, weight, hard = matrix._places, matrix.module.weight, decoded(encoded, fmt)
    np.testing.assert_allclose(weight.detach().numpy()[places], hard, rtol=1e-6, atol=1e-7)
    matrix.write()
    made = factors(encoded.data, fmt)
    units = np.repeat(np.repeat(made.scales * made.unit, fmt.n_sub_blocks, 1) * sub_scales(encoded.data, fmt),
                      fmt.sub_block_size, 1)  # fmt: skip
    inside = np.abs(rows / units) < 80  # between two levels, of which search has taken the nearer one
    moved, wanted = weight.detach().numpy()[places] - hard, rows - hard
    if encoded.outliers is not None:
        at = (encoded.outliers.rows, encoded.outliers.columns)
        inside[at] = False
        np.testing.assert_allclose(moved[at], 0, atol=1e-6)
    assert inside.mean() > 0.5
    assert ((moved * wanted >= 0) & (np.abs(moved) < 30 * 0.15 * np.abs(units)))[inside].all() and moved[inside].any()
    with torch.no_grad():
        matrix.nu.add_(torch.randn(matrix.nu.shape, generator=torch.Generator().manual_seed(0)))
        matrix.v.add_(torch.randn(matrix.v.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    finished = matrix.finish()
    np.testing.assert_allclose(weight.detach().numpy()[places], decoded(finished, fmt), rtol=1e-6, atol=1e-7)
    lower, _ = start(np.where(np.isfinite(rows / units), rows / units, 0).astype(np.float32),
                     codes_of(encoded.data, fmt), fmt.levels)  # fmt: skip
    codes = codes_of(finished.data, fmt)
    if encoded.outliers is None:
        assert ((codes == lower) | (codes == lower + 1)).all()
    blocks = [x.reshape(-1, fmt.block_bytes)[:, SCALE_BYTES : fmt.codes_at] for x in (encoded.data, finished.data)]
    np.testing.assert_array_equal(*blocks)  # the scales of sub-blocks


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_zero_scales_and_outliers_are_not_trained(fmt: Format) -> None:
    rows, encoded = encoded_rows(fmt, 0.9)
    rows[2, : fmt.block_size] = 0
    base = rows.copy()
    outliers = encoded.outliers
    assert outliers is not None
    base[outliers.rows, outliers.columns] = 0
    encoded = Encoded(native.quantize(base, GGMLQuantizationType(fmt.type_id), encoder=BlockEncoder.SEARCH), outliers)
    matrix = SoftMatrix(encoded, fmt, rows, np.arange(6), None, torch.device("cpu"))
    with torch.no_grad():
        matrix.nu.add_(torch.randn(matrix.nu.shape, generator=torch.Generator().manual_seed(0)))
    matrix.write()
    matrix.module.weight.grad = torch.ones_like(matrix.module.weight)
    matrix.pull()
    assert matrix.nu.grad is not None and bool(torch.isfinite(matrix.nu.grad).all())
    assert not matrix.nu.grad[outliers.rows, outliers.columns].any()
    assert not matrix.nu.grad[2, : fmt.block_size].any()
    codes, before = codes_of(matrix.finish().data, fmt), codes_of(encoded.data, fmt)
    np.testing.assert_array_equal(codes[outliers.rows, outliers.columns], before[outliers.rows, outliers.columns])
    np.testing.assert_array_equal(codes[2, : fmt.block_size], before[2, : fmt.block_size])


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_gradients_are_those_of_torch(fmt: Format) -> None:
    """Of the formula in the module's docstring, written once more for autograd."""
    _, encoded, matrix = soft(fmt, 0.9, torch.randn(6))
    with torch.no_grad():  # no alpha lies just where it reaches 0 or 1
        matrix.nu.add_(torch.randn(matrix.nu.shape, generator=torch.Generator().manual_seed(0)))
        matrix.v.add_(torch.randn(matrix.v.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    inputs = torch.randn(5, 2 * fmt.block_size, generator=torch.Generator().manual_seed(2))
    matrix.write()
    matrix.module(inputs).square().sum().backward()
    matrix.pull()
    nu, v = (p.detach().clone().requires_grad_() for p in (matrix.nu, matrix.v))
    order = np.argsort(matrix._places)
    levels = torch.tensor(fmt.levels, dtype=torch.float32)
    lower = torch.from_numpy(matrix._lower_codes[order].astype(np.int64))
    alpha = (1.2 * torch.sigmoid(nu) - 0.1).clamp(0, 1)
    mixed = levels[lower] + alpha * (levels[lower + 1] - levels[lower])
    made = factors(encoded.data, fmt)
    scales = torch.from_numpy(made.scales[order]) * 2 * torch.sigmoid(v) * made.unit
    subs = torch.from_numpy(sub_scales(encoded.data, fmt)[order]).repeat_interleave(fmt.sub_block_size, 1)
    weights = mixed * scales.repeat_interleave(fmt.block_size, 1) * subs
    held = encoded.outliers
    assert held is not None
    listed = torch.zeros_like(weights)
    listed[matrix._places[held.rows], held.columns] = torch.from_numpy(held.values.copy())
    torch.nn.functional.linear(inputs, weights + listed, matrix.module.bias).square().sum().backward()
    assert nu.grad is not None and v.grad is not None and bool(nu.grad.any()) and bool(v.grad.any())
    torch.testing.assert_close(matrix.nu.grad, nu.grad, rtol=1e-3, atol=1e-3 * float(nu.grad.abs().mean()))
    torch.testing.assert_close(matrix.v.grad, v.grad, rtol=1e-3, atol=1e-3 * float(v.grad.abs().mean()))


class _Block(nn.Module):
    """A decoder layer of one module: what it adds to its inputs is its output."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = hidden[..., :6] + self.linear(hidden)
        return made


def block_of(fmt: Format) -> tuple[Layer, dict[str, SoftMatrix], torch.Tensor, torch.Tensor]:
    """A layer whose matrix is encoded, inputs that are correlated, and the outputs with unquantized weights."""
    rows, _, matrix = soft(fmt)
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(2 * fmt.block_size, 2 * fmt.block_size, generator=generator)
    mixing *= torch.linspace(0.01, 1, 2 * fmt.block_size)[:, None] ** 3
    hidden = torch.randn(16, 64, 2 * fmt.block_size, generator=generator) @ mixing
    order = np.argsort(matrix._places)
    targets = hidden[..., :6] + hidden @ torch.from_numpy(rows[order]).T
    layer = Layer(_Block(matrix.module), {}, Workers(1, torch.device("cpu")))
    return layer, {"linear": matrix}, hidden, targets


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_reconstruction_lowers_the_error_of_samples_that_it_has_not_seen(fmt: Format) -> None:
    """Well below that of codes that are nearest, where inputs are correlated."""
    layer, matrices, hidden, targets = block_of(fmt)
    parts = split(len(hidden))
    found = reconstruct(layer, matrices, hidden, targets, parts.trained, parts.judged, Budget(1.0, 100),
                        lambda *_: None)  # fmt: skip
    assert found.is_better and found.after < 0.7 * found.before
    weight = torch.from_numpy(decoded(found.tensors["linear"], fmt)[np.argsort(matrices["linear"]._places)])
    judged = hidden[list(parts.judged)]
    off = judged[..., :6] + judged @ weight.T - targets[list(parts.judged)]
    wanted = (off.square().sum(-1) / targets[list(parts.judged)].square().sum(-1)).mean()
    assert found.after == pytest.approx(float(wanted), rel=1e-3)


def test_what_is_worse_is_trained_again_with_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time begins as if there had not been a first one."""
    monkeypatch.setattr(reconstruction, "V_TRAVEL", 30.0)
    layer, matrices, hidden, targets = block_of(BOF4_S)
    parts, steps = split(len(hidden)), []
    found = reconstruct(layer, matrices, hidden, targets, parts.trained, parts.judged, Budget(1.0, 10),
                        lambda step, _: steps.append(step))  # fmt: skip
    assert steps == [*range(1, 11), *range(1, 11)]
    assert found.is_better and found.ratio < 0.9
    monkeypatch.setattr(reconstruction, "RATES", (0.25,))
    layer, matrices, hidden, targets = block_of(BOF4_S)
    alone = reconstruct(layer, matrices, hidden, targets, parts.trained, parts.judged, Budget(1.0, 10),
                        lambda *_: None)  # fmt: skip
    assert alone.after == found.after


def test_what_is_worse_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "V_TRAVEL", 100.0)
    layer, matrices, hidden, targets = block_of(BOF4_S)
    matrix = matrices["linear"]
    before = matrix.module.weight.detach().clone()
    parts = split(len(hidden))
    found = reconstruct(layer, matrices, hidden, targets, parts.trained, parts.judged, Budget(1.0, 10),
                        lambda *_: None)  # fmt: skip
    assert not found.is_better and found.tensors["linear"] is matrix.encoded
    assert torch.equal(matrix.module.weight, before)


def test_a_whole_model_gains(llama: Path, tmp_path: Path) -> None:
    """On random inputs the held-out error of each layer falls, and nothing but codes and scales of blocks changes."""
    convert(llama, tmp_path / "before.gguf", **SHORT)
    notes = rounded(llama, tmp_path / "after.gguf")
    assert len(notes) == 2 and all(note.endswith(", kept") for note in notes)
    before, after = tensors(tmp_path / "before.gguf"), tensors(tmp_path / "after.gguf")
    coded = {t.name for t in open_model(tmp_path / "after.gguf").tensors if t.qtype.name == "BOF4_S"}
    assert len(coded) == 2 * 7
    assert before.keys() == after.keys() and {name for name in before if before[name] != after[name]} == coded
    for name in coded:
        codes = [codes_of(np.frombuffer(x[name][2], np.uint8).reshape(-1, BOF4_S.block_bytes), BOF4_S)
                 for x in (before, after)]  # fmt: skip
        assert 0.002 < (codes[0] != codes[1]).mean() < 0.5
    assert open_model(tmp_path / "after.gguf").value("bof4.refined") is True
    assert not list(tmp_path.glob(".*"))


def test_both_parts(llama: Path, tmp_path: Path) -> None:
    """Scales are trained with the codes that rounding has found."""
    rounded(llama, tmp_path / "rounded.gguf")
    rounded(llama, tmp_path / "both.gguf", refine_parts="scales,rounding")
    one, both = tensors(tmp_path / "rounded.gguf"), tensors(tmp_path / "both.gguf")
    norms = [name for name in one if name.startswith("blk.") and "norm" in name]
    coded = [t.name for t in open_model(tmp_path / "both.gguf").tensors if t.qtype.name == "BOF4_S"]
    assert any(one[name] != both[name] for name in norms)
    for name in coded:
        codes = [codes_of(np.frombuffer(x[name][2], np.uint8).reshape(-1, BOF4_S.block_bytes), BOF4_S)
                 for x in (one, both)]  # fmt: skip
        np.testing.assert_array_equal(*codes)
        assert one[name] != both[name]


def test_steps_give_the_same_file_again_and_after_an_interruption(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rounded(llama, tmp_path / "once.gguf")
    assert len(first) == 2 and all(note.endswith(", kept") for note in first)
    layer, done = rounding._Rounding.layer, []

    def interrupted(self: Any, i: int) -> None:
        done.append(i)
        if i == 1:
            raise KeyboardInterrupt
        layer(self, i)

    monkeypatch.setattr(rounding._Rounding, "layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rounded(llama, tmp_path / "twice.gguf")
    monkeypatch.undo()
    assert (tmp_path / ".twice.gguf.gptq" / "rounding").is_dir()
    notes = rounded(llama, tmp_path / "twice.gguf")
    assert done == [0, 1] and notes == first[1:]
    assert (tmp_path / "once.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def test_no_layer_gains(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is that of gptq, byte for byte, and a line says so."""
    convert(llama, tmp_path / "before.gguf", **SHORT)
    monkeypatch.setattr(reconstruction, "V_TRAVEL", 30.0)
    notes = rounded(llama, tmp_path / "after.gguf", refine_steps=10)
    assert all("not kept" in note for note in notes[:2]) and notes[2].startswith("warning: refine: rounding lowered")
    assert (tmp_path / "before.gguf").read_bytes() == (tmp_path / "after.gguf").read_bytes()


def test_other_types_keep_their_codes(llama: Path, tmp_path: Path) -> None:
    mixed = {"tensor_types": ("ffn_(up|gate)=Q4_0", "attn_q=F16")}
    convert(llama, tmp_path / "before.gguf", **SHORT, **mixed)
    rounded(llama, tmp_path / "after.gguf", **mixed)
    before, after = tensors(tmp_path / "before.gguf"), tensors(tmp_path / "after.gguf")
    for t in open_model(tmp_path / "after.gguf").tensors:
        assert t.qtype.name == "BOF4_S" or before[t.name] == after[t.name]


def test_superblocks(tmp_path: Path) -> None:
    source = source_of(tmp_path, "wide")
    convert(source, tmp_path / "before.gguf", **SHORT | {"type": "BOF4_K"})
    notes = rounded(source, tmp_path / "after.gguf", type="BOF4_K")
    assert any(note.endswith(", kept") for note in notes)
    before, after = tensors(tmp_path / "before.gguf"), tensors(tmp_path / "after.gguf")
    names = [t.name for t in open_model(tmp_path / "after.gguf").tensors if t.qtype.name == "BOF4_K"]
    assert names and any(before[name] != after[name] for name in names)
    for name in names:
        blocks = [np.frombuffer(x[name][2], np.uint8).reshape(-1, BOF4_K.block_bytes) for x in (before, after)]
        np.testing.assert_array_equal(*(b[:, SCALE_BYTES : BOF4_K.codes_at] for b in blocks))


def test_minutes_end(llama: Path, tmp_path: Path) -> None:
    notes = rounded(llama, tmp_path / "after.gguf", refine_steps=None, refine_minutes=0.02)
    assert len([note for note in notes if "of 2, error of samples not trained on" in note]) == 2


def test_samples(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refinement reads as many windows as it is told."""
    counts = []

    def counted(tokenizer: Any, sources: Any, count: int, length: int) -> Any:
        counts.append(count)
        return make_samples(tokenizer, sources, count, length)

    monkeypatch.setattr(driver, "make_samples", counted)
    rounded(llama, tmp_path / "after.gguf", refine_steps=2, refine_samples=8)
    assert counts == [8]


class _Transposed(nn.Module):
    """A layer as GPT-2 has them: its matrices are stored [inputs, outputs]."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.up, self.down = Conv1D(256, 128), Conv1D(128, 256)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = hidden + self.down(torch.nn.functional.gelu(self.up(hidden)))
        return made


def test_transposed_matrices_have_the_outputs_and_gradients_of_their_modules() -> None:
    torch.manual_seed(0)
    module = _Transposed().requires_grad_(False)
    nn.init.normal_(module.up.bias)
    targets, finished = {}, {}
    qtype = GGMLQuantizationType(BOF4_S.type_id)
    for name, part in (("up", module.up), ("down", module.down)):
        rows = np.ascontiguousarray(linear_weight(part).numpy())
        data = native.quantize(rows, qtype, encoder=BlockEncoder.SEARCH)
        targets[name] = Target(name, qtype, rows.shape, None, lambda rows=rows: rows, None)  # type: ignore
        finished[name] = Finished(lambda data=data: Encoded(data, None), None)  # type: ignore[misc]
    plain = _Transposed().requires_grad_(False)
    plain.load_state_dict(module.state_dict())
    layer = Layer(module, {}, Workers(1, torch.device("cpu")))
    matrices = rounding.quantized_modules(layer, {"up": "up", "down": "down"}, targets, finished)
    assert matrices.keys() == {"up", "down"}
    for name, matrix in matrices.items():
        matrix.write()
        with torch.no_grad():
            plain.get_parameter(f"{name}.weight").copy_(matrix.module.weight.T)
        plain.get_parameter(f"{name}.weight").requires_grad_()
    hidden = torch.randn(1, 9, 128)
    torch.testing.assert_close(layer.output(hidden), plain(hidden))
    layer.output(hidden).square().sum().backward()
    plain(hidden).square().sum().backward()
    for name, matrix in matrices.items():
        wanted = plain.get_parameter(f"{name}.weight").grad
        assert wanted is not None and matrix.module.weight.grad is not None
        torch.testing.assert_close(matrix.module.weight.grad, wanted.T, rtol=1e-4, atol=1e-4)
        free = (alpha_of(matrix.nu.detach()) > 0) & (alpha_of(matrix.nu.detach()) < 1)
        matrix.pull()
        assert matrix.nu.grad is not None and bool(matrix.nu.grad[free].any())


def test_a_folder_with_transposed_matrices(tmp_path: Path) -> None:
    """GPT-2's layers are reconstructed like any others; whether they gain is the judging samples' business."""
    (tmp_path / "gpt2").mkdir()
    folder = family_folder(tmp_path / "gpt2", "gpt2")
    convert(folder, tmp_path / "before.gguf", **SHORT)
    notes = rounded(folder, tmp_path / "after.gguf", refine_steps=40)
    before, after = tensors(tmp_path / "before.gguf"), tensors(tmp_path / "after.gguf")
    for i, note in enumerate(notes[:2]):
        coded = [name for name in before if name.startswith(f"blk.{i}.") and before[name][0] == after[name][0]]
        changed = [name for name in coded if before[name] != after[name]]
        assert len(changed) == (0 if "not kept" in note else 4)
