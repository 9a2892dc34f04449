"""Outliers chosen by what they save: against all other choices, the paper's rule, and through the converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from calibration_models import family_folder
from convert_models import SHAPES, write_gguf
from gguf import GGMLQuantizationType as T
from program import bof4

from gguf_bof4 import native
from gguf_bof4.convert import convert
from gguf_bof4.errors import TooLargeWeightError, UserError
from gguf_bof4.formats import FORMAT_OF_TYPE_ID, FORMATS
from gguf_bof4.gguf_files.model import open_model, read_list
from gguf_bof4.lists import OutlierList, entry, from_counts, without
from gguf_bof4.native import BlockEncoder
from gguf_bof4.outlier_choice import Budget, choose
from gguf_bof4.verify import verify

Floats = npt.NDArray[np.float32]
TYPES = [T(f.type_id) for f in FORMATS]


def heavy(rows: int, n: int, seed: int = 0) -> Floats:
    """Weights with outliers."""
    return np.random.default_rng(seed).standard_t(4, (rows, n)).astype(np.float32) * np.float32(0.05)


def spread(n: int, seed: int = 1) -> Floats:
    """Importances that differ as those of trained models do."""
    return np.random.default_rng(seed).lognormal(0, 1.5, n).astype(np.float32)


def loss(
    weights: Floats, qtype: T, outliers: OutlierList, importance: Floats | None = None,
    encoder: BlockEncoder = BlockEncoder.SEARCH,
) -> float:  # fmt: skip
    rest = without(weights, outliers)
    errors = native.dequantize(native.quantize(rest, qtype, importance, 1, encoder), qtype) - rest
    return float((errors.astype(np.float64) ** 2 * (1 if importance is None else importance)).sum())


def places(outliers: OutlierList) -> set[tuple[int, int]]:
    return set(zip(outliers.rows.tolist(), outliers.columns.tolist(), strict=True))


@pytest.mark.parametrize("qtype", TYPES)
def test_one_outlier_is_nearly_the_best_of_all(qtype: T) -> None:
    n = FORMAT_OF_TYPE_ID[int(qtype)].block_size
    weights, importance = heavy(6, n), spread(n)
    chosen = best = 0.0
    for row in weights:
        found = choose(row[None], qtype, 1, importance)
        assert found.entries.size == 1
        chosen += loss(row[None], qtype, found, importance)
        alone = (from_counts(np.array([1]), entry(np.array([column]), row[[column]])) for column in range(n))
        best += min(loss(row[None], qtype, one, importance) for one in alone)
    assert chosen < 1.02 * best


@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_more_is_saved_than_by_the_rule_of_the_paper(qtype: T, weighted: bool) -> None:
    weights, importance = heavy(64, 1024), spread(1024) if weighted else None
    none = from_counts(np.zeros(64, dtype=np.int64), np.zeros(0, dtype=np.int32))
    before, paper = loss(weights, qtype, none, importance), native.select_outliers(weights, 0.95)
    by_paper = before - loss(weights, qtype, paper, importance)
    found = choose(weights, qtype, paper.entries.size, importance)
    assert found.entries.size == paper.entries.size
    assert before - loss(weights, qtype, found, importance) > (1.06 if weighted else 1.03) * by_paper
    half = choose(weights, qtype, paper.entries.size // 2, importance)
    assert places(half) < places(found)  # the best half


@pytest.mark.parametrize("encoder", list(BlockEncoder))
def test_the_encoder_of_the_blocks_decides(encoder: BlockEncoder) -> None:
    weights = heavy(64, 512)
    with_it, with_other = (choose(weights, T.BOF4_S, 100, None, e) for e in (encoder, BlockEncoder(1 - encoder)))
    assert loss(weights, T.BOF4_S, with_it, None, encoder) < loss(weights, T.BOF4_S, with_other, None, encoder)


def test_columns_without_importance_have_few_outliers() -> None:
    weights, importance = heavy(32, 512), np.zeros(512, dtype=np.float32)
    importance[::2] = 1
    found = choose(weights, T.BOF4_S, 200, importance)
    assert found.entries.size == 200
    # an unimportant weight is listed only where the grid of scales, which begins at the largest weight, misses others
    assert (found.columns % 2 == 0).mean() > 0.75
    assert (native.select_outliers(weights, 0.95).columns % 2 == 0).mean() < 0.6


def test_nothing_is_listed_that_saves_nothing() -> None:
    assert choose(np.zeros((4, 256), dtype=np.float32), T.BOF4_S, 50).entries.size == 0
    assert choose(heavy(4, 256), T.BOF4_S, 0).entries.size == 0
    many = choose(heavy(2, 64), T.BOF4_S, 1000)
    assert 0 < many.entries.size < 2 * 64


@pytest.mark.parametrize("qtype", TYPES)
def test_threads_change_nothing(qtype: T) -> None:
    weights, importance = heavy(70, 512), spread(512)
    one, five = (choose(weights, qtype, 150, importance, threads=threads) for threads in (1, 5))
    assert np.array_equal(one.entries, five.entries) and np.array_equal(one.row_pointers, five.row_pointers)


def test_weights_that_no_scale_can_hold_are_listed() -> None:
    weights = heavy(4, 256)
    weights[1, 7], weights[3, 200] = 1e6, -7e4
    found = choose(weights, T.BOF4_K, 0)
    assert places(found) == {(1, 7), (3, 200)}
    assert places(found) < places(choose(weights, T.BOF4_K, 5))
    weights[2, 3] = 3.4e38
    with pytest.raises(TooLargeWeightError) as refused:
        choose(weights, T.BOF4_K, 5)
    assert refused.value.position == (2, 3)


def test_a_budget_counts_entries() -> None:
    assert Budget(0.05).count(64_000) == 100
    assert Budget(0.05).count(100) == 0


@pytest.mark.parametrize("source_type", [T.F32, T.F16, T.BF16])
@pytest.mark.parametrize("encoder", ["search", "absmax"])
def test_converted_files_have_as_many_outliers_as_the_budget_allows(
    tmp_path: Path, source_type: T, encoder: str
) -> None:
    replace = {
        name: heavy(int(np.prod(shape[:-1])), shape[-1], i).reshape(shape)
        for i, (name, shape) in enumerate(SHAPES.items())
        if len(shape) > 1 and "norm" not in name
    }
    source = write_gguf(tmp_path / "in.gguf", source_type, replace=replace)
    report = convert(source, tmp_path / "out.gguf", encoder=encoder, opq=("attn_v=off", "attn_q=0.9"), opq_bits=0.1)
    counted = {t.name: t for t in report.listed}
    assert "blk.0.attn_v.weight" not in counted
    for name, t in counted.items():
        if name != "blk.0.attn_q.weight":
            assert t.outliers == int(0.1 * t.n_weights / 32)
    model = open_model(tmp_path / "out.gguf")
    assert model.value("bof4.opq.bits") == np.float32(0.1) and model.value("bof4.opq.quantile") is None
    assert list(verify(model))
    again = convert(tmp_path / "out.gguf", tmp_path / "copy.gguf").outputs[0]
    assert open_model(again).value("bof4.opq.bits") == np.float32(0.1)
    assert [t.outliers for t in report.listed] == [t.outliers for t in convert(source, tmp_path / "two.gguf",
            encoder=encoder, opq=("attn_v=off", "attn_q=0.9"), opq_bits=0.1, threads=1).listed]  # fmt: skip


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    bad = heavy(*SHAPES[name])
    bad[5, 9] = np.nan
    source = write_gguf(tmp_path / "in.gguf", T.F32, replace={name: bad})
    with pytest.raises(UserError, match=rf"{name} has a weight that is NaN or infinite, at \[5, 9\]"):
        convert(source, tmp_path / "out.gguf", opq_bits=0.05)
    assert not (tmp_path / "out.gguf").exists()


def test_gptq_takes_the_inputs_of_the_layer_as_importance(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    family_folder(folder, "wide")
    options: dict[str, Any] = {
        "type": "BOF4_K", "encoder": "gptq", "calibration": __file__, "samples": 4, "sample_length": 48,
    }  # fmt: skip
    report = convert(folder, tmp_path / "bits.gguf", opq_bits=0.05, **options)
    assert report.not_compensated == ()
    assert all(t.outliers == int(0.05 * t.n_weights / 32) for t in report.listed) and len(report.listed) == 2 * 7
    unweighted = convert(folder, tmp_path / "search.gguf", type="BOF4_K", opq_bits=0.05)
    name = "blk.0.ffn_down.weight"
    shape = next(t.shape for t in report.tensors if t.name == name)
    one, other = (read_list(open_model(r.outputs[0]).lists[name], name, shape) for r in (report, unweighted))
    assert one.entries.size == other.entries.size and places(one) != places(other)


def test_the_command_line(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "in.gguf")
    done = bof4("convert", source, tmp_path / "out.gguf", "--opq-bits", "0.05", "--opq", "0.9")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("give one of them")
    assert "two rules for the same tensors" in done.stderr
