"""GGUF files that are damaged, of other kinds, or legal and unusual; what llama.cpp loads is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import pytest
from command_line import bof4
from gguf_bytes import UNUSUAL, T, V, header, nested, numbers, scalar, text, texts, write

from gguf_bof4.convert import convert, from_gguf, imatrix, random_tokens
from gguf_bof4.convert.options import Options
from gguf_bof4.errors import UserError
from gguf_bof4.formats import BOF4_S
from gguf_bof4.gguf_files.model import open_model, part_files
from gguf_bof4.gguf_files.reader import DEEPEST_ARRAY


def refused(path: Path, *expected: str) -> None:
    """Every reader refuses the file in one line, which begins with its name, and leaves nothing."""
    before = sorted(path.parent.iterdir())
    for read in (open_model, imatrix.load):
        with pytest.raises(UserError) as caught:
            read(path)
        said = str(caught.value)
        assert said.startswith(str(path)) and "\n" not in said and all(text_ in said for text_ in expected), said
    assert sorted(path.parent.iterdir()) == before


BIG_ENDIAN = b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + bytes(100)
STARTS = {
    "big-endian": (BIG_ENDIAN, ("big-endian", "gguf_convert_endian COPY little")),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 1, 0) + bytes(100), ("version 1", "convert the original model")),
    "version 4": (header({}, version=4) + bytes(64), ("version 4", "update gguf-bof4")),
    "version 0": (header({}, version=0) + bytes(64), ("damaged", "version 0")),
    "tensors": (header({}, n_tensors=2**60), ("truncated or damaged", "promises 1152921504606846976 tensors")),
    "values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), ("promises 0 tensors and 9223372036854775808",)),
    "short": (b"GGUF\3\0\0\0", ("truncated", "ends after 8 bytes")),
    "empty": (b"", ("not a GGUF file",)),
    "ggjt": (b"tjgg\3\0\0\0" + bytes(100), ("not a GGUF file", "GGJT", "convert the original model")),
    "zip": (b"PK\3\4" + bytes(100), ("not a GGUF file", "PyTorch")),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", ("not a GGUF file", "git lfs pull")),
    "html": (b"<!DOCTYPE html>\n<html>...", ("not a GGUF file", "web page")),
}


@pytest.mark.parametrize("start", STARTS)
def test_files_that_are_refused_by_their_start(tmp_path: Path, start: str) -> None:
    content, expected = STARTS[start]
    (tmp_path / "x.gguf").write_bytes(content)
    if content[:4] == b"GGUF":
        refused(tmp_path / "x.gguf", *expected)
    else:  # an importance matrix has another form, too
        with pytest.raises(UserError) as caught:
            open_model(tmp_path / "x.gguf")
        assert all(text_ in str(caught.value) for text_ in expected)


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"], ["verify"], ["run"]], ids=" ".join)
def test_a_refusal_is_one_line_and_exit_code_1(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(BIG_ENDIAN)
    done = bof4(*command, str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"bof4: {path} is a big-endian GGUF file") and done.stderr.count("\n") == 1
    first = write_parts(tmp_path)[0].rename(tmp_path / "m-00001-of-00002.gguf")
    done = bof4(*command, str(first))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"bof4: {first} is part 1 of 3") and done.stderr.count("\n") == 1


def test_every_truncation_of_a_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {b"a": texts(b"one", b"two"), b"n": nested(2), b"f": scalar(V.FLOAT64, 1.0)})
    content = path.read_bytes()
    for keep in range(4, len(content), 3):
        path.write_bytes(content[:keep])
        with pytest.raises(UserError, match=r"x\.gguf is truncated"):
            open_model(path)


Q8_0 = int(gguf.GGMLQuantizationType.Q8_0)
TENSORS = {
    "five dimensions": ([T(dimensions=(64, 1, 1, 1, 1))], "a.weight has 5 dimensions"),
    "four billion dimensions": ([T(dimensions=(1,) * 40)], "a.weight has 40 dimensions"),
    "a dimension of zero": ([T(dimensions=(64, 0), nbytes=0)], "a.weight of shape 0 x 64 has no weights"),
    "columns of zero": ([T(dimensions=(0, 64), nbytes=0)], "a.weight of shape 64 x 0 has no weights"),
    "a negative dimension": ([T(dimensions=(2**64 - 64,))], "a.weight of shape 18446744073709551552 is larger"),
    "a product that overflows": ([T(dimensions=(2**32, 2**32, 2**32))], "is larger than any file"),
    "an unknown type": ([T(type_id=4000)], "a.weight has type 4000"),
    "a type that was removed": ([T(type_id=4)], "a.weight has type 4"),
    "rows of parts of blocks": ([T(dimensions=(33,), type_id=Q8_0)], "33 weights, which is no multiple of Q8_0's 32"),
    "a scalar of blocks": ([T(dimensions=(), type_id=Q8_0)], "1 weights, which is no multiple of Q8_0's 32"),
    "the same name": ([T(), T()], "tensor a.weight is there twice"),
    "a name with NUL": ([T(name=b"a\0b")], r"the name of tensor a\x00b has a NUL"),
    "a name that is no UTF-8": ([T(name=b"a\xffb")], r"the name of tensor a\xffb is no UTF-8"),
    "a hole": ([T(), T(name=b"b", offset=512)], "tensor b starts at byte"),
    "one over the other": ([T(), T(name=b"b", offset=0)], "tensor b starts at byte"),
    "an offset that overflows": ([T(), T(name=b"b", offset=2**64 - 32)], "tensor b starts at byte"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_refused(tmp_path: Path, kind: str) -> None:
    tensors, expected = TENSORS[kind]
    refused(write(tmp_path / "x.gguf", tensors=tensors), "x.gguf is damaged: ", expected)


def test_a_tensor_beyond_the_end_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", tensors=[T(dimensions=(65,))])
    refused(path, f"is truncated: tensor a.weight ends at byte {path.stat().st_size + 4}, the file at")


def test_a_scalar_is_a_row_of_one_weight_as_in_llama_cpp(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", tensors=[T(dimensions=(), nbytes=4), T(name=b"b", dimensions=(8, 8))])
    model = open_model(path)
    assert [(t.shape, t.nbytes) for t in model.tensors] == [((1,), 4), ((8, 8), 256)]
    assert model.tensors[0].read_rows().shape == (1, 4)
    found = json.loads(bof4("inspect", "--json", str(path)).stdout)
    assert [t["shape"] for t in found["tensors"]] == [[1], [8, 8]]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_versions_and_alignments_that_llama_cpp_loads(tmp_path: Path, version: int, alignment: int) -> None:
    tensors = [T(dimensions=(3,), nbytes=12), T(name=b"b")]
    values = {b"general.alignment": scalar(V.UINT32, alignment)}
    path = write(tmp_path / "x.gguf", values, tensors, version=version, alignment=alignment)
    offsets = [t.offset for t in open_model(path).tensors]
    assert offsets[1] - offsets[0] == -(-12 // alignment) * alignment
    assert offsets[1] + max(256, alignment) == path.stat().st_size


def test_alignments_that_are_refused(tmp_path: Path) -> None:
    for value in (scalar(V.UINT32, 0), scalar(V.UINT32, 24), scalar(V.UINT64, 32), text(b"32")):
        refused(write(tmp_path / "x.gguf", {b"general.alignment": value}), "is truncated or damaged", "lignment")
    refused(write(tmp_path / "x.gguf", {b"general.alignment": scalar(V.UINT32, 2**31)}), "is truncated")


def test_tensors_beyond_4_gib_in_a_file_that_gives_its_alignment(tmp_path: Path) -> None:
    large = 5 << 30
    path, tensors = tmp_path / "x.gguf", [T(dimensions=(large // 4,), nbytes=large), T(name=b"b")]
    start = header({b"general.alignment": scalar(V.UINT32, 32)}, tensors)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + large + 256)  # sparse
    assert [t.offset for t in open_model(path).tensors] == [len(start), len(start) + large]


METADATA = {
    "an empty key": ({b"": text(b"x")}, "is empty"),
    "a value of an unknown type": ({b"k": struct.pack("<I", 99)}, "the value of k: 99 is not a valid"),
    "an array of an unknown type": ({b"k": struct.pack("<IIQ", V.ARRAY, 99, 0)}, "the value of k: 99 is not a valid"),
    "arrays in arrays": ({b"k": nested(3000)}, "the value of k: arrays are nested deeper than 16"),
    "one array too many": ({b"k": nested(DEEPEST_ARRAY + 1)}, "the value of k: arrays are nested deeper than 16"),
    "a long array": ({b"k": struct.pack("<IIQ", V.ARRAY, V.UINT64, 2**61)}, "an array of 2305843009213693952 values"),
    "many strings": ({b"k": struct.pack("<IIQ", V.ARRAY, V.STRING, 2**63)}, "the value of k"),
    "a long string": ({b"k": struct.pack("<IQ", V.STRING, 2**63)}, "the value of k: its header goes on to byte"),
    "a version that is a string": ({b"bof4.version": text(b"1")}, "bof4.version is not a whole number"),
    "a version that is a float": ({b"bof4.version": scalar(V.FLOAT32, 1)}, "bof4.version is not a whole number"),
    "a version that is an array": ({b"bof4.version": numbers(V.UINT32, [1])}, "bof4.version is not a whole number"),
    "a later version": ({b"bof4.version": scalar(V.UINT32, 2)}, "version 2 of the BOF4 formats"),
    "levels that are a number": ({b"bof4.levels.bof4_s": scalar(V.INT8, 1)}, "levels.bof4_s is not an array"),
    "levels that are strings": ({b"bof4.levels.bof4_s": texts(b"1")}, "levels.bof4_s is not an array"),
    "levels that are floats": ({b"bof4.levels.bof4_s": numbers(V.FLOAT32, [1.0])}, "levels.bof4_s is not an array"),
    "levels in an array": ({b"bof4.levels.bof4_s": nested(1)}, "levels.bof4_s is not an array"),
    "no levels": ({b"bof4.levels.bof4_s": numbers(V.INT8, [])}, "levels.bof4_s is [], but"),
    "a count that is a string": ({b"split.count": text(b"2")}, "split.count is not a whole number"),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_is_refused(tmp_path: Path, kind: str) -> None:
    values, expected = METADATA[kind]
    refused(write(tmp_path / "x.gguf", values), expected)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {b"key.one": text(b"1"), b"key.two": text(b"2")})
    path.write_bytes(path.read_bytes().replace(b"key.two", b"key.one"))
    refused(path, "the key key.one is there twice")


def test_unusual_metadata_is_shown_escaped(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", UNUSUAL)
    done = bof4("inspect", "--json", str(path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=pytest.fail)["metadata"]
    assert found["general.name"] == r"caf\xe9"
    assert found["tokenizer.ggml.tokens"] == [r"\xff\xfe", "ok", "\x00\x1b[31m", ""]
    assert (found["GGUF.version"], found["GGUF.other"], found[r"key\xff"]) == (7, "kept", True)
    assert (found["empty"], found["no.strings"], found["deep"], found["not.a.number"]) == ([], [], [7], "nan")
    shown = bof4("inspect", str(path))
    assert shown.returncode == 0, shown.stderr
    for expected in (r"caf\xe9", r"key\xff", "GGUF.version"):
        assert expected in shown.stdout
    assert "\x1b" not in shown.stdout and "\0" not in shown.stdout


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    name = "a\x1b]0;title\x07\r\n\u202e.weight"
    path = write(tmp_path / "x\x1b.gguf", {b"k\x1b": text(b"v\x1b\r")}, [T(name=name.encode())])
    done = bof4("inspect", str(path))
    assert done.returncode == 0, done.stderr
    assert not [c for c in done.stdout if not c.isprintable() and c != "\n"]
    assert r"a\x1b]0;title\x07\r\n\u202e.weight" in done.stdout and r"v\x1b\r" in done.stdout


def test_unusual_metadata_is_copied_byte_for_byte(tmp_path: Path) -> None:
    path, copy = write(tmp_path / "x.gguf", UNUSUAL), tmp_path / "copy.gguf"
    writer = from_gguf.open_source(path, Options()).writer
    writer.write_header_to_file(path=copy)
    writer.write_kv_data_to_file()
    writer.close()
    expected = {b"general.architecture": text(b"llama")} | {k: v for k, v in UNUSUAL.items() if k != b"split.count"}
    assert copy.read_bytes() == header(expected, alignment=1)


def write_parts(folder: Path, count: int = 3) -> list[Path]:
    """A model of `count` parts of one tensor each, with the metadata that llama-gguf-split writes."""
    return [
        write(
            folder / f"m-{i + 1:05d}-of-{count:05d}.gguf",
            {
                b"split.no": scalar(V.UINT16, i),
                b"split.count": scalar(V.UINT16, count),
                b"split.tensors.count": scalar(V.INT32, count),
            },
            [T(name=f"t{i}.weight".encode())],
        )
        for i in range(count)
    ]


def test_a_split_model(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    model = open_model(parts[0])
    assert [t.name for t in model.tensors] == ["t0.weight", "t1.weight", "t2.weight"]
    assert model.files == part_files(parts[0]) == parts
    for part in parts[1:]:
        refused(part, "is a later part of a split model: give the first one", parts[0].name)
    parts[2].unlink()
    refused(parts[0], "parts of the split model are missing: m-00003-of-00003.gguf")


def test_the_messages_name_a_few_missing_parts(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, 200)
    for part in parts[1:]:
        part.unlink()
    with pytest.raises(UserError, match=r"m-00006-of-00200\.gguf and 194 more$"):
        open_model(parts[0])


def test_a_single_part_that_was_renamed(tmp_path: Path) -> None:
    first = write_parts(tmp_path)[0]
    for name in ("model.gguf", "m-00001-of-00002.gguf", "m-00002-of-00003.gguf", "m-00001-of-00000.gguf", "m"):
        renamed = first.rename(tmp_path / name)
        refused(renamed, "is part 1 of 3", "was renamed", "-00001-of-00003.gguf")
        with pytest.raises(UserError, match="was renamed"):
            part_files(renamed)
        first = renamed


def test_two_parts_that_were_renamed_to_the_parts_of_a_smaller_model(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    parts[0].rename(tmp_path / "m-00001-of-00002.gguf")
    parts[1].rename(tmp_path / "m-00002-of-00002.gguf")
    refused(tmp_path / "m-00001-of-00002.gguf", "is part 1 of 3", "was renamed")


def test_parts_in_another_order(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    parts[1].rename(tmp_path / "x")
    parts[2].rename(parts[1])
    (tmp_path / "x").rename(parts[2])
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf is part 3 \(split.no\).*but part 2 by its name"):
        open_model(parts[0])


def test_a_part_of_another_model(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    parts, others = write_parts(tmp_path), write_parts(tmp_path / "other", 4)
    others[1].replace(parts[1])
    with pytest.raises(UserError, match=r"00002-of-00003\.gguf is one of 4 parts .* is one of 3: they belong to"):
        open_model(parts[0])


SPLIT_FAULTS = [
    (0, b"split.no", "is one of 3 parts .* has no split.no"),
    (1, b"split.no", "00002-of-00003.gguf has no split.no"),
    (0, b"split.tensors.count", "have 3 tensors, but split.tensors.count does not say"),
]


@pytest.mark.parametrize(("part", "key", "message"), SPLIT_FAULTS)
def test_parts_without_a_number(tmp_path: Path, part: int, key: bytes, message: str) -> None:
    parts = write_parts(tmp_path)
    parts[part].write_bytes(parts[part].read_bytes().replace(key, key.upper()))
    with pytest.raises(UserError, match=message):
        open_model(parts[0])


def test_tensors_that_are_missing_in_a_part(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    parts[0].write_bytes(parts[0].read_bytes().replace(*(b"count" + scalar(V.INT32, n) for n in (3, 4))))
    with pytest.raises(UserError, match=r"the 3 parts have 3 tensors, but split\.tensors\.count says 4"):
        open_model(parts[0])


def test_the_same_tensor_in_two_parts(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    parts[2].write_bytes(parts[2].read_bytes().replace(b"t2.weight", b"t0.weight"))
    with pytest.raises(UserError, match=r"00003-of-00003\.gguf.*tensor t0.weight is in m-00001-of-00003\.gguf, too"):
        open_model(parts[0])


@pytest.mark.parametrize("count", [None, 0, 1])
@pytest.mark.parametrize("name", ["m.gguf", "m-00001-of-00001.gguf", "m-00002-of-00003.gguf", "m-00001-of-00000.gguf"])
def test_a_whole_model_may_have_any_name_as_in_llama_cpp(tmp_path: Path, count: int | None, name: str) -> None:
    values = {} if count is None else {b"split.count": scalar(V.UINT16, count), b"split.no": scalar(V.UINT16, 0)}
    model = open_model(write(tmp_path / name, values))
    assert [t.name for t in model.tensors] == ["a.weight"] and model.files == [tmp_path / name]


IMATRIX = {
    b"general.type": text(b"imatrix"),
    b"imatrix.datasets": texts(b"text.txt"),
    b"imatrix.chunk_count": scalar(V.UINT32, 2),
    b"imatrix.chunk_size": scalar(V.UINT32, 512),
}
SUMS = (T(name=b"a.in_sum2"), T(name=b"a.counts", dimensions=(1,), nbytes=4))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"imatrix.datasets", text(b"text.txt")),
        (b"imatrix.datasets", numbers(V.UINT8, [1])),
        (b"imatrix.chunk_count", text(b"2")),
        (b"imatrix.chunk_count", numbers(V.UINT32, [2])),
        (b"imatrix.chunk_size", scalar(V.FLOAT32, 1.5)),
    ],
)
def test_importance_matrices_with_metadata_of_other_types(tmp_path: Path, key: bytes, value: bytes) -> None:
    assert imatrix.load(write(tmp_path / "i.gguf", IMATRIX, SUMS)).dataset == "text.txt"
    with pytest.raises(UserError, match=rf"i\.gguf is damaged: its metadata value {key.decode()} is not"):
        imatrix.load(write(tmp_path / "i.gguf", IMATRIX | {key: value}, SUMS))


def test_vocabularies_of_other_types(tmp_path: Path) -> None:
    tokens, kinds = b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type"
    sound = {tokens: texts(b"one", b"\xff\xfe", b"two"), kinds: numbers(V.INT32, [1, 1, 1])}
    assert random_tokens.words(open_model(write(tmp_path / "x.gguf", sound))) == ["one", "two"]
    for value in (
        {tokens: text(b"one")},
        {tokens: numbers(V.INT32, [1])},
        {kinds: texts(b"1")},
        {kinds: numbers(V.INT32, [1])},
        {tokens: texts()},
    ):
        with pytest.raises(UserError, match=r"x\.gguf (is damaged|has no vocabulary)"):
            random_tokens.words(open_model(write(tmp_path / "x.gguf", sound | value)))


def test_conversions_refuse_what_is_damaged_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_bof4.convert.installed_bin", lambda: tmp_path)
    path = write(tmp_path / "x.gguf", tensors=[T(dimensions=(64, 1, 1, 1, 1))])
    with pytest.raises(UserError, match="5 dimensions"):
        convert(path, tmp_path / "out.gguf")
    path.rename(tmp_path / "y.gguf")
    first = write_parts(tmp_path)[0].rename(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="was renamed"):
        convert(first, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out*"))


def test_a_file_that_this_project_wrote_is_still_read(tmp_path: Path) -> None:
    nbytes = BOF4_S.block_bytes * 4
    values = {
        b"bof4.version": scalar(V.UINT32, 1),
        BOF4_S.levels_key.encode(): numbers(V.INT8, BOF4_S.levels),
    }
    path = write(tmp_path / "x.gguf", values, [T(dimensions=(64, 4), type_id=BOF4_S.type_id, nbytes=nbytes)])
    (tensor,) = open_model(path).tensors
    assert (tensor.shape, tensor.nbytes, tensor.row_bytes) == ((4, 64), nbytes, BOF4_S.block_bytes)


def test_a_type_that_only_the_pinned_llama_cpp_has(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", tensors=[T(dimensions=(128, 3), type_id=42, nbytes=108)])
    (tensor,) = open_model(path).tensors
    assert (tensor.qtype.name, tensor.nbytes) == ("Q2_0", 108)
