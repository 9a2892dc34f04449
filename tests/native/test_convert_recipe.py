"""bof4 convert --recipe: mixtures by every encoder, from files and folders, and what llama-quantize makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from calibration_models import family_folder
from command_line import bof4
from convert_models import tensors, types, write_gguf
from llama import succeed

from gguf_bof4.convert import convert
from gguf_bof4.convert.recipe import comment_line, recipe_text, tensor_line
from gguf_bof4.formats import FORMATS
from gguf_bof4.gguf_files.model import open_model

MIXTURE = {"attn_q": "Q4_K", "attn_k": "BOF4_S", "attn_v": "Q8_0", "ffn_up": "BOF4_K", "ffn_down": "Q3_K"}
RECIPE = """#_of_two_readers=f32
blk\\.0\\.attn_q=q4_k attn_k|#opq-bits:0.05=bof4_s
attn_v=q8_0
attn_q=q4_k
ffn_up|#opq:off=bof4_k
ffn_down=q3_k
"""
GPTQ: dict[str, Any] = {"encoder": "gptq", "calibration": __file__, "samples": 4, "sample_length": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, two layers."""
    return family_folder(tmp_path_factory.mktemp("wide"), "wide")


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a GGUF file in F32."""
    target = tmp_path_factory.mktemp("gguf") / "wide.gguf"
    convert(folder, target, type="F32")
    return target


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.txt"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    "kind, options",
    [
        ("file", {"encoder": "absmax"}), ("file", {}), ("file", {"imatrix": "random"}), ("folder", {}),
        ("folder", GPTQ),  # of the file: the next test
    ],
)  # fmt: skip
def test_every_encoder_makes_the_mixture(
    kind: str, options: dict[str, Any], folder: Path, file: Path, recipe: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.gguf"
    report = convert(folder if kind == "folder" else file, made, type="BOF4_S", recipe=str(recipe), **options)
    model = open_model(made)
    for t in model.tensors:
        if t.name.startswith("blk.") and len(t.shape) > 1:
            assert t.qtype.name == MIXTURE.get(t.name.split(".")[2], "BOF4_S"), t.name
            listed = model.n_outliers(t) > 0
            assert listed == (t.qtype.name == "BOF4_S"), t.name
    assert report.fallbacks == () and report.not_compensated == ()
    k = next(t for t in model.tensors if t.name == "blk.0.attn_k.weight")
    assert model.n_outliers(k) == int(0.05 * k.n_weights / 32)


def test_compensation_changes_all_types_of_the_mixture(file: Path, recipe: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "plain.gguf", recipe=str(recipe))
    convert(file, tmp_path / "gptq.gguf", recipe=str(recipe), **GPTQ)
    plain, compensated = tensors(tmp_path / "plain.gguf"), tensors(tmp_path / "gptq.gguf")
    inside = [n for n in plain if n.startswith("blk.") and "norm" not in n and not n.endswith(".opq")]
    assert len(inside) == 2 * 7
    assert [n for n in inside if plain[n] == compensated[n]] == []


def test_llama_quantize_gives_the_same_types(file: Path, recipe: Path, tmp_path: Path) -> None:
    upstream, ours = tmp_path / "upstream.gguf", tmp_path / "ours.gguf"
    succeed("quantize", "--tensor-type-file", recipe, file, upstream, "BOF4_S")
    convert(file, ours, type="BOF4_S", recipe=str(recipe), opq=("off",))
    assert types(upstream) == {name: t for name, t in types(ours).items() if not name.endswith(".opq")}


def test_a_whole_recipe_as_search_writes_it(file: Path, tmp_path: Path) -> None:
    """Every type that has a line, exact names, comments: both readers agree."""
    names = [t.name for t in open_model(file).tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    kinds = [*(fmt.name for fmt in FORMATS), "Q3_K", "IQ3_S", "Q4_K", "Q5_K", "Q6_K", "Q8_0"]
    import gguf

    wanted = {name: kinds[i % len(kinds)] for i, name in enumerate(names)}
    lines = [tensor_line(name, gguf.GGMLQuantizationType[t], None) for name, t in wanted.items()]
    path = tmp_path / "recipe.txt"
    path.write_text(recipe_text([comment_line("4.40 bits (per weight); 100 %"), *lines]))
    succeed("quantize", "--tensor-type-file", path, file, tmp_path / "upstream.gguf", "Q4_K_S")
    assert bof4("convert", str(file), str(tmp_path / "ours.gguf"), "--recipe", str(path)).returncode == 0
    for made in ("upstream.gguf", "ours.gguf"):
        found = types(tmp_path / made)
        assert {name: found[name] for name in names} == wanted


def test_metadata_says_what_most_tensors_are_and_nothing_that_is_not_true(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.txt"
    path.write_text("blk.*weight|#opq:off=bof4_k\n")
    result = bof4("convert", str(file), str(tmp_path / "made.gguf"), "--recipe", str(path))
    assert result.returncode == 0, result.stderr
    model = open_model(tmp_path / "made.gguf")
    assert model.value("general.file_type") == 177
    assert model.value("bof4.opq.quantile") is None and model.value("bof4.opq.bits") is None


def test_inspect_shows_the_mixture(file: Path, recipe: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "made.gguf", recipe=str(recipe))
    printed = bof4("inspect", str(tmp_path / "made.gguf")).stdout
    assert "mixture" in printed
    for group, kind in (("attention q", "2 Q4_K"), ("attention v", "2 Q8_0"), ("ffn up", "2 BOF4_K")):
        assert any(group in line and kind in line for line in printed.splitlines()), group


@pytest.mark.parametrize(
    "text, message",
    [
        ("attn_q=q8_0\nattn_x=q4_k\n", "line 2: no tensor of the model has a name like attn_x"),
        ("blk.1.ffn_down=q4_k\n", "line 1: blk.1.ffn_down.weight cannot be Q4_K, because its rows of 100"),
        ("ffn_gate_inp=q8_0\n", "line 1: blk.0.ffn_gate_inp.weight is never quantized"),
        ("attn_q=q99\n", "line 1, attn_q: there is no tensor type 'q99'"),
        ("attn_q\n", "line 1: attn_q is not PATTERN=TYPE"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_errors_are_one_line_and_leave_nothing(text: str, message: str, dry: tuple[str, ...], tmp_path: Path) -> None:
    source, path = write_gguf(tmp_path / "model.gguf"), tmp_path / "recipe.txt"
    path.write_text(text)
    result = bof4("convert", str(source), str(tmp_path / "made.gguf"), "--recipe", str(path), *dry)
    assert result.returncode == 1
    (said,) = result.stderr.strip().splitlines()
    assert message in said and str(path) in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf", "recipe.txt"]
