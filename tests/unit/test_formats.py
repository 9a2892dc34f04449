"""The table of formats, and the C header generated from it."""

from pathlib import Path

import numpy as np
import pytest

from gguf_bof4.formats import BOF4_K, BOF4_S, FORMATS, LEVEL_SCALE, Format, c_header
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
def test_block_bytes_hold_a_scale_and_the_codes(fmt: Format) -> None:
    assert fmt.block_bytes >= 2 + fmt.block_size // 2


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
