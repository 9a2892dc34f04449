"""GGUF files to GGUF files: the same as llama-quantize, from every type, in parts, and what the file says."""

import shutil
import struct
import subprocess
from pathlib import Path

import gguf
import gguf_bytes
import numpy as np
import pytest
from convert_models import SHAPES, tensors, types, weights, write_gguf
from gguf import GGMLQuantizationType as T
from program import bof4

from gguf_bof4 import native
from gguf_bof4.convert import convert
from gguf_bof4.formats import BOF4_K, BOF4_S, FORMAT_VERSION, Format
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.packaged_models import fetch_smollm2
from gguf_bof4.verify import verify

# llama-quantize gives attn_k and attn_v of models with 8 experts Q8_0 whatever the type: none of these has 8
CASES: dict[str, tuple[T, tuple[str, ...], list[str]]] = {
    "f32": (T.F32, (), []),
    "f16": (T.F16, (), []),
    "bf16": (T.BF16, (), []),
    "tied": (T.F16, ("output.weight",), []),
    "tied-output-type": (T.F16, ("output.weight",), ["--output-tensor-type", "q8_0"]),
    "types": (T.F32, (), ["--token-embedding-type", "q4_k", "--output-tensor-type", "f16"]),
    "patterns": (T.F32, (), ["--tensor-type", "ATTN_[qk]=q5_K", "--tensor-type", "attn=Q4_0"]),
    "pure": (T.F32, (), ["--pure"]),
    "leave-output": (T.F32, (), ["--leave-output-tensor"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "fmt"), [*((case, BOF4_S) for case in CASES), ("f32", BOF4_K), ("tied", BOF4_K), ("pure", BOF4_K)],
    ids=lambda x: x if isinstance(x, str) else x.name,
)  # fmt: skip
def test_same_as_llama_quantize(tmp_path: Path, case: str, fmt: Format) -> None:
    qtype, without, options = CASES[case]
    source = write_gguf(tmp_path / "in.gguf", qtype, without=without)
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    program = installed_bin() / "llama-quantize"
    done = subprocess.run([program, *options, source, theirs, fmt.name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    values = dict(zip(options[::2], options[1::2], strict=False))
    convert(
        source,
        ours,
        type=fmt.name,
        opq=("off",),  # llama-quantize writes no lists
        pure="--pure" in options,
        leave_output_tensor="--leave-output-tensor" in options,
        token_embedding_type=values.get("--token-embedding-type"),
        output_tensor_type=values.get("--output-tensor-type"),
        tensor_types=tuple(v for k, v in zip(options[::2], options[1::2], strict=False) if k == "--tensor-type"),
    )
    expected = tensors(theirs)
    # llama-quantize drops dimensions of 1
    expected["blk.1.ffn_up.weight"] = (expected["blk.1.ffn_up.weight"][0], (1, 256), expected["blk.1.ffn_up.weight"][2])
    assert tensors(ours) == expected
    assert len(expected) == len(SHAPES) - len(without)
    assert open_model(ours).value("general.file_type") == open_model(theirs).value("general.file_type") == fmt.file_type


@pytest.mark.parametrize("name", [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS",
    "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
])  # fmt: skip
def test_from_block_types(tmp_path: Path, name: str) -> None:
    source = write_gguf(tmp_path / "in.gguf", T[name])
    report = convert(source, tmp_path / "out.gguf", opq=("off",))
    before, after = open_model(source).tensors, tensors(tmp_path / "out.gguf")
    assert report.decoded_types == {name: sum(t.qtype.name == name != after[t.name][0] for t in before)}
    for t in before:
        kind, shape, data = after[t.name]
        assert shape == t.shape
        if kind == "BOF4_S":
            exact = gguf.dequantize(t.read_rows(), t.qtype).reshape(t.shape)
            assert data == native.quantize(exact, T.BOF4_S, encoder=native.BlockEncoder.SEARCH).tobytes(), t.name
    assert [kind for kind, _, _ in after.values()].count("BOF4_S") >= 8


def test_a_second_conversion_changes_nothing(tmp_path: Path) -> None:
    first = convert(write_gguf(tmp_path / "in.gguf"), tmp_path / "one.gguf").outputs[0]
    report = convert(first, tmp_path / "two.gguf")
    assert report.decoded_types == {}
    assert first.read_bytes() == report.outputs[0].read_bytes()


def test_threads_do_not_change_a_byte(tmp_path: Path) -> None:
    source = fetch_smollm2()
    outputs = [convert(source, tmp_path / f"{n}.gguf", threads=n).outputs[0] for n in (1, 3)]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_parts_in_and_out(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", T.F16)
    parts = write_gguf(tmp_path / "parts.gguf", T.F16, split_max_size=150_000)
    assert parts.name.startswith("parts-00001-of-000")
    plain = convert(whole, tmp_path / "plain.gguf", opq=("off",)).outputs
    joined = convert(parts, tmp_path / "joined.gguf", opq=("off",)).outputs
    assert len(plain) == len(joined) == 1
    assert plain[0].read_bytes() == joined[0].read_bytes()

    report = convert(parts, tmp_path / "cut.gguf", split_max_size="50K", opq=("off",))
    names = [p.name for p in report.outputs]
    assert len(names) > 2
    assert names == [f"cut-{i + 1:05d}-of-{len(names):05d}.gguf" for i in range(len(names))]
    for path in report.outputs:
        reader = gguf.GGUFReader(path)
        sizes = [int(t.n_bytes) for t in reader.tensors]
        assert sum(sizes) <= 50_000 or len(sizes) == 1
        assert reader.fields["split.count"].contents() == len(names)
    assert tensors(report.outputs[0]) == tensors(plain[0])
    # llama.cpp's own tool takes the parts for one model
    merged = tmp_path / "merged.gguf"
    subprocess.run(
        [installed_bin() / "llama-gguf-split", "--merge", report.outputs[0], merged], capture_output=True, check=True
    )
    assert types(merged) == types(plain[0])


def test_unusual_metadata_is_kept_byte_for_byte(tmp_path: Path) -> None:
    """Tokens, names and keys that are no UTF-8, keys that begin like the gguf package's own names, deep arrays."""
    weights_of = gguf_bytes.T(b"blk.0.attn_q.weight", (64, 2), nbytes=512)
    source = gguf_bytes.write(tmp_path / "in.gguf", gguf_bytes.UNUSUAL, [weights_of])
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"))
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out.gguf").read_bytes()
    for key, value in gguf_bytes.UNUSUAL.items():
        if key != b"split.count":
            assert written.count(gguf_bytes.string(key) + value) == 1
    before, after = (open_model(path).metadata() for path in (source, tmp_path / "out.gguf"))
    del before["split.count"]
    assert [repr(after[key]) for key in before] == [repr(value) for value in before.values()]
    done = bof4("verify", str(tmp_path / "out.gguf"))
    assert done.returncode == 0, done.stderr


def test_metadata(tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_name("a name")
    writer.add_custom_alignment(128)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ü", "漢"])
    writer.add_key_value("test.bytes", [b"\xff\xfe", b""], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    writer.add_key_value("test.numbers", [-1, 5], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT16)
    writer.add_float64("test.double", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_uint32("bof4.version", 0)
    writer.add_string("test.last", "kept to the last byte")
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight"):
        writer.add_tensor(name, weights((3, 64), 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # an empty array and an array of arrays, which gguf cannot write: two more values in front of the first
    raw = source.read_bytes()
    count = struct.unpack_from("<Q", raw, 16)[0]
    key = b"test.empty"
    empty = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 8, 0)
    key = b"test.nested"
    nested = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 9, 2)
    nested += struct.pack("<IQii", 5, 2, 1, -2) + struct.pack("<IQi", 5, 1, 7)
    added = empty + nested
    data_at = int(gguf.GGUFReader(source).data_offset)
    head_end = int(max(t.field.offset + sum(p.nbytes for p in t.field.parts) for t in gguf.GGUFReader(source).tensors))
    head = raw[:16] + struct.pack("<Q", count + 2) + added + raw[24:head_end]
    source.write_bytes(head + bytes(-len(head) % 128) + raw[data_at:])

    output = convert(source, tmp_path / "out.gguf", model_name="another").outputs[0]
    before, after = open_model(source), open_model(output)
    fields = {key: field.contents() for key, field in after.fields.items() if key != "test.bytes"}
    assert fields["general.name"] == "another"
    assert fields["general.file_type"] == BOF4_S.file_type
    assert fields["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert fields["bof4.version"] == FORMAT_VERSION
    assert fields["bof4.encoder"] == "search"
    assert tuple(fields[BOF4_S.levels_key]) == BOF4_S.levels
    assert after.fields[BOF4_S.levels_key].types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT8]
    assert after.fields["test.double"].types == [gguf.GGUFValueType.FLOAT64]
    for key in ("tokenizer.ggml.tokens", "test.numbers", "test.double", "test.bool", "test.last", "general.alignment"):
        assert fields[key] == before.value(key)
    assert empty in output.read_bytes()
    assert nested in output.read_bytes()
    assert b"\xff\xfe" in output.read_bytes()
    assert all(t.offset % 128 == 0 for t in after.tensors)
    assert len(list(verify(output))) == 2


def test_levels_only_where_the_type_is_used(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "in.gguf")
    output = convert(source, tmp_path / "out.gguf", tensor_types=(".=q8_0",), leave_output_tensor=True).outputs[0]
    assert "BOF4_S" not in types(output).values()
    assert not [key for key in open_model(output).fields if key.startswith("bof4.")]


def test_bof4_k_with_lists_in_parts(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "in.gguf")
    report = convert(source, tmp_path / "{ftype}.gguf", type="bof4_k", split_max_size="50K", opq=("0.9",))
    assert len(report.outputs) > 2
    model = open_model(report.outputs[0])
    assert model.path.name.startswith("bof4_k-00001-of-")
    found = {t.name: t.qtype.name for t in model.tensors}
    assert found["blk.0.attn_q.weight"] == "BOF4_K"
    assert found["blk.0.ffn_down.weight"] == "BOF4_S"
    assert found["blk.0.ffn_down_exps.weight"] == "Q8_0"
    assert {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"} <= model.lists.keys()
    assert {t.name: t.fallback for t in report.fallbacks}["blk.0.ffn_down.weight"] == (
        "rows of 320 are no multiple of BOF4_K's 256: BOF4_S"
    )
    for fmt in (BOF4_S, BOF4_K):
        assert tuple(model.value(fmt.levels_key)) == fmt.levels
    assert sum(c.n_outliers for c in verify(report.outputs[0])) == sum(t.outliers or 0 for t in report.tensors) > 0
    shown = bof4("inspect", str(report.outputs[0])).stdout
    assert "BOF4_K" in shown
    assert bof4("verify", str(report.outputs[0])).returncode == 0
    dry = convert(source, tmp_path / "dry.gguf", type="BOF4_K", dry_run=True)
    assert {t.name: t.qtype for t in dry.tensors} == found
    # a second conversion copies what has the type
    again = convert(report.outputs[0], tmp_path / "again.gguf", type="BOF4_K", opq=("0.9",))
    assert again.copied == {name: list(found.values()).count(name) for name in ("BOF4_K", "BOF4_S")}


def test_the_summary(tmp_path: Path) -> None:
    source, output = write_gguf(tmp_path / "in.gguf", T.Q8_0), tmp_path / "model-{ftype}.gguf"
    done = bof4("convert", str(source), str(output), "--type", "bof4_s", "-t", "1")
    assert done.returncode == 0, done.stderr
    written = tmp_path / "model-bof4_s.gguf"
    report = convert(source, tmp_path / "again.gguf")
    assert written.stat().st_size == report.bytes_after
    assert f"{report.bits_per_weight:.2f} bits per weight" in done.stdout
    listed = {line.split(":")[0].strip() for line in done.stdout.splitlines() if line.startswith("    blk.")}
    # 320 = 5 x 64 fits; 96 falls back to Q8_0, 100 to F16
    assert listed == {"blk.0.ffn_down_exps.weight", "blk.1.ffn_down.weight"} == {t.name for t in report.fallbacks}
    assert "tensors were Q8_0 already" in done.stdout
    assert str(written) in done.stdout
    model = open_model(written)
    nbytes = sum(t.nbytes + model.list_nbytes(t) for t in model.tensors)
    expected = 8 * nbytes / sum(np.prod(s) for s in SHAPES.values())
    assert report.bits_per_weight == pytest.approx(expected)
    assert report.bytes_before == source.stat().st_size
    assert report.seconds > 0


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "in.gguf", T.F16)
    done = bof4("convert", str(source), str(tmp_path / "out.gguf"), "--dry-run", "--split-max-size", "50K")
    assert done.returncode == 0, done.stderr
    assert "out-00001-of-" in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if "->" in line}
    assert rows.keys() == SHAPES.keys()
    assert "-> BOF4_S" in rows["blk.0.attn_q.weight"]
    assert list(tmp_path.iterdir()) == [source]


def test_force_replaces_and_reports_progress(tmp_path: Path) -> None:
    source, output = write_gguf(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    shutil.copy(source, output)
    seen: list[tuple[str, int, int]] = []
    convert(source, output, force=True, progress=lambda what, done, total: seen.append((what, done, total)))
    assert "BOF4_S" in types(output).values()
    total = sum(int(np.prod(s)) for s in SHAPES.values())
    assert seen[-1] == ("output.weight", total, total)
    assert {what for what, _, _ in seen} == SHAPES.keys()
    assert sorted(tmp_path.iterdir()) == [source, output]


def test_python_package_without_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        convert(tmp_path / "in.gguf", tmp_path / "out.gguf", tokenembedding_type="q8_0")
