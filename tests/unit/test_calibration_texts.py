"""Calibration texts: files, folders, chats, and how they are mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from gguf_bof4.convert.options import Options
from gguf_bof4.encoders.gptq.samples import make_samples
from gguf_bof4.encoders.gptq.shares import shares
from gguf_bof4.encoders.gptq.sources import check_readable, digest, files_of, read_files, tokens_of
from gguf_bof4.errors import UserError

WORDS = ("<unk>", "<user>", "<assistant>", "hello", "good", "day", "bye")
TEMPLATE = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}<{{ m.role }}> {{ m.content }} {% endfor %}"  # noqa: E501


@pytest.fixture
def tokenizer() -> Any:
    """Of words, with a chat template."""
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE)


def read_source(source: Path, tokenizer: Any) -> list[int]:
    return tokens_of(read_files(source), tokenizer)


def words(tokens: list[int]) -> str:
    return " ".join(WORDS[i] for i in tokens)


def test_equal_shares_and_what_one_source_lacks_the_others_give() -> None:
    assert shares([100, 100], 32) == [16, 16]
    assert shares([100, 100, 100], 32) == [11, 11, 10]
    assert shares([4, 100], 32) == [4, 28]
    assert shares([4, 10, 100], 32) == [4, 10, 18]
    assert shares([4, 5], 32) == [4, 5]
    assert shares([100], 32) == [32]


def test_windows_of_several_texts(tokenizer: Any) -> None:
    made = make_samples(tokenizer, [(Path("a"), range(100)), (Path("b"), range(1000, 1020))], 6, 10)
    # three of each were the shares, but the second has two
    assert [row[0].item() for row in made.tokens] == [0, 30, 60, 90, 1000, 1010]
    assert made.count == made.wanted == 6
    alone = make_samples(tokenizer, [(Path("a"), range(100))], 6, 10)
    assert [row[0].item() for row in alone.tokens] == [i * 90 // 5 for i in range(6)]


def test_a_folder_is_one_source(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("bye")
    (tmp_path / "a.md").write_text("hello good")
    (tmp_path / "c.jsonl").write_text('"day"\n')
    (tmp_path / ".hidden").write_bytes(b"\xff\xff")
    assert [p.name for p in files_of(tmp_path)] == ["a.md", "c.jsonl", "b.txt"]
    assert words(read_source(tmp_path, tokenizer)) == "hello good day bye"
    before = digest(read_files(tmp_path))
    (tmp_path / "sub" / "b.txt").write_text("day")
    assert digest(read_files(tmp_path)) != before


def test_chats_go_through_the_template(tmp_path: Path, tokenizer: Any) -> None:
    lines = (
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]},
        [{"role": "user", "content": "bye"}],
        {"conversations": [{"from": "human", "value": "good"}, {"from": "gpt", "value": "bye"}]},
        {"text": "day day"},
    )
    path = tmp_path / "chats.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert words(read_source(path, tokenizer)) == (
        "<user> hello <assistant> good day <user> bye <user> good <assistant> bye day day"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": ', "chats.jsonl, line 2 is no JSON"),
        (b'{"question": "a"}', "line 1 is neither a chat nor a text: give"),
        (b'{"messages": []}', "line 1 is neither a chat nor a text"),
        (b'{"messages": [{"role": "user"}]}', "line 1 is neither a chat nor a text"),
        (b'{"messages": ["hello"]}', "line 1 is neither a chat nor a text"),
        (b"12", "line 1 is neither a chat nor a text"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', "template of the model refuses this chat: no tools"),
        (b"\xff\xfe", "chats.jsonl is not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, tokenizer: Any, content: bytes, message: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_source(path, tokenizer)
    assert "\n" not in str(refused.value)


def test_a_model_without_a_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hello"}]}')
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"line 1 is a chat, and the tokenizer of the model has no chat template"):
        read_source(path, tokenizer)


def test_what_cannot_be_read_is_named(tmp_path: Path, tokenizer: Any) -> None:
    missing, empty = tmp_path / "missing.txt", tmp_path / "empty"
    empty.mkdir()
    for read in (read_files, check_readable):
        with pytest.raises(UserError, match=r"missing\.txt cannot be read: No such file"):
            read(missing)
        with pytest.raises(UserError, match=r"the calibration folder .*empty has no files"):
            read(empty)


def test_one_tiny_text_among_others_is_named(tokenizer: Any) -> None:
    good, tiny = (Path("good.txt"), range(100)), (Path("tiny.txt"), range(3))
    with pytest.raises(UserError, match=r"tiny\.txt has 3 tokens, less than one sample of 10"):
        make_samples(tokenizer, [good, tiny], 6, 10)
    with pytest.raises(UserError, match=r"tiny\.txt has 0 tokens"):
        make_samples(tokenizer, [(Path("tiny.txt"), [])], 6, 10)
    with pytest.raises(UserError, match="3 calibration texts have no equal shares of 2 samples"):
        make_samples(tokenizer, [good] * 3, 2, 10)


def test_options_take_one_or_several() -> None:
    assert Options(encoder="gptq", calibration="a").calibration_texts == (Path("a"),)
    assert Options(encoder="gptq", calibration=("a", "b")).calibration_texts == (Path("a"), Path("b"))
    assert Options(encoder="gptq").calibration_sources == ("self",)
    assert Options().calibration_sources == ()
    Options(encoder="gptq", calibration=("a", "b")).check()
    with pytest.raises(UserError, match="--encoder search runs no model"):
        Options(calibration=("a",)).check()
