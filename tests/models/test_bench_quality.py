"""bof4 bench quality: what it plans, measures, keeps and draws."""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from program import bof4

from gguf_bof4.bench import cost, nf4, plot, quality
from gguf_bof4.bench.bars import BARS, Bar, judge
from gguf_bof4.bench.measure import Distance, bits_per_weight, check_rest, distance, fallbacks, parse_distance
from gguf_bof4.bench.peers import PEERS
from gguf_bof4.bench.results import Row, add_row, read_rows
from gguf_bof4.bench.table import means
from gguf_bof4.bench.variants import ENCODERS, OUR_ENCODERS, OUR_TYPES, TYPES, Variant, choose, parse_quantile, variants
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model

# QLoRA, appendix E
PUBLISHED_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
ALL = variants(TYPES, ENCODERS, ("off", "0.95"))


def row(model: str, variant: Variant, mean_kld: float, text: str = "test", bits: float = 4.25) -> Row:
    return Row(
        model=model, text=text, type=variant.type, encoder=variant.encoder, opq=variant.opq, chunks=16,
        recipe=variant.recipe, bits_per_weight=bits, mean_kld=mean_kld, mean_kld_error=0.01 * mean_kld,
        kld_99_9=8 * mean_kld, same_top=80.0, ppl_ratio=1 + mean_kld, matrices=210, fallback="",
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A short real run on smol: the CSV file, and what was printed on both streams."""
    output = tmp_path_factory.mktemp("bench") / "short.csv"
    result = bof4(*command(output))
    assert result.returncode == 0, result.stderr
    return output, result.stdout, result.stderr


def command(output: Path) -> list[str]:
    return [
        "bench", "quality", "--models", "smol", "--texts", "test", "--chunks", "1", "--types", "Q4_K,bof4_s",
        "--encoders", "none", "--encoders", "absmax", "--opq", "off", "--threads", "1", "--output", str(output),
    ]  # fmt: skip


def test_a_short_run_measures_a_peer_and_ours(measured: tuple[Path, str, str]) -> None:
    rows = {r.type: r for r in read_rows(measured[0]).values()}
    assert set(rows) == {"Q4_K", "BOF4_S"}
    assert rows["BOF4_S"].bits_per_weight == 4.25
    assert rows["BOF4_S"].fallback == ""
    # 5.25 bits and 4.25 bits: apart by far more than the draw of 255 tokens moves them
    assert 0.03 < rows["Q4_K"].mean_kld < 0.15 < rows["BOF4_S"].mean_kld < 0.5
    for r in rows.values():
        assert 0 < r.mean_kld_error < r.mean_kld < r.kld_99_9
        assert 60 < r.same_top < 95
        assert 1 < r.ppl_ratio < 1.6


def test_rows_too_short_for_a_peer_are_reported_as_what_they_became(
    measured: tuple[Path, str, str], smol: Path
) -> None:
    found = next(r for r in read_rows(measured[0]).values() if r.type == "Q4_K")
    assert (found.matrices, found.fallback) == (210, "180 Q5_0")
    assert "Q4_K (180 of 210 matrices fell back to Q5_0)" in measured[1]
    matrices = [t for t in open_model(smol).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    bits = sum(t.n_weights * (5.5 if t.shape[-1] % 256 else 4.5) for t in matrices)
    assert found.bits_per_weight == pytest.approx(bits / sum(t.n_weights for t in matrices))


def test_rows_that_are_there_are_not_measured_again(measured: tuple[Path, str, str]) -> None:
    output = measured[0]
    before = output.read_text()
    assert "2 of 2 rows  smol BOF4_S absmax" in measured[2]
    again = bof4(*command(output), BOF4_BIN="")  # no program is looked for
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == measured[1]
    assert output.read_text() == before


def test_a_run_draws_a_picture_beside_its_rows(measured: tuple[Path, str, str]) -> None:
    assert measured[0].with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_model_has_no_distance_from_itself(built: Path, smol: Path, evaluation: Path, tmp_path: Path) -> None:
    logits = tmp_path / "logits"
    quality.write_logits(smol, evaluation, 1, logits, threads=1)
    # vocabulary, judged tokens: what the disk is checked for
    assert logits.stat().st_size == pytest.approx(cost.logits_bytes("smol", 1), rel=0.001)
    found = distance(smol, logits, 1, threads=1)
    logits.unlink()
    # the logits are kept in 16 bits
    assert abs(found.mean_kld) < 1e-3
    assert found.same_top > 99
    assert found.ppl_ratio == pytest.approx(1, abs=1e-3)


def test_a_text_that_is_too_short_is_refused(built: Path, smol: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Only a few words. " * 50)
    with pytest.raises(UserError, match="too short for 16 chunks"):
        quality.write_logits(smol, text, 16, tmp_path / "logits", threads=1)


def test_output_without_a_figure_is_refused() -> None:
    good = (
        "Mean PPL(Q)/PPL(base)         :   1.336032 ±   0.054\nMean    KLD:   0.282337 ±   0.013436\n"
        "99.9%   KLD:   1.539874\nSame top p: 67.059 ± 2.949 %\n"
    )
    assert parse_distance(good) == Distance(0.282337, 0.013436, 1.539874, 67.059, 1.336032)
    assert math.isnan(parse_distance(good.replace("0.282337", "nan")).mean_kld)
    for line in good.splitlines():
        with pytest.raises(UserError, match="llama-perplexity printed no"):
            parse_distance(good.replace(line, ""))


def test_an_interrupted_run_keeps_its_rows_and_removes_its_files(
    built: Path, smol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    calls: list[Path] = []

    def interrupted(path: Path, *_: object) -> Distance:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Distance(0.2, 0.01, 2.0, 75.0, 1.2)

    monkeypatch.setattr(quality, "write_logits", lambda *_: None)
    monkeypatch.setattr(quality, "distance", interrupted)
    plan = quality.make_plan(["smol"], variants(["BOF4_S"], ["absmax"], ["off", "0.95"]), ["test", "held-out"], 1, ())
    output = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        quality.run(plan, output, 2, lambda _: None)
    rows = read_rows(output)
    assert [(r.text, r.opq) for r in rows.values()] == [("test", "off"), ("held-out", "off")]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
    rest = quality.make_plan(["smol"], variants(["BOF4_S"], ["absmax"], ["off", "0.95"]), ["test", "held-out"], 1, rows)
    assert [(s.variant.opq, s.texts) for s in rest.steps] == [("0.95", ("test", "held-out"))]


def test_a_full_disk_is_noticed_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**8}))
    plan = quality.make_plan(["smol"], variants(["Q4_0"], ["none"], ["off"]), ["test"], 16, ())
    with pytest.raises(UserError, match="set TMPDIR"):
        quality.run(plan, tmp_path / "rows.csv", 1, lambda _: None)


def test_the_plan_holds_every_type_encoder_and_list_once() -> None:
    assert len(set(ALL)) == len(ALL)
    by_type = {name: [v for v in ALL if v.type == name] for name in TYPES}
    for name in PEERS:
        expected = ["none"] if name == "MXFP4" else ["none", "imatrix"]
        assert [(v.encoder, v.opq) for v in by_type[name]] == [(e, "off") for e in expected]
    assert by_type["NF4"] == [Variant("NF4", "none")]
    for name in OUR_TYPES:
        assert [(v.encoder, v.opq) for v in by_type[name]] == [
            (e, q) for e in ("absmax", "search", "random", "imatrix", "gptq") for q in ("off", "0.95")
        ]
    assert {"BOF4_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q4_K", "MXFP4", "Q5_0", "Q5_K", "NF4"} <= set(TYPES)
    assert variants(["Q4_0", "BOF4_S"], ["imatrix"], ["off"]) == (
        Variant("Q4_0", "imatrix"),
        Variant("BOF4_S", "imatrix"),
    )


def test_a_row_of_another_recipe_chunks_or_text_does_not_count_as_done() -> None:
    variant = Variant("Q4_0", "imatrix")
    there = row("smol", variant, 0.1)
    for other in (there, replace(there, recipe="0"), replace(there, chunks=8), replace(there, text="held-out")):
        plan = quality.make_plan(["smol"], [variant], ["test"], 16, {other.key})
        assert len(plan.steps) == (0 if other is there else 1)


def test_estimates_add_up_and_grow_with_the_model() -> None:
    plan = quality.make_plan(["smol", "gemma", "qwen"], ALL, ["test", "held-out"], 16, ())
    assert plan.seconds("qwen") > 5 * plan.seconds("smol") > 600
    assert plan.disk_bytes("gemma") > 2 * 2.1e9
    half = quality.make_plan(["smol"], ALL, ["test"], 16, ())
    assert half.seconds("smol") < plan.seconds("smol")


def test_list_shows_the_plan_and_runs_nothing(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    add_row(output, row("smol", Variant("Q4_0", "none"), 0.2))
    shown = bof4(
        "bench", "quality", "--list", "--types", "Q4_0,NF4", "--models", "smol", "-o", str(output), BOF4_BIN=""
    )
    assert shown.returncode == 0, shown.stderr
    assert "1 of 6 rows are there, 5 to measure" in shown.stdout
    assert "held-out" in shown.stdout
    assert list(tmp_path.iterdir()) == [output]


def test_unknown_names_are_refused() -> None:
    refused = bof4("bench", "quality", "--list", "--types", "Q4_0,Q9_9")
    assert refused.returncode == 1
    assert "bof4: there is no type 'Q9_9' to measure: take some of Q4_0, IQ4_NL" in refused.stderr
    for text in ("1.5", "0", "-0.9", "nan", "much"):
        with pytest.raises(UserError, match="between 0 and 1"):
            parse_quantile(text)


def test_names_and_quantiles_have_one_spelling() -> None:
    assert choose("type", ["mxfp4", "Q4_0"], TYPES) == ("Q4_0", "MXFP4")
    assert [parse_quantile(text) for text in ("off", "0.90", ".9", "0.95")] == ["off", "0.9", "0.9", "0.95"]


def test_an_encoder_that_the_converter_lacks_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quality, "ENCODERS", ("absmax",))
    plan = quality.make_plan(["smol"], variants(["BOF4_S"], ["absmax", "gptq"], ["off"]), ["test"], 1, ())
    with pytest.raises(UserError, match="cannot encode BOF4_S with gptq"):
        quality.run(plan, tmp_path / "rows.csv", 1, lambda _: None)


def test_rows_survive_the_file_and_replace_each_other(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.csv"
    first = replace(row("smol", Variant("Q4_K", "imatrix"), 0.125), fallback="180 Q5_0 + 1 F16")
    second = row("gemma", Variant("BOF4_S", "search", "0.95"), 0.25)
    for r in (first, second, replace(first, mean_kld=0.5)):
        add_row(path, r)
    assert list(read_rows(path).values()) == [replace(first, mean_kld=0.5), second]
    assert first.label == "Q4_K (180 of 210 matrices fell back to Q5_0, 1 of 210 matrices fell back to F16)"
    path.write_text(path.read_text().replace("0.25", "a quarter"))
    with pytest.raises(UserError, match="line 3: not a row"):
        read_rows(path)


def test_nf4_has_the_published_levels() -> None:
    levels = nf4.levels()
    assert levels == pytest.approx(PUBLISHED_NF4, abs=1e-6)
    assert (levels[0], levels[7], levels[15]) == (-1, 0, 1)


def test_nf4_takes_the_nearest_level_of_each_block() -> None:
    weights = np.random.default_rng(5).standard_normal((300, 128)).astype(np.float32)
    weights[0, :64] = 0
    found = nf4.simulate(weights)
    assert found.shape == weights.shape
    blocks, rounded = weights.reshape(-1, 64), found.reshape(-1, 64)
    scales = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    candidates = scales[:, :, None] * nf4.levels()
    smallest = np.abs(blocks[:, :, None] - candidates).min(axis=2)
    np.testing.assert_allclose(np.abs(blocks - rounded), smallest, atol=1e-6)
    assert not found[0, :64].any()
    error = float(((weights - found) ** 2).sum() / (weights**2).sum())
    assert error == pytest.approx(0.0085, abs=0.0003)  # what the README says


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A model of one block: an F32 and an F16 matrix, a norm and embeddings."""
    path = tmp_path / "tiny.gguf"
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", rng.standard_normal((8, 256)).astype(np.float16))
    writer.add_tensor("blk.0.attn_norm.weight", rng.standard_normal(256).astype(np.float32))
    writer.add_tensor("blk.0.attn_q.weight", rng.standard_normal((4, 256)).astype(np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", rng.standard_normal((4, 256)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield path
    path.unlink()


def test_nf4_is_written_over_the_matrices_of_the_blocks_only(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "nf4.gguf"
    nf4.make_nf4(tiny, target)
    before, after = open_model(tiny), open_model(target)
    check_rest(after, before)
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, old.qtype, old.shape) == (new.name, new.qtype, new.shape)
        was, now = (gguf.dequantize(t.read_rows(), t.qtype) for t in (old, new))
        expected = nf4.simulate(was) if len(old.shape) == 2 and old.name.startswith("blk.") else was
        np.testing.assert_allclose(now, expected, rtol=2**-11 if "ffn" in old.name else 0, atol=1e-7)


def test_a_mixture_or_a_changed_embedding_is_not_measured(tiny: Path, tmp_path: Path) -> None:
    model = open_model(tiny)
    assert bits_per_weight(model) == 24
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight is F32 instead of Q4_K, although its rows of 256 fit"):
        fallbacks(model, "Q4_K")
    others = tuple(replace(t, qtype=gguf.GGMLQuantizationType.F32) for t in model.tensors)
    with pytest.raises(UserError, match=r"token_embd\.weight is F32 instead of F16"):
        check_rest(replace(model, tensors=others), model)
    with pytest.raises(UserError, match=r"token_embd\.weight is missing"):
        check_rest(replace(model, tensors=model.tensors[1:]), model)


def test_bars_compare_means_over_models_and_texts() -> None:
    ours, theirs = Variant("BOF4_S", "search", "0.95"), Variant("IQ4_NL", "none")
    bar = Bar(("smol", "gemma"), ours, theirs, 1.0, fewer_bits=True)
    rows = [
        row("smol", ours, 0.1), row("smol", ours, 0.2, "held-out"),
        row("gemma", ours, 0.3), row("gemma", ours, 0.2, "held-out"),
        row("smol", theirs, 0.4, bits=4.5), row("smol", theirs, 0.2, "held-out", bits=4.5),
        row("gemma", theirs, 0.2, bits=4.5), row("gemma", theirs, 0.2, "held-out", bits=4.5),
    ]  # fmt: skip
    texts = ["test", "held-out"]
    (found,) = judge(rows, texts, [bar])
    assert (found.ratio, found.bits, found.met) == (pytest.approx(0.8), (4.25, 4.5), True)
    assert found.verdict == "met"
    (tight,) = judge(rows, texts, [replace(bar, limit=0.5)])
    assert (tight.met, tight.verdict) == (False, "missed by 60.0 %")
    (as_large,) = judge([replace(r, bits_per_weight=4.5) for r in rows], texts, [bar])
    assert (as_large.met, as_large.verdict) == (False, "missed, not smaller")
    (shown,) = judge(rows, texts, [replace(bar, limit=None)])
    assert (shown.ratio, shown.met) == (pytest.approx(0.8), None)
    (lacking,) = judge(rows[1:], texts, [bar])
    assert (lacking.ratio, lacking.met) == (None, None)
    assert lacking.verdict == "not measured: BOF4_S search, lists 0.95 of smol"


def test_every_bar_compares_rows_that_a_whole_run_measures() -> None:
    known = set(ALL) | set(variants(["Q5_0"], ENCODERS, ["off"]))
    for bar in BARS:
        for variant in (bar.ours, bar.theirs):
            assert variant in known or variant.type not in TYPES


def test_a_table_is_sorted_by_size_then_mean_divergence() -> None:
    rows = [
        row("smol", Variant("Q5_0", "none"), 0.05, bits=5.5),
        row("smol", Variant("NF4", "none"), 0.31),
        row("smol", Variant("BOF4_S", "absmax"), 0.2),
        row("smol", Variant("BOF4_S", "absmax"), 0.4, "held-out"),
        row("gemma", Variant("Q4_0", "none"), 0.1),
    ]
    found = means(rows, "smol")
    assert [(mean.first.type, mean.mean_kld) for mean in found] == [
        ("BOF4_S", pytest.approx(0.3)), ("NF4", 0.31), ("Q5_0", 0.05),
    ]  # fmt: skip


def test_the_picture_has_a_readmes_size_and_both_kinds_of_points(tmp_path: Path) -> None:
    from matplotlib.image import imread

    peers = [row(m, Variant(t, "none"), k, bits=b) for m in ("smol", "gemma")
             for t, b, k in (("Q4_0", 4.5, 0.3), ("Q5_0", 5.5, 0.05), ("MXFP4", 4.25, 0.4))]  # fmt: skip
    ours = [row(m, Variant("BOF4_S", e, q), 0.3 / k, bits=b) for m in ("smol", "gemma")
            for k, e in enumerate(OUR_ENCODERS, 1) for q, b in (("off", 4.25), ("0.95", 4.34))]  # fmt: skip

    def colored(name: str, rows: list[Row]) -> int:
        plot.plot(rows, ["smol", "gemma", "qwen"], tmp_path / name)
        data = (tmp_path / name).read_bytes()
        assert struct.unpack(">II", data[16:24]) == (plot.WIDTH, plot.HEIGHT)
        pixels = imread(tmp_path / name)[..., :3]
        assert (pixels[0, 0] == 1).all()
        return int((np.ptp(pixels, axis=2) > 0.3).sum())

    assert colored("peers.png", peers) == 0
    assert colored("both.png", peers + ours) > 1000
    with pytest.raises(UserError, match="nothing to draw"):
        plot.plot(peers, ["qwen"], tmp_path / "none.png")


def test_labels_that_would_touch_are_moved_apart() -> None:
    assert plot._spread([0, 100, 200], 10) == [0, 100, 200]
    assert plot._spread([0, 100, 104, 200], 10) == [0, 97, 107, 200]
    close = plot._spread([50, 51, 52, 53], 10)
    assert [b - a for a, b in pairwise(close)] == [pytest.approx(10)] * 3
    assert sum(close) / 4 == pytest.approx(51.5)
