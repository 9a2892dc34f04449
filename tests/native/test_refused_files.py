"""What the programs refuse: lists where they are not applied, formats of a later version, caches that do not fit.

A program that ignored a list would compute with wrong weights and say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from c_programs import PROGRAMS, compile_program, run_program
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V
from gguf_writing import finish
from instruction_sets import native_compiler
from listed import contents, tensors_of
from llama import THREADS, llama, succeed
from program import bof4
from tiny_models import WIDTH, matrix, write_gemma3n, write_llama

from gguf_bof4.convert import convert
from gguf_bof4.formats import BOF4_K, BOF4_S, FORMATS, Format
from gguf_bof4.ggml_patch.build import source_tree
from gguf_bof4.gguf_files.model import open_model
from gguf_bof4.lists import SUFFIX, list_name

QUERY = "blk.0.attn_q.weight"
PER_LAYER = "per_layer_token_embd.weight"

WOULD_BE_IGNORED = "the outlier list '{}' would be ignored: only the model loader applies lists. Apply them with"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refused")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """A model in F32."""
    return write_llama(folder / "plain.gguf")


@pytest.fixture(scope="module")
def listed(folder: Path) -> Path:
    """The same model, every matrix in BOF4_S with a list."""
    return write_llama(folder / "listed.gguf", lambda name: True)


@pytest.fixture(scope="module")
def use_llama(built: Path, folder: Path) -> Path:
    """sources/use_llama.cpp."""
    includes = [part for below in ("include", "ggml/include") for part in ("-isystem", str(source_tree() / below))]
    compile_program(
        native_compiler("g++"), "-std=c++17", *includes, PROGRAMS / "use_llama.cpp", f"-L{built}", "-lllama", "-lggml",
        "-lggml-base", f"-Wl,-rpath,{built}", "-o", folder / "use_llama",
    )  # fmt: skip
    return folder / "use_llama"


def write_projector(path: Path, is_listed: bool) -> Path:
    """A file that names itself a multimodal projector, as version 0.1 of `bof4 convert` wrote them with lists."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_tensor("v.blk.0.ffn_up.weight", matrix((WIDTH, WIDTH), 1))
    if is_listed:
        writer.add_tensor(list_name("v.blk.0.ffn_up.weight"), np.zeros(WIDTH + 1, dtype=np.int32))
    finish(writer)
    return path


def write_adapter(path: Path, is_listed: bool) -> Path:
    """A LoRA adapter of rank 4 for one matrix."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4)
    writer.add_tensor(f"{QUERY}.lora_a", matrix((4, WIDTH), 2))
    writer.add_tensor(f"{QUERY}.lora_b", matrix((WIDTH, 4), 3))
    if is_listed:
        writer.add_tensor(f"{QUERY}.lora_b.opq", np.zeros(WIDTH + 1, dtype=np.int32))
    finish(writer)
    return path


def write_control_vector(path: Path, is_listed: bool) -> Path:
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_tensor("direction.1", np.ones(WIDTH, dtype=np.float32))
    if is_listed:
        writer.add_tensor("direction.1.opq", np.zeros(2, dtype=np.int32))
    finish(writer)
    return path


@pytest.mark.parametrize(
    ("program", "option", "write", "name"),
    [
        ("cli", "--mmproj", write_projector, "v.blk.0.ffn_up.weight.opq"),
        ("completion", "--lora", write_adapter, f"{QUERY}.lora_b.opq"),
        ("completion", "--control-vector", write_control_vector, "direction.1.opq"),
        ("export-lora", "--lora", write_adapter, f"{QUERY}.lora_b.opq"),
    ],
    ids=["projector", "adapter", "control vector", "merged adapter"],
)
def test_loaders_that_apply_no_lists_refuse_them(
    built: Path, plain: Path, tmp_path: Path, program: str, option: str, write: Callable[[Path, bool], Path], name: str
) -> None:
    options = ("-o", tmp_path / "out.gguf") if program == "export-lora" else ("-p", "Hi", "-n", "1", *THREADS)
    without = llama(program, "-m", plain, option, write(tmp_path / "without.gguf", False), *options)
    assert "outlier list" not in without.stdout + without.stderr
    # a projector that libmtmd loads has too many tensors for a test: it is refused for what it lacks
    assert without.returncode == (1 if write is write_projector else 0), without.stderr[-1000:]
    refused = llama(program, "-m", plain, option, write(tmp_path / "with.gguf", True), *options)
    printed = refused.stdout + refused.stderr
    assert f"{tmp_path / 'with.gguf'} cannot be read here: {WOULD_BE_IGNORED.format(name)}" in printed
    # upstream's llama-completion ends with 0 after any control vector that does not load
    assert refused.returncode == (0 if write is write_control_vector else 1)


def test_export_lora_refuses_a_listed_base_before_it_writes(
    built: Path, plain: Path, listed: Path, tmp_path: Path
) -> None:
    adapter, out = write_adapter(tmp_path / "adapter.gguf", False), tmp_path / "out.gguf"
    refused = llama("export-lora", "-m", listed, "--lora", adapter, "-o", out)
    assert refused.returncode == 1
    ignored = WOULD_BE_IGNORED.format("token_embd.weight.opq")
    assert f"{listed} cannot be read here: {ignored}" in refused.stderr
    assert not out.exists()
    # with outliers applied it is merged
    convert(listed, tmp_path / "f16.gguf", tensor_types=(".=f16",))
    for base in (plain, tmp_path / "f16.gguf"):
        succeed("export-lora", "-m", base, "--lora", adapter, "-o", out)
        succeed("bench", "-m", out, "-p", "1", "-n", "0", "-r", "1", *THREADS)


def write_with_metadata(source: Path, target: Path, key: str, value: Any, kind: V, element: V | None = None) -> Path:
    """A copy with one metadata value more."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, contents(reader, "general.architecture"))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", key):
            is_array = field.types[0] == V.ARRAY
            sub_type = field.types[-1] if is_array else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_key_value(key, value, kind, sub_type=element)
    for name, (data, qtype) in tensors_of(source).items():
        writer.add_tensor(name, data, raw_dtype=qtype if data.dtype == np.uint8 else None)
    finish(writer)
    return target


OTHER_LEVELS = [*BOF4_S.levels[:-2], 98, 127]

BAD_METADATA: dict[str, tuple[str, Any, V, V | None, str]] = {
    "later version": (
        "bof4.version", 2, V.UINT32, None,
        "bof4.version is 2, this build reads the BOF4 formats up to 1: update gguf-bof4 and build it again",
    ),
    "version of another type": ("bof4.version", "1", V.STRING, None, "bof4.version is not a number of type u32"),
    "other levels": (
        BOF4_S.levels_key, OTHER_LEVELS, V.ARRAY, V.INT8, f"{BOF4_S.levels_key} has other levels than this build"
    ),
    "levels of another type": (
        BOF4_K.levels_key, list(BOF4_K.levels), V.ARRAY, V.INT32, f"{BOF4_K.levels_key} has other levels"
    ),
    "fifteen levels": (BOF4_K.levels_key, list(BOF4_K.levels[:15]), V.ARRAY, V.INT8, f"{BOF4_K.levels_key} has other"),
    "one level": (BOF4_S.levels_key, 7, V.INT8, None, f"{BOF4_S.levels_key} has other levels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_models_of_other_formats_are_not_loaded(built: Path, listed: Path, tmp_path: Path, kind: str) -> None:
    key, value, value_type, element, why = BAD_METADATA[kind]
    path = write_with_metadata(listed, tmp_path / "other.gguf", key, value, value_type, element)
    refused = llama("bench", "-m", path, "-p", "1", "-n", "0", "-r", "1", *THREADS)
    assert refused.returncode == 1
    assert f"this model cannot be loaded: {why}" in refused.stderr
    assert f"failed to load model '{path}'" in refused.stderr


def test_right_metadata_is_accepted_and_other_loaders_check_it_too(
    built: Path, plain: Path, listed: Path, tmp_path: Path
) -> None:
    path = listed
    for i, (key, value, kind, element) in enumerate(
        [("bof4.version", 1, V.UINT32, None)]
        + [(f.levels_key, list(f.levels), V.ARRAY, V.INT8) for f in FORMATS]
    ):
        path = write_with_metadata(path, tmp_path / f"{i}.gguf", key, value, kind, element)
    succeed("bench", "-m", path, "-p", "1", "-n", "0", "-r", "1", *THREADS)

    adapter = write_adapter(tmp_path / "adapter.gguf", False)
    later = write_with_metadata(adapter, tmp_path / "later.gguf", "bof4.version", 2, V.UINT32)
    refused = llama("export-lora", "-m", plain, "--lora", later, "-o", tmp_path / "out.gguf")
    assert refused.returncode == 1
    assert f"{later} cannot be read here: bof4.version is 2" in refused.stderr


def test_programs_that_copy_bytes_keep_lists_of_any_version(built: Path, listed: Path, tmp_path: Path) -> None:
    later = write_with_metadata(listed, tmp_path / "later.gguf", "bof4.version", 2, V.UINT32)
    succeed("gguf-split", "--split", "--split-max-tensors", "20", later, tmp_path / "part")
    merged = tmp_path / "merged.gguf"
    succeed("gguf-split", "--merge", next(tmp_path.glob("part-00001-of-*.gguf")), merged)
    before, after = tensors_of(later), tensors_of(merged)
    assert before.keys() == after.keys()
    assert all(data.tobytes() == after[name][0].tobytes() for name, (data, _) in before.items())


@pytest.mark.parametrize(
    ("name", "formats"), [("BOF4_S", [BOF4_S]), ("BOF4_K", [BOF4_S]), ("Q8_0", [])], ids=["s", "k", "q8_0"]
)
def test_quantize_writes_the_metadata(
    built: Path, plain: Path, tmp_path: Path, name: str, formats: list[Format]
) -> None:
    """Of the types that tensors got: rows of 64 fall back from BOF4_K to BOF4_S."""
    out = tmp_path / "out.gguf"
    succeed("quantize", plain, out, name)
    fields = gguf.GGUFReader(out).fields
    expected = {f.levels_key for f in formats} | ({"bof4.version"} if formats else set())
    assert {key for key in fields if key.startswith("bof4.")} == expected
    for fmt in formats:
        assert fields["bof4.version"].types == [V.UINT32]
        assert fields["bof4.version"].contents() == 1
        assert fields[fmt.levels_key].types == [V.ARRAY, V.INT8]
        assert tuple(fields[fmt.levels_key].contents()) == fmt.levels
    if formats:
        verified = bof4("verify", str(out))
        assert verified.returncode == 0, verified.stderr


def test_quantize_writes_nothing_where_it_would_lose_a_list(built: Path, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    refused = llama("quantize", "--allow-requantize", listed, out, "Q8_0")
    assert refused.returncode == 1
    assert "has an outlier list, which this program would lose" in refused.stdout + refused.stderr
    assert not out.exists()


def test_quantize_keeps_the_metadata_in_the_first_part(built: Path, plain: Path, tmp_path: Path) -> None:
    succeed("gguf-split", "--split", "--split-max-tensors", "8", plain, tmp_path / "in")
    first = next(tmp_path.glob("in-00001-of-*.gguf"))
    succeed("quantize", "--keep-split", first, tmp_path / "out", "BOF4_S")
    parts = sorted(tmp_path.glob("out-*.gguf"))
    assert len(parts) == 3
    keys = [{key for key in gguf.GGUFReader(part).fields if key.startswith("bof4.")} for part in parts]
    assert keys == [{"bof4.version", BOF4_S.levels_key}, set(), set()]
    assert bof4("verify", str(parts[0])).returncode == 0


@pytest.mark.parametrize("flash_attention", ["0", "1"])
def test_a_key_cache_whose_blocks_do_not_divide_a_head(built: Path, plain: Path, flash_attention: str) -> None:
    """Heads of 32: upstream's message without flash attention, too, where it had an assertion."""
    options = ("-m", plain, "-p", "4", "-n", "0", "-r", "1", "-v", "-fa", flash_attention, *THREADS)
    for cache, block in (("bof4_k", 256), ("bof4_s", 64)):
        refused = llama("bench", *options, "-ctk", cache)
        assert refused.returncode == 1, refused.stderr[-1000:]
        why = f"K cache type {cache} with block size {block} does not divide n_embd_head_k=32"
        assert why in refused.stderr
    succeed("bench", *options, "-ctk", "q8_0")


def test_per_layer_embeddings_get_no_list_and_images_work(built: Path, use_llama: Path, tmp_path: Path) -> None:
    """llama.cpp copies a row of them where a batch holds embeddings: a list would be lost there."""
    source = write_gemma3n(tmp_path / "gemma3n.gguf")
    report = convert(source, tmp_path / "pure.gguf", type="BOF4_S", pure=True, encoder="absmax")
    reasons = {t.name: t.no_list for t in report.tensors if t.qtype == "BOF4_S" and t.no_list}
    assert list(reasons) == [PER_LAYER]
    assert "where a batch holds embeddings" in str(reasons[PER_LAYER])
    model = open_model(tmp_path / "pure.gguf")
    assert {t.name for t in model.tensors if t.qtype == T.BOF4_S} - set(model.lists) == {PER_LAYER}
    for batch in ("tokens", "embeddings"):
        done = run_program(use_llama, batch, tmp_path / "pure.gguf")
        assert done.returncode == 0, done.stderr[-1000:]
        assert np.isfinite(float(done.stdout))


def test_a_list_that_a_graph_would_lose_is_refused_when_the_model_is_loaded(
    built: Path, use_llama: Path, tmp_path: Path
) -> None:
    """As earlier versions of `bof4 convert --pure` wrote it."""
    path = write_gemma3n(tmp_path / "listed.gguf", lambda name: name == PER_LAYER)
    refused = run_program(use_llama, "tokens", path)
    assert refused.returncode == 1
    assert f"tensor '{PER_LAYER}' has an outlier list, which the model's graph would not apply" in refused.stderr
    assert f"--tensor-type {PER_LAYER}=q8_0" in refused.stderr
    # the remedy
    convert(path, tmp_path / "again.gguf", type="BOF4_S", opq=("off",), tensor_types=(f"{PER_LAYER}=q8_0",))
    assert run_program(use_llama, "embeddings", tmp_path / "again.gguf").returncode == 0


def test_saved_models_keep_their_lists(built: Path, use_llama: Path, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved.gguf"
    done = run_program(use_llama, "save", listed, out)
    assert done.returncode == 0, done.stderr[-1000:]
    before, after = tensors_of(listed), tensors_of(out)
    assert sum(name.endswith(SUFFIX) for name in before) == 16
    assert before.keys() == after.keys()
    for name, (data, qtype) in before.items():
        assert (data.tobytes(), qtype) == (after[name][0].tobytes(), after[name][1]), name
    assert bof4("verify", str(out)).returncode == 0
