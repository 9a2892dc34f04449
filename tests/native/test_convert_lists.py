"""bof4 convert --opq: lists beside their weights, whatever the route, threads and parts; and what is refused."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from convert_models import SHAPES, llama_folder, sentencepiece_tokenizer, smollm2_tokenizer, tensors, write_gguf
from gguf import GGMLQuantizationType as T
from llama import THREADS, llama, succeed
from program import bof4

import gguf_bof4
from gguf_bof4 import native
from gguf_bof4.codebook.weights import matrices
from gguf_bof4.convert import convert
from gguf_bof4.convert.list_rules import ListRules, parse_rules
from gguf_bof4.convert.output_lists import list_room
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.lists import SUFFIX, select, without
from gguf_bof4.outlier_choice import Budget, Quantile
from gguf_bof4.verify import verify

Q = ("0.95",)

HEAVY = {
    name: np.random.default_rng(i).standard_t(4, shape).astype(np.float32) * np.float32(0.05)
    for i, (name, shape) in enumerate(SHAPES.items())
    if len(shape) > 1 and "norm" not in name
}
"""Weights with outliers."""

SIGNS = np.where(np.random.default_rng(0).random((64, 256)) < 0.5, np.float32(-0.05), np.float32(0.05))
"""Weights of one magnitude: no outlier."""


def heavy_gguf(path: Path, qtype: T = T.F32, **replace: np.ndarray) -> Path:
    return write_gguf(path, qtype, replace=HEAVY | {f"blk.0.{k}.weight": v for k, v in replace.items()})


def read(path: Path) -> dict[str, np.ndarray]:
    """All weights of one file, outliers included."""
    reader = gguf.GGUFReader(path)
    return {t.name: gguf_bof4.read_tensor(reader, t.name) for t in reader.tensors if not t.name.endswith(SUFFIX)}


def expected(x: np.ndarray, quantile: float | None) -> np.ndarray:
    """What the reference, which is absmax, makes of weights."""
    rows = x.reshape(-1, x.shape[-1])
    if quantile is None:
        return np.asarray(gguf.dequantize(gguf.quantize(rows, T.BOF4_S), T.BOF4_S)).reshape(x.shape)
    found = select(rows, quantile)
    decoded = np.asarray(gguf.dequantize(gguf.quantize(without(rows, found), T.BOF4_S), T.BOF4_S))
    found.add_to(decoded)
    return decoded.reshape(x.shape)


@pytest.mark.parametrize("qtype", [T.F32, T.F16, T.BF16, T.Q8_0])
def test_a_file_decodes_to_what_the_reference_says(tmp_path: Path, qtype: T) -> None:
    source = heavy_gguf(tmp_path / "in.gguf", qtype)
    report = convert(source, tmp_path / "out.gguf", opq=Q, threads=2, encoder="absmax")
    before, after = read(source), read(report.outputs[0])
    model = open_model(report.outputs[0])
    listed = {t.name for t in model.tensors if t.qtype == T.BOF4_S}
    assert len(listed) >= 8
    assert model.lists.keys() == listed == {t.name for t in report.listed}
    for t in model.tensors:
        if t.name in listed:
            assert np.array_equal(after[t.name], expected(before[t.name], 0.95)), t.name
            found = model.outliers(t)
            assert found is not None
            assert 0 < found.entries.size == model.n_outliers(t) == next(
                r.outliers for r in report.tensors if r.name == t.name
            )
    order = [t.name for t in gguf.GGUFReader(report.outputs[0]).tensors]
    assert all(order[order.index(name) + 1] == name + ".opq" for name in listed)
    assert model.value("bof4.opq.quantile") == np.float32(0.95)
    assert report.bits_per_weight == pytest.approx(
        8 * sum(t.nbytes + model.list_nbytes(t) for t in model.tensors) / sum(t.n_weights for t in model.tensors)
    )
    assert len(list(verify(report.outputs[0]))) == len(listed)


def test_without_lists_nothing_changes(tmp_path: Path) -> None:
    source = heavy_gguf(tmp_path / "in.gguf")
    plain = convert(source, tmp_path / "plain.gguf", opq=("off",)).outputs[0]
    assert open_model(plain).lists == {}
    assert open_model(plain).value("bof4.opq.quantile") is None
    # every list turns out to be empty: the same file but for the metadata
    sign = {name: np.copysign(np.float32(0.05), x) for name, x in HEAVY.items()}
    signs = write_gguf(tmp_path / "signs.gguf", replace=sign)
    report = convert(signs, tmp_path / "none.gguf", opq=Q)
    assert report.listed == ()
    assert open_model(report.outputs[0]).lists == {}
    assert tensors(report.outputs[0]) == tensors(convert(signs, tmp_path / "off.gguf", opq=("off",)).outputs[0])


def test_a_tensor_without_outliers_has_no_list_beside_others_that_have(tmp_path: Path) -> None:
    source = heavy_gguf(tmp_path / "in.gguf", attn_k=SIGNS)
    report = convert(source, tmp_path / "out.gguf", opq=Q, encoder="absmax")
    model = open_model(report.outputs[0])
    assert "blk.0.attn_k.weight" not in model.lists
    assert len(model.lists) >= 7
    after, before = read(report.outputs[0]), read(source)
    for name in ("blk.0.attn_k.weight", *model.lists):
        assert np.array_equal(after[name], expected(before[name], 0.95)), name
    # no byte of the longer header is left over
    size = sum(gguf.GGUFWriter.ggml_pad(t.nbytes, 32) for t in (*model.tensors, *model.lists.values()))
    assert report.outputs[0].stat().st_size == model.readers[0].data_offset + size
    assert len(list(verify(report.outputs[0]))) == len(model.lists) + 1


def test_threads_do_not_change_a_byte(smol: Path, tmp_path: Path) -> None:
    one, two = (tmp_path / f"{n}.gguf" for n in (1, 2))
    convert(smol, one, opq=Q, threads=1, encoder="absmax")
    convert(smol, two, opq=Q, threads=3, encoder="absmax")
    assert one.read_bytes() == two.read_bytes()
    one.unlink()
    after = gguf.GGUFReader(two)
    before = gguf.GGUFReader(smol)
    for name in ("blk.0.attn_output.weight", "blk.17.ffn_down.weight"):
        assert np.array_equal(
            gguf_bof4.read_tensor(after, name), expected(gguf_bof4.read_tensor(before, name), 0.95)
        )
    two.unlink()


@pytest.mark.parametrize("encoder", ["absmax", "search"])
def test_a_folder_and_a_file_give_the_same(tmp_path: Path, encoder: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    sentencepiece_tokenizer(folder)
    llama_folder(folder, 400, torch.float32, hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    options = {"opq": ("0.9", "ffn_up=off", "attn_k=0.5"), "encoder": encoder}
    report = convert(folder, tmp_path / "direct.gguf", **options)
    floats = convert(folder, tmp_path / "f32.gguf", tensor_types=(".=f32",), output_tensor_type="f32")
    via = convert(floats.outputs[0], tmp_path / "via.gguf", **options)
    assert report.outputs[0].read_bytes() == via.outputs[0].read_bytes()
    assert report.listed and [t.outliers for t in report.tensors] == [t.outliers for t in via.tensors]
    model = open_model(report.outputs[0])
    assert model.value("bof4.encoder") == encoder
    assert not [name for name in model.lists if "ffn_up" in name]
    counts = {t.name: model.n_outliers(t) / t.n_weights for t in model.tensors}
    assert counts["blk.0.attn_k.weight"] > 3 * counts["blk.0.attn_q.weight"] > 0
    before = gguf.GGUFReader(floats.outputs[0])
    if encoder == "search":
        for name in model.lists:
            rows = gguf_bof4.read_tensor(before, name)
            found = select(rows, 0.5 if "attn_k" in name else 0.9)
            data = native.quantize(rows, T.BOF4_S, encoder=native.BlockEncoder.SEARCH, outliers=found)
            tensor = next(t for t in model.tensors if t.name == name)
            assert np.array_equal(tensor.read_rows(), data)


def test_parts_hold_their_lists_and_stay_below_the_limit(tmp_path: Path) -> None:
    source = heavy_gguf(tmp_path / "in.gguf", attn_k=SIGNS)
    whole = convert(source, tmp_path / "whole.gguf", opq=Q).outputs[0]
    report = convert(source, tmp_path / "cut.gguf", opq=Q, split_max_size="60K")
    assert len(report.outputs) > 2
    count = 0
    for path in report.outputs:
        reader = gguf.GGUFReader(path)
        names = [t.name for t in reader.tensors]
        count += len(names)
        assert all(name.removesuffix(".opq") in names for name in names)
        assert sum(int(t.n_bytes) for t in reader.tensors) <= 60_000 or sum(not n.endswith(".opq") for n in names) == 1
    fields = gguf.GGUFReader(report.outputs[0]).fields
    assert fields["split.tensors.count"].contents() == count
    one, parts = open_model(whole), open_model(report.outputs[0])
    assert tensors(whole) == tensors(report.outputs[0])
    assert one.lists.keys() == parts.lists.keys()
    for name, companion in one.lists.items():
        assert np.array_equal(companion.read_rows(), parts.lists[name].read_rows())
    merged = tmp_path / "merged.gguf"
    succeed("gguf-split", "--merge", report.outputs[0], merged)
    # llama.cpp's tool drops dimensions of 1
    for before, after in zip(one.tensors, open_model(merged).tensors, strict=True):
        assert (before.name, before.qtype) == (after.name, after.qtype)
        assert before.read_rows().tobytes() == after.read_rows().tobytes()
    assert open_model(merged).lists.keys() == one.lists.keys()


def test_lists_that_do_not_fit_into_a_part_are_an_error(tmp_path: Path) -> None:
    # of a block of equal weights, every one exceeds the deviation, which is 0
    source = heavy_gguf(tmp_path / "in.gguf", attn_k=np.full((64, 256), np.float32(0.05)))
    with pytest.raises(UserError, match=r"lists up to blk\.0\.attn_k\.weight\.opq .*--split-max-size.*--opq"):
        convert(source, tmp_path / "out.gguf", opq=Q, split_max_size="70K", token_embedding_type="q4_0")
    assert list(tmp_path.iterdir()) == [source]


def test_the_room_for_lists_is_enough_for_trained_weights(smol: Path) -> None:
    for t in open_model(smol).tensors:
        if t.name.startswith(("blk.0.", "blk.9.")) and len(t.shape) == 2:
            x = t.read_rows().view(np.float32)
            for quantile in (0.9, 0.99):
                assert native.select_outliers(x, quantile).packed().nbytes < list_room(t.shape, Quantile(quantile))


def test_a_second_conversion_copies_lists(tmp_path: Path) -> None:
    first = convert(heavy_gguf(tmp_path / "in.gguf"), tmp_path / "one.gguf", opq=Q, encoder="search").outputs[0]
    done = bof4("convert", str(first), str(tmp_path / "two.gguf"), "--opq", "off")
    assert first.read_bytes() == (tmp_path / "two.gguf").read_bytes()
    n_tensors = sum(t.qtype == T.BOF4_S for t in open_model(first).tensors)
    assert f"{n_tensors} tensors were BOF4_S already" in done.stdout


@pytest.mark.parametrize("name", ["f32", "f16", "q8_0"])
def test_another_type_gets_the_outliers_too(tmp_path: Path, name: str) -> None:
    listed = convert(heavy_gguf(tmp_path / "in.gguf"), tmp_path / "listed.gguf", opq=Q).outputs[0]
    others = f".={name}"
    out = convert(listed, tmp_path / "out.gguf", tensor_types=("attn_q=bof4_s", others)).outputs[0]
    before, model = read(listed), open_model(out)
    assert model.lists.keys() == {"blk.0.attn_q.weight"}
    for t in model.tensors:
        if t.name in open_model(listed).lists and t.name != "blk.0.attn_q.weight":
            assert t.qtype == T[name.upper()]
            exact = before[t.name].reshape(-1, t.shape[-1])
            assert np.array_equal(t.read_rows(), np.asarray(gguf.quantize(exact, t.qtype)).view(np.uint8)), t.name
    assert np.array_equal(read(out)["blk.0.attn_q.weight"], before["blk.0.attn_q.weight"])


def test_other_readers_of_weights_apply_lists(tmp_path: Path) -> None:
    listed = convert(heavy_gguf(tmp_path / "in.gguf"), tmp_path / "listed.gguf", opq=Q).outputs[0]
    decoded = read(listed)
    ordered = [t.name for t in open_model(listed).tensors if len(t.shape) > 1]
    for name, matrix in zip(ordered, matrices(listed), strict=True):
        assert np.array_equal(np.asarray(matrix).ravel(), decoded[name].ravel())
    with pytest.raises(UserError, match="no tensor nothing"):
        gguf_bof4.read_tensor(gguf.GGUFReader(listed), "nothing")


def test_the_command_line(tmp_path: Path) -> None:
    source, output = heavy_gguf(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    dry = bof4("convert", str(source), str(output), "--opq", "0.95", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "outliers:      not counted" in dry.stdout
    options = ("--opq", "attn_[qk]=off", "--opq", "0.95", "--opq", "ATTN=0.5", "--encoder", "search", "-v")
    done = bof4("convert", str(source), str(output), *options)
    assert done.returncode == 0, done.stderr
    model = open_model(output)
    assert not model.lists.keys() & {"blk.0.attn_q.weight", "blk.0.attn_k.weight"}
    n_outliers = {t.name: model.n_outliers(t) for t in model.tensors}
    assert f"{sum(n_outliers.values()):,} in {len(model.lists)} lists" in done.stdout
    assert n_outliers["blk.0.attn_v.weight"] == select(HEAVY["blk.0.attn_v.weight"], 0.5).entries.size
    assert n_outliers["blk.0.ffn_up.weight"] == select(HEAVY["blk.0.ffn_up.weight"], 0.95).entries.size
    assert f"{n_outliers['blk.0.ffn_up.weight']} outliers" in done.stdout
    assert model.value("bof4.encoder") == "search"


def test_rules() -> None:
    rules = parse_rules(("ffn=off", "ffn_up=0.5", "0.9"), "off")
    assert rules == ListRules(Quantile(0.9), (("ffn", None), ("ffn_up", Quantile(0.5))))
    assert rules.of("blk.0.ffn_up.weight") is None
    assert rules.of("blk.0.attn_q.weight") == Quantile(0.9)
    assert parse_rules((), "0.95") == ListRules(Quantile(0.95))
    assert parse_rules(("off",), "0.95") == ListRules(None)
    assert parse_rules(("ffn=off", "attn=0.9"), "0.95", 0.05) == ListRules(
        Budget(0.05), (("ffn", None), ("attn", Quantile(0.9)))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opq": ("0",)}, "--opq 0: give a quantile between 0 and 1"),
        ({"opq": ("1.0",)}, "between 0 and 1"),
        ({"opq": ("nan",)}, "between 0 and 1"),
        ({"opq": ("often",)}, "--opq often: give a quantile"),
        ({"opq": ("attn=2",)}, "--opq attn=2: give a quantile"),
        ({"opq": ("=0.9",)}, "give PATTERN=Q"),
        ({"opq": ("attn[=0.9",)}, "no regular expression"),
        ({"opq": ("0.9", "0.95")}, "--opq 0.9 and --opq 0.95"),
        ({"opq": ("0.9",), "opq_bits": 0.05}, "--opq 0.9 and --opq-bits 0.05 are two rules"),
        ({"opq": ("off",), "opq_bits": 0.05}, "--opq off and --opq-bits 0.05 are two rules"),
        ({"opq_bits": 0.0}, "--opq-bits 0: give bits per weight above 0"),
        ({"opq_bits": 1.5}, "--opq-bits 1.5: give bits per weight above 0 and up to 1"),
        ({"opq_bits": float("nan")}, "--opq-bits nan: give bits"),
        ({"encoder": "best"}, "no encoder 'best'.*absmax or search"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    source = write_gguf(tmp_path / "in.gguf")
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "out.gguf", **options)
    assert list(tmp_path.iterdir()) == [source]


def test_rows_too_long_for_a_list_are_reported(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).standard_t(3, (2, 65536 + 64)).astype(np.float32)
    shapes = SHAPES | {"blk.0.ffn_down.weight": wide.shape}
    source = write_gguf(tmp_path / "in.gguf", shapes=shapes, replace={"blk.0.ffn_down.weight": wide})
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"), "--opq", "0.95")
    assert done.returncode == 0, done.stderr
    assert "blk.0.ffn_down.weight: rows of 65600 are longer than 65536" in done.stdout
    assert "blk.0.ffn_down.weight" not in open_model(tmp_path / "out.gguf").lists


def test_a_weight_beyond_bfloat16_is_named(tmp_path: Path) -> None:
    x = HEAVY["blk.0.attn_k.weight"].copy()
    x[5, 7] = 3.4e38
    source = heavy_gguf(tmp_path / "in.gguf", attn_k=x)
    with pytest.raises(UserError, match=r"blk\.0\.attn_k\.weight has a weight at \[5, 7\] that is too large"):
        convert(source, tmp_path / "out.gguf", opq=Q)


def test_the_patched_llama_cpp_loads_a_list_and_refuses_to_lose_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    llama_folder(folder, smollm2_tokenizer(folder), torch.float32)
    report = convert(folder, tmp_path / "out.gguf", opq=Q)
    assert report.listed
    said = succeed("completion", "-m", report.outputs[0], "-p", "The", "-n", "4", "-no-cnv", *THREADS)
    assert said
    refused = llama("quantize", "--allow-requantize", report.outputs[0], tmp_path / "re.gguf", "Q8_0", "1")
    assert refused.returncode == 1
    message = re.search("tensor '(.*)' has an outlier list, which this program would lose", refused.stderr)
    assert message is not None, refused.stderr
    assert message[1] in {t.name for t in report.listed}


def descending(packed: np.ndarray, rows: int, columns: int) -> None:
    packed[1] = packed[rows] + 5


def overrun(packed: np.ndarray, rows: int, columns: int) -> None:
    packed[rows] += 1


def beyond_the_row(packed: np.ndarray, rows: int, columns: int) -> None:
    packed[rows + 1] = packed[rows + 1] & ~0xFFFF | columns


def out_of_order(packed: np.ndarray, rows: int, columns: int) -> None:
    row = int(np.flatnonzero(np.diff(packed[: rows + 1]) > 1)[0])
    at = rows + 1 + packed[row]
    packed[[at, at + 1]] = packed[[at + 1, at]]


def not_a_number(packed: np.ndarray, rows: int, columns: int) -> None:
    packed[rows + 1] = packed[rows + 1] & 0xFFFF | 0x7FC0 << 16


NUMBERS: dict[Callable[[np.ndarray, int, int], None], str] = {
    descending: "row pointers descend",
    overrun: "length is not",
    beyond_the_row: "beyond the row",
    out_of_order: "ascending order",
    not_a_number: "NaN or infinite",
}


def listed_gguf(path: Path, companion: str, packed: np.ndarray, qtype: T = T.BOF4_S) -> Path:
    """A model of two weights and one list."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("bof4.version", 1)
    writer.add_key_value(
        "bof4.levels.bof4_s", list(gguf_bof4.BOF4_S_FORMAT.levels), gguf.GGUFValueType.ARRAY,
        sub_type=gguf.GGUFValueType.INT8,
    )  # fmt: skip
    name = "blk.0.attn_q.weight"
    rest = without(HEAVY[name], select(HEAVY[name], 0.9))
    writer.add_tensor(name, np.asarray(gguf.quantize(rest, qtype)), raw_dtype=qtype)
    writer.add_tensor("blk.0.attn_k.weight", np.asarray(gguf.quantize(SIGNS, T.BOF4_S)), raw_dtype=T.BOF4_S)
    writer.add_tensor(companion, packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sound() -> np.ndarray:
    return select(HEAVY["blk.0.attn_q.weight"], 0.9).packed()


def refuse_everywhere(path: Path, message: str) -> None:
    """Opening, reading a tensor, and every command refuse the file, naming it and the tensor."""
    with pytest.raises(UserError, match=rf"{path.name}: outlier list .*\.opq is not valid: .*{message}"):
        open_model(path)
    for command in (["verify"], ["inspect"], ["convert", "--type", "bof4_s"]):
        target = [str(path.with_name("never.gguf"))] if command[0] == "convert" else []
        refused = bof4(command[0], str(path), *target, *command[1:])
        assert refused.returncode == 1, refused.stdout
        assert ".opq is not valid" in refused.stderr and "Traceback" not in refused.stderr
    assert not path.with_name("never.gguf").exists()


def test_the_sound_file_is_accepted(tmp_path: Path) -> None:
    path = listed_gguf(tmp_path / "x.gguf", "blk.0.attn_q.weight.opq", sound())
    assert [c.n_outliers for c in verify(path)] == [sound().size - 257, 0]


@pytest.mark.parametrize("damage", NUMBERS, ids=lambda d: d.__name__)
def test_wrong_numbers_are_refused(tmp_path: Path, damage: Callable[[np.ndarray, int, int], None]) -> None:
    packed = sound()
    damage(packed, 256, 256)
    path = listed_gguf(tmp_path / "x.gguf", "blk.0.attn_q.weight.opq", packed)
    refuse_everywhere(path, NUMBERS[damage])
    with pytest.raises(UserError, match=NUMBERS[damage]):
        gguf_bof4.read_tensor(gguf.GGUFReader(path), "blk.0.attn_q.weight")


@pytest.mark.parametrize(
    ("companion", "packed", "qtype", "message"),
    [
        ("blk.0.attn_q.weight.opq", sound()[:-1], T.BOF4_S, "length is not"),
        ("blk.0.attn_q.weight.opq", sound()[:100], T.BOF4_S, "shorter than its row pointers"),
        ("blk.0.attn_q.weight.opq", sound().astype(np.float32), T.BOF4_S, "type I32"),
        ("blk.0.attn_q.weight.opq", sound()[:512].reshape(2, 256), T.BOF4_S, "one-dimensional"),
        ("blk.0.attn_v.weight.opq", sound(), T.BOF4_S, r"no tensor blk\.0\.attn_v\.weight"),
        ("blk.0.attn_q.weight.opq", sound(), T.Q8_0, "type Q8_0, which has no lists"),
    ],
    ids=["long", "short", "floats", "matrix", "weightless", "other type"],
)
def test_what_is_no_list_of_its_weight_is_refused(
    tmp_path: Path, companion: str, packed: np.ndarray, qtype: T, message: str
) -> None:
    path = listed_gguf(tmp_path / "x.gguf", companion, packed, qtype)
    refuse_everywhere(path, message)
    if "attn_q" in companion:
        with pytest.raises(UserError, match=message):
            gguf_bof4.read_tensor(gguf.GGUFReader(path), "blk.0.attn_q.weight")


def test_verify_refuses_the_list_of_other_weights(tmp_path: Path) -> None:
    other = np.random.default_rng(99).standard_t(4, (256, 256)).astype(np.float32)
    path = listed_gguf(tmp_path / "x.gguf", "blk.0.attn_q.weight.opq", select(other, 0.9).packed())
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight: the weight at row \d+, column \d+ is in .*not 0"):
        list(verify(path))


def test_inspect_shows_lists(tmp_path: Path) -> None:
    report = convert(heavy_gguf(tmp_path / "in.gguf"), tmp_path / "out.gguf", opq=Q)
    text = bof4("inspect", str(report.outputs[0])).stdout
    model = open_model(report.outputs[0])
    for t in model.tensors:
        line = next(line for line in text.splitlines() if line.split()[:1] == [t.name])
        if t.name in model.lists:
            n = model.n_outliers(t)
            assert f"{n:,}" in line and f"{100 * n / t.n_weights:.3f} %" in line
            assert f"{8 * model.lists[t.name].nbytes / t.n_weights:.4f}" in line
    assert ".opq" not in text.replace("bof4.opq.quantile", "")
    assert f"{sum(t.outliers or 0 for t in report.tensors):,} outliers" in text
    assert f"{report.bits_per_weight:.3f} bits per weight" in text


def test_reading_does_not_wait_for_scipy() -> None:
    code = "import sys, gguf_bof4; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
