"""The table of formats, and the C header generated from it."""

import re
from pathlib import Path

import numpy as np
import pytest

from gguf_bof4.formats import BOF4_K, BOF4_S, FORMAT_OF_TYPE_ID, FORMATS, LEVEL_SCALE, Format, c_header
from gguf_bof4.ggml_patch import SOURCES

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)


def test_c_header_is_the_generated_one() -> None:
    committed = (SOURCES / "include" / "bof4-format.h").read_text()
    assert committed == c_header(), "run `python -m gguf_bof4.formats > ggml_patch/src/include/bof4-format.h`"


@every_format
def test_levels_are_sixteen_ascending_int8_with_zero_and_one(fmt: Format) -> None:
    assert len(fmt.levels) == 16
    assert list(fmt.levels) == sorted(set(fmt.levels))
    assert fmt.levels[-1] == LEVEL_SCALE
    assert fmt.levels[fmt.zero_code] == 0
    assert np.array(fmt.levels, dtype=np.int8).tolist() == list(fmt.levels)


@every_format
def test_a_block_is_whole_sub_blocks_and_whole_pairs_of_code_runs(fmt: Format) -> None:
    assert fmt.block_size == fmt.n_sub_blocks * fmt.sub_block_size
    assert fmt.block_size % (2 * fmt.code_run) == 0
    assert fmt.sub_scale_bytes * 8 == (fmt.n_sub_blocks * fmt.sub_scale_bits)
    assert (fmt.n_sub_blocks > 1) == (fmt.sub_scale_bits > 0)


@every_format
def test_activations_and_fallbacks_divide_blocks(fmt: Format) -> None:
    assert fmt.block_size % fmt.activation.block_size == 0
    if fmt.fallback is not None:
        assert fmt.fallback.block_size < fmt.block_size


def test_numbers_of_types_are_unique() -> None:
    assert len({fmt.type_id for fmt in FORMATS}) == len({fmt.file_type for fmt in FORMATS}) == len(FORMATS)
    assert {fmt.type_id: fmt for fmt in FORMATS} == FORMAT_OF_TYPE_ID


def test_header_lists_every_type_once_by_its_scales() -> None:
    text = c_header()
    lists = {
        macro: set(re.findall(r"X\((\w+), \w+\)", text.split(f"#define {macro}(X)")[1].split("#define")[0]))
        for macro in ("BOF4_TYPES", "BOF4_TYPES_ONE_SCALE", "BOF4_TYPES_SUB_SCALES")
    }
    assert lists["BOF4_TYPES"] == {fmt.name for fmt in FORMATS}
    assert lists["BOF4_TYPES_ONE_SCALE"] | lists["BOF4_TYPES_SUB_SCALES"] == lists["BOF4_TYPES"]
    assert not lists["BOF4_TYPES_ONE_SCALE"] & lists["BOF4_TYPES_SUB_SCALES"]


@pytest.mark.parametrize(
    ("fmt", "expected"), [(BOF4_S, (176, 64, 34, 4.25)), (BOF4_K, (177, 256, 142, 4.4375))], ids=["BOF4_S", "BOF4_K"]
)
def test_documented_sizes(fmt: Format, expected: tuple[float, ...]) -> None:
    assert (fmt.type_id, fmt.block_size, fmt.block_bytes, fmt.bits_per_weight) == expected
    assert fmt.file_type == fmt.type_id


def test_formats_page_lists_every_format() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    for fmt in FORMATS:
        assert f"| {fmt.name} | {fmt.type_id} | {fmt.block_size} | {fmt.block_bytes} |" in page
