"""Recipes: what is read, what is written, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import given
from hypothesis import strategies as st

from gguf_bof4.convert.options import Options
from gguf_bof4.convert.recipe import Shape, comment_line, exact_pattern, read_recipe, recipe_text, tensor_line
from gguf_bof4.errors import UserError
from gguf_bof4.outlier_choice import Budget, OutlierRule, Quantile

NAMES = st.text(st.sampled_from("abkxyz019._-/+()[]$^"), min_size=1, max_size=30)


def written(path: Path, text: str) -> Path:
    target = path / "recipe.txt"
    target.write_text(text, encoding="utf-8")
    return target


def upstream_words(text: str) -> list[tuple[str, str]]:
    """What parse_tensor_type_file of llama-quantize reads: every word, split at its first "=".

    Words are those of a C++ stream; the pattern becomes lower case.
    """
    words = []
    for word in re.split(r"[ \t\n\v\f\r]+", text.strip()):
        pattern, equals, qtype = word.partition("=")
        assert equals and pattern and qtype, word
        words.append((pattern.lower(), qtype))
    return words


@pytest.mark.parametrize(
    "line, qtype, says, rule",
    [
        ("attn_v=q8_0", T.Q8_0, False, None),
        ("ATTN_V=Q8_0", T.Q8_0, False, None),
        ("attn_v|#opq:off=bof4_k", T.BOF4_K, True, None),
        ("attn_v|#opq:0.99=bof4_s", T.BOF4_S, True, Quantile(0.99)),
        ("attn_v|ffn_up|#opq-bits:0.05=bof4_s", T.BOF4_S, True, Budget(0.05)),
    ],
)
def test_lines_say_types_and_lists(
    tmp_path: Path, line: str, qtype: T, says: bool, rule: OutlierRule | None
) -> None:
    (found,) = read_recipe(written(tmp_path, line)).lines
    assert (found.qtype, found.says_lists, found.rule) == (qtype, says, rule)
    assert found.finds("blk.0.attn_v.weight") and not found.finds("blk.0.attn_q.weight")


def test_comments_of_both_kinds_and_several_words_in_a_line(tmp_path: Path) -> None:
    text = "#_written_for_upstream=f32\n# in any words = here\n\nattn_q=q4_k attn_k=q5_k # behind\n"
    assert [(n.number, n.pattern) for n in read_recipe(written(tmp_path, text)).lines] == [(4, "attn_q"), (4, "attn_k")]


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=60))
def test_comments_are_words_that_find_no_tensor(text: str) -> None:
    ((pattern, qtype),) = upstream_words(comment_line(text))
    assert qtype == "f32"
    assert not re.search(pattern, "blk.0.attn_q.weight token_embd.weight")
    assert pattern.startswith("#")


@given(NAMES, NAMES)
def test_a_pattern_finds_its_tensor_only(name: str, other: str) -> None:
    assert re.search(exact_pattern(name), name)
    assert (other == name) == (re.search(exact_pattern(name), other) is not None)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([T.BOF4_S, T.BOF4_K, T.Q4_K, T.F16])), min_size=1))
def test_what_is_written_is_read_by_both(tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, T]]) -> None:
    rules = [None, Budget(0.05), Quantile(0.95)]
    lines = [(f"blk.{i}.attn_q.weight", qtype, rules[i % 3]) for i, qtype in parts]
    text = recipe_text([comment_line("5 bits (of a file)"), *(tensor_line(*line) for line in lines)])
    recipe = read_recipe(written(tmp_path_factory.mktemp("recipe"), text))
    words = upstream_words(text)[1:]
    assert len(words) == len(recipe.lines) == len(lines)
    for (name, qtype, rule), line, (pattern, upstream_type) in zip(lines, recipe.lines, words, strict=True):
        listed = qtype in (T.BOF4_S, T.BOF4_K)
        assert line.qtype == qtype and T[upstream_type.upper()] == qtype
        assert line.says_lists == listed and line.rule == (rule if listed else None)
        assert line.finds(name) and re.search(pattern, name) and not re.search(pattern, f"{name}.x")


@pytest.mark.parametrize(
    "text, message",
    [
        ("attn_v", "line 1: attn_v is not PATTERN=TYPE"),
        ("a=q8_0\nattn_v=", "line 2: attn_v= is not PATTERN=TYPE"),
        ("|#opq:off=bof4_s", "line 1: |#opq:off=bof4_s is not PATTERN=TYPE"),
        ("a=q8_0\n\nattn_(=q8_0", "line 3: attn_( is no regular expression"),
        ("attn_v=q9_z", "line 1, attn_v: there is no tensor type 'q9_z'"),
        ("attn_v=iq2_xs", "line 1, attn_v: the type IQ2_XS needs an importance matrix"),
        ("attn_v|#opq:2=bof4_s", "line 1, attn_v: --opq 2: give a quantile between 0 and 1"),
        ("attn_v|#opq-bits:7=bof4_s", "line 1, attn_v: opq-bits:7: give bits per weight above 0 and up to 1"),
        ("attn_v|#opq-bits:x=bof4_s", "line 1, attn_v: opq-bits:x: give bits per weight"),
        ("attn_v|#lists=bof4_s", "line 1, attn_v: lists is no rule for outlier lists"),
        ("attn_v|#opq:0.95=q4_k", "line 1, attn_v: Q4_K has no outlier list"),
        ("# nothing else\n", "is empty: give a line PATTERN=TYPE"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"GGUF\xff\xfe\x00")
    for path, message in ((tmp_path / "binary", "is no text"), (tmp_path / "missing", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_recipe(path)


MODEL = [
    Shape("blk.0.attn_q.weight", 576, True),
    Shape("blk.0.ffn_down.weight", 1536, True),
    Shape("blk.0.attn_norm.weight", 576, False),
]


@pytest.mark.parametrize(
    "text, message",
    [
        ("attn_q=q8_0\nattn_x=q8_0", "line 2: no tensor of the model has a name like attn_x"),
        ("attn_norm=q8_0", "line 1: blk.0.attn_norm.weight is never quantized"),
        ("attn_q=q4_k", "line 1: blk.0.attn_q.weight cannot be Q4_K, because its rows of 576 do not divide"),
        ("ffn_down=bof4_k\nblk=bof4_k", "line 2: blk.0.attn_q.weight cannot be BOF4_K"),
    ],
)
def test_recipes_that_do_not_fit_a_model(tmp_path: Path, text: str, message: str) -> None:
    recipe = read_recipe(written(tmp_path, text))
    with pytest.raises(UserError) as caught:
        recipe.check(MODEL, lambda name: False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_options_and_earlier_lines_decide_is_not_refused(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "attn_q=bof4_s\nblk=bof4_k"))
    recipe.check(MODEL, lambda name: False)
    read_recipe(written(tmp_path, "blk=bof4_k")).check(MODEL, lambda name: "attn_q" in name)


def test_options_go_before_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "attn_q|#opq:off=bof4_k\nattn_k=bof4_s\nattn_v=q6_k")
    options = Options(recipe=str(path), tensor_types=("blk.0.attn_q=q8_0",), opq=("attn_k=0.9", "0.99"))
    assert options.rules.matched("blk.0.attn_q.weight") == T.Q8_0
    assert options.rules.matched("blk.1.attn_q.weight") == T.BOF4_K
    assert options.rules.matched("blk.1.ffn_up.weight") is None
    assert options.list_rules.of("blk.1.attn_q.weight") is None
    assert options.list_rules.of("blk.1.attn_k.weight") == Quantile(0.9)
    assert options.list_rules.of("blk.1.ffn_up.weight") == Quantile(0.99)


def test_the_line_that_decides_the_type_decides_the_list(tmp_path: Path) -> None:
    options = Options(recipe=str(written(tmp_path, "attn_q=bof4_s\nattn|#opq:off=bof4_k")))
    assert options.list_rules.of("blk.0.attn_q.weight") == Quantile(0.95)
    assert options.list_rules.of("blk.0.attn_k.weight") is None


def test_the_main_type_is_that_of_most_lines(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, "a=q4_k\nb=q4_k\nc=bof4_s\nd=iq3_s\ne=iq3_s\nf=iq3_s")).main_type == "Q4_K"
    assert read_recipe(written(tmp_path, "d=iq3_s")).main_type is None
