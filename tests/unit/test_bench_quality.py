"""bof4 bench quality without a build: plans, rows, NF4, goals, tables and pictures."""

from __future__ import annotations

import math
import shutil
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import bof4
from gguf_writing import write_tensors
from rich.console import Console

from gguf_bof4.bench import nf4, plot, quality
from gguf_bof4.bench.goals import QUALITY_GOALS, QualityGoal, judge_quality
from gguf_bof4.bench.measure import bits_per_weight, check_rest, fallbacks
from gguf_bof4.bench.peers import PEERS
from gguf_bof4.bench.results import Row, add_row, read_rows
from gguf_bof4.bench.table import means, model_table
from gguf_bof4.bench.variants import (
    DEFAULT_QUANTILES,
    ENCODERS,
    OUR_ENCODERS,
    OUR_TYPES,
    TYPES,
    VARIATIONS,
    Variant,
    choose,
    parse_bits,
    parse_quantile,
    parse_searched,
    variants,
)
from gguf_bof4.divergence import Distance, parse_distance
from gguf_bof4.encoders import encoder_of
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.reference_models import REFERENCE_MODELS
from gguf_bof4.search.candidates import types_for

# QLoRA, appendix E
PUBLISHED_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
TIMES = {"test": 90.0, "held-out": 0.0}
ALL = variants(TYPES, ENCODERS, ("off", "0.95"))


def row(model: str, variant: Variant, mean_kld: float, text: str = "test", bits: float = 4.25) -> Row:
    return Row(
        model=model, text=text, type=variant.type, encoder=variant.encoder, opq=variant.opq, chunks=16,
        recipe=variant.recipe, bits_per_weight=bits, mean_kld=mean_kld, mean_kld_error=0.01 * mean_kld,
        kld_99_9=8 * mean_kld, same_top=80.0, ppl_ratio=1 + mean_kld, matrices=210, fallback="",
    )  # fmt: skip


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
        expected += ["gptq"] if name == "Q4_K" else []
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
        "bench", "quality", "--list", "--types", "Q4_0,NF4", "--models", "smol", "-o", str(output)
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


def test_bits_of_lists_and_of_mixtures_have_one_spelling() -> None:
    assert [parse_bits(text) for text in ("0.05", ".050")] == ["0.05 bits"] * 2
    assert [parse_searched(text) for text in ("4.5", "4.50")] == ["search 4.5"] * 2
    for text in ("0", "-1", "17", "nan", "few"):
        with pytest.raises(UserError, match="--opq-bits"):
            parse_bits(text)
    for text in ("0", "33", "nan", "small"):
        with pytest.raises(UserError, match="--search"):
            parse_searched(text)


def test_options_of_the_converter_say_what_a_row_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CALIBRATION_TEXTS", {"calibration": lambda: tmp_path / "text.txt"})
    matrix, recipe, f16 = tmp_path / "matrix", tmp_path / "recipe", {
        "token_embedding_type": "F16", "output_tensor_type": "F16"
    }
    text = (str(tmp_path / "text.txt"),)
    for variant, options in (
        (Variant("BOF4_S", "imatrix", "0.95"),
         {"type": "BOF4_S", "encoder": "search", "opq": ("0.95",), "imatrix": str(matrix)}),
        (Variant("BOF4_K", "gptq", "0.05 bits"),
         {"type": "BOF4_K", "encoder": "gptq", "opq_bits": 0.05, "calibration": text}),
        (Variant("BOF4_S", "gptq:self+text"),
         {"type": "BOF4_S", "encoder": "gptq", "opq": ("off",), "calibration": ("self", *text)}),
        (Variant("BOF4_S", "imatrix:equalized"),
         {"type": "BOF4_S", "encoder": "search", "opq": ("off",), "imatrix": str(matrix), "equalize": True}),
        (Variant("BOF4_S", "gptq:equalized"),
         {"type": "BOF4_S", "encoder": "gptq", "opq": ("off",), "calibration": text, "imatrix": str(matrix),
          "equalize": True}),
        (Variant("BOF4_S", "gptq:token-weights"),
         {"type": "BOF4_S", "encoder": "gptq", "opq": ("off",), "calibration": text, "token_weights": True}),
    ):  # fmt: skip
        assert quality.our_options(variant, matrix) == options | f16
    searched = quality.our_options(Variant("search 4.5", "gptq"), matrix, recipe)
    assert searched == {"encoder": "gptq", "recipe": str(recipe), "opq": ("off",), "calibration": text} | f16


def test_mixtures_are_of_types_that_their_encoder_encodes() -> None:
    assert variants(["search 4.5"], ["absmax", "imatrix", "gptq", "gptq:self"], ["off", "0.95"]) == tuple(
        Variant("search 4.5", encoder) for encoder in ("imatrix", "gptq", "gptq:self")
    )
    by_search, by_gptq = (
        {t.name for t in types_for(encoder_of(Variant("search 4.5", e).converter_encoder))} for e in ("imatrix", "gptq")
    )
    assert by_search - by_gptq == {"IQ3_S"}
    assert {"BOF4_S", "BOF4_K", "Q3_K", "Q8_0"} <= by_gptq


def test_equalized_files_use_the_importance_matrix_of_the_text() -> None:
    for encoder, used in (("gptq", False), ("gptq:equalized", True), ("imatrix:equalized", True), ("imatrix", True)):
        plan = quality.make_plan(["smol"], variants(["BOF4_S"], [encoder], ["off"]), ["test"], 1, ())
        assert plan.uses("smol", "imatrix") == used
        assert not plan.uses("smol", "random")


def test_mixtures_cost_a_search_for_each_model() -> None:
    plans = [
        quality.make_plan(["smol"], variants(names, ["imatrix"], ["off"]), ["test"], 1, ())
        for names in (["Q4_0"], ["search 4.5"], ["search 4.5", "search 5"])
    ]
    one, two = (plan.shared_seconds("smol") - plans[0].shared_seconds("smol") for plan in plans[1:])
    assert one == two > 30


def test_an_encoder_that_the_converter_lacks_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quality, "ENCODERS", ("absmax",))
    plan = quality.make_plan(["smol"], variants(["BOF4_S"], ["absmax", "gptq"], ["off"]), ["test"], 1, ())
    with pytest.raises(UserError, match="cannot encode BOF4_S with gptq"):
        quality.run(plan, tmp_path / "rows.csv", 1, lambda _: None)


def test_labels_name_fallbacks_and_mixtures() -> None:
    fallen = replace(row("smol", Variant("Q4_K", "none"), 0.1), fallback="180 Q5_0")
    assert fallen.label == "Q4_K (180 of 210 matrices fell back to Q5_0)"
    mixed = replace(row("smol", Variant("search 4.5", "gptq"), 0.1), fallback="150 BOF4_S + 60 Q5_0")
    assert mixed.label == "search 4.5 (150 BOF4_S + 60 Q5_0)"


def test_rows_survive_the_file_and_replace_each_other(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.csv"
    first = replace(row("smol", Variant("Q4_K", "imatrix"), 0.125), fallback="180 Q5_0 + 1 F16")
    second = row("gemma", Variant("BOF4_S", "search", "0.95"), 0.25)
    for r in (first, second, replace(first, mean_kld=0.5)):
        add_row(path, r)
    assert list(read_rows(path).values()) == [replace(first, mean_kld=0.5), second]
    assert first.label == "Q4_K (180 of 210 matrices fell back to Q5_0, 1 of 210 matrices fell back to F16)"
    lines = path.read_text().splitlines()
    path.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))  # a file without the last column
    assert list(read_rows(path).values()) == [replace(first, mean_kld=0.5), second]
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
def tiny(tmp_path: Path) -> Path:
    """A model of one block: an F32 and an F16 matrix, a norm and embeddings."""
    path = tmp_path / "tiny.gguf"
    rng = np.random.default_rng(3)
    shapes = {
        "token_embd.weight": ((8, 256), np.float16),
        "blk.0.attn_norm.weight": ((256,), np.float32),
        "blk.0.attn_q.weight": ((4, 256), np.float32),
        "blk.0.ffn_up.weight": ((4, 256), np.float16),
    }
    return write_tensors(path, {n: rng.standard_normal(shape).astype(dtype) for n, (shape, dtype) in shapes.items()})


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


def test_goals_compare_means_over_models_and_texts() -> None:
    ours, theirs = Variant("BOF4_S", "search", "0.95"), Variant("IQ4_NL", "none")
    goal = QualityGoal(("smol", "gemma"), ours, theirs, 1.0, fewer_bits=True)
    rows = [
        row("smol", ours, 0.1), row("smol", ours, 0.2, "held-out"),
        row("gemma", ours, 0.3), row("gemma", ours, 0.2, "held-out"),
        row("smol", theirs, 0.4, bits=4.5), row("smol", theirs, 0.2, "held-out", bits=4.5),
        row("gemma", theirs, 0.2, bits=4.5), row("gemma", theirs, 0.2, "held-out", bits=4.5),
    ]  # fmt: skip
    texts = ["test", "held-out"]
    (found,) = judge_quality(rows, texts, [goal])
    assert (found.ratio, found.bits, found.met) == (pytest.approx(0.8), (4.25, 4.5), True)
    assert found.verdict == "met"
    (tight,) = judge_quality(rows, texts, [replace(goal, limit=0.5)])
    assert (tight.met, tight.verdict) == (False, "missed by 60.0 %")
    (as_large,) = judge_quality([replace(r, bits_per_weight=4.5) for r in rows], texts, [goal])
    assert (as_large.met, as_large.verdict) == (False, "missed, not smaller")
    (shown,) = judge_quality(rows, texts, [replace(goal, limit=None)])
    assert (shown.ratio, shown.met) == (pytest.approx(0.8), None)
    (lacking,) = judge_quality(rows[1:], texts, [goal])
    assert (lacking.ratio, lacking.met) == (None, None)
    assert lacking.verdict == "not measured: BOF4_S search, lists 0.95 of smol"


def test_every_goal_compares_rows_that_a_whole_run_measures() -> None:
    by_default = variants(TYPES, ENCODERS, DEFAULT_QUANTILES)
    assert len(QUALITY_GOALS) >= 11
    for goal in QUALITY_GOALS:
        assert {goal.ours, goal.theirs} <= set(by_default), goal.title
        assert goal.ours.converted and set(goal.models) <= set(REFERENCE_MODELS)


def test_goals_are_shown_only_on_request(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    for variant in (Variant("BOF4_S", "gptq", "0.95"), Variant("IQ4_NL", "imatrix")):
        for model in ("smol", "gemma"):
            for text in ("test", "held-out"):
                add_row(output, row(model, variant, 0.1 if variant.converted else 0.2, text))
    plain = bof4("bench", "quality", "--plot-only", "--output", str(output))
    assert plain.returncode == 0, plain.stderr
    assert "distance from the unquantized model" in plain.stdout
    for word in ("goals:", "missed", "at most"):
        assert word not in plain.stdout
    shown = bof4("bench", "quality", "--plot-only", "--output", str(output), "--goals")
    found = [line for line in shown.stdout.splitlines() if "BOF4_S gptq, lists 0.95 over IQ4_NL imatrix" in line]
    assert len(found) == 1 and "0.500" in found[0] and "met" in found[0], shown.stdout


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


def test_minutes_of_a_file() -> None:
    """Its rows come from one file, or from several where a text was added later; those of older versions have none."""
    made = [replace(row("smol", Variant("Q4_0", "none"), 0.1, text), seconds=s) for text, s in TIMES.items()]
    (mean,) = means(made, "smol")
    assert mean.minutes == 1.5
    console = Console(width=200)
    with console.capture() as shown:
        console.print(model_table("smol", [mean], list(TIMES), 16))
    assert "minutes" in shown.get() and shown.get().splitlines()[-2].split()[-2] == "1.5", shown.get()


def test_the_picture_has_the_size_for_a_readme_and_both_kinds_of_points(tmp_path: Path) -> None:
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
    varied = [row("smol", Variant("BOF4_S", name), 0.2) for name in VARIATIONS]
    mixed = [row("smol", Variant("search 4.5", e), 0.2, bits=4.5) for e in ("imatrix", "gptq", "gptq:self")]
    assert colored("varied.png", peers + varied + mixed) > 100
    with pytest.raises(UserError, match="nothing to draw"):
        plot.plot(peers, ["qwen"], tmp_path / "none.png")


def test_labels_that_would_touch_are_moved_apart() -> None:
    assert plot.spread_labels([0, 100, 200], 10) == [0, 100, 200]
    assert plot.spread_labels([0, 100, 104, 200], 10) == [0, 97, 107, 200]
    close = plot.spread_labels([50, 51, 52, 53], 10)
    assert [b - a for a, b in pairwise(close)] == [pytest.approx(10)] * 3
    assert sum(close) / 4 == pytest.approx(51.5)
