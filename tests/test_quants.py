"""The numpy reference: its properties, and the gguf package after registration."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import gguf_bof4
from gguf_bof4.formats import BOF4_S as FMT
from gguf_bof4.formats import LEVEL_SCALE
from gguf_bof4.registration import add_member

TYPE = gguf.GGMLQuantizationType.BOF4_S

# what fp16 scales can hold; the extremes have tests of their own
ordinary = st.floats(-60000, 60000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
blocks = npst.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(64)), elements=ordinary)


def roundtrip(weights: np.ndarray) -> np.ndarray:
    return gguf.dequantize(gguf.quantize(weights, TYPE), TYPE)


@given(blocks)
def test_the_largest_element_comes_back_as_its_fp16(x: np.ndarray) -> None:
    y = roundtrip(x)
    for row, decoded in zip(x, y, strict=True):
        at = np.abs(row).argmax()
        assert decoded[at] == np.float32(np.float16(row[at]))


@given(blocks)
def test_every_weight_gets_its_nearest_level(x: np.ndarray) -> None:
    y = roundtrip(x).astype(np.float64)
    for row, decoded in zip(x.astype(np.float64), y, strict=True):
        m = row[np.abs(row).argmax()]
        candidates = float(np.float16(m)) * np.array(FMT.levels) / LEVEL_SCALE
        best = np.abs(row[:, None] - candidates).min(axis=1)
        # float32 rounding may decide a tie the other way, no more
        assert (np.abs(row - decoded) <= best + 1e-6 * abs(m)).all()


@given(blocks)
def test_decoded_weights_encode_to_themselves(x: np.ndarray) -> None:
    encoded = gguf.quantize(x, TYPE)
    assert np.array_equal(gguf.quantize(gguf.dequantize(encoded, TYPE), TYPE), encoded)


@given(blocks, st.sampled_from([0.5, 2.0, -1.0, -4.0]))
def test_scaling_by_a_power_of_two_scales_the_result(x: np.ndarray, factor: float) -> None:
    scaled = (x * np.float32(factor)).astype(np.float32)
    magnitude = np.abs(x)
    first_of_equals = (magnitude == magnitude.max(axis=1, keepdims=True)).sum(axis=1) == 1
    in_range = np.abs(scaled).max(axis=1) < 60000
    keep = first_of_equals & in_range
    assert np.array_equal(roundtrip(scaled)[keep], (roundtrip(x) * np.float32(factor))[keep])


def test_codes_stand_where_the_format_says() -> None:
    x = np.zeros((1, 64), dtype=np.float32)
    x[0, 3] = -2.0  # the maximum: code 15, low nibble of byte 3
    x[0, 35] = 2.0 * 109 / 127  # level -109: code 0, high nibble of byte 3
    block = gguf.quantize(x, TYPE)[0]
    assert block[:2].view(np.float16)[0] == -2.0
    assert block[2 + 3] == 0x0F
    assert set(np.delete(block[2:], 3)) == {0x77}  # zeros: code 7 in both nibbles


def test_zero_block_decodes_to_zeros() -> None:
    assert (roundtrip(np.zeros((2, 128), dtype=np.float32)) == 0).all()


def test_magnitudes_beyond_fp16_are_clamped_to_its_largest() -> None:
    x = np.full((1, 64), 1e6, dtype=np.float32)
    assert (roundtrip(x) == np.float32(65504)).all()


def test_magnitudes_below_fp16_become_zero() -> None:
    assert (roundtrip(np.full((1, 64), 1e-9, dtype=np.float32)) == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_marks_its_block_only(bad: float) -> None:
    x = np.ones((1, 128), dtype=np.float32)
    x[0, 70] = bad
    scales = gguf.quantize(x, TYPE).reshape(2, 34)[:, :2].copy().view(np.float16)
    assert np.isfinite(scales[0, 0])
    assert np.isnan(scales[1, 0])


def test_relative_squared_error_on_gaussian_weights() -> None:
    """0.00735 within 1 %: the paper's 0.880 of NF4's error, with int8 levels and fp16 scales."""
    generator = np.random.default_rng(2505)
    error = energy = 0.0
    for _ in range(16):
        x = generator.standard_normal((256, 4096), dtype=np.float32)
        error += float(np.square(x - roundtrip(x), dtype=np.float64).sum())
        energy += float(np.square(x, dtype=np.float64).sum())
    assert error / energy == pytest.approx(0.00735, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_encode_like_their_float32(dtype: torch.dtype) -> None:
    x = torch.randn(8, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert np.array_equal(gguf.quantize(x, TYPE), gguf.quantize(x.float().numpy(), TYPE))


def test_rows_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(gguf.QuantError, match="96"):
        gguf.quantize(np.zeros((2, 96), dtype=np.float32), TYPE)


def test_gguf_knows_the_type_by_name_number_and_size() -> None:
    assert gguf.GGMLQuantizationType["BOF4_S"] is gguf.GGMLQuantizationType(176) is TYPE
    assert TYPE in list(gguf.GGMLQuantizationType)
    assert gguf.LlamaFileType(176).name == "MOSTLY_BOF4_S"
    assert gguf.GGML_QUANT_SIZES[TYPE] == (64, 34)


def test_registering_again_is_harmless_and_a_taken_number_is_refused() -> None:
    add_member(gguf.GGMLQuantizationType, "BOF4_S", 176)
    with pytest.raises(ValueError, match="already uses"):
        add_member(gguf.GGMLQuantizationType, "BOF4_S", 177)
    with pytest.raises(ValueError, match="already uses"):
        add_member(gguf.GGMLQuantizationType, "SOMETHING", 176)


@settings(max_examples=20)
@given(npst.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([64, 192])), elements=ordinary))
def test_array_to_file_to_array(tmp_path_factory: pytest.TempPathFactory, x: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("roundtrip") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", gguf.quantize(x, TYPE), raw_dtype=TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = gguf.GGUFReader(path).tensors
    assert (tensor.tensor_type, list(tensor.shape)) == (TYPE, [x.shape[1], x.shape[0]])
    assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), roundtrip(x))


def test_a_script_written_for_gguf_works_after_one_import(tmp_path: Path) -> None:
    """gguf's own dump script, on a file with the type."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x.weight", gguf.quantize(np.ones((2, 64), dtype=np.float32), TYPE), raw_dtype=TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    script = (
        f"import gguf_bof4, sys; sys.argv[1:] = [{str(path)!r}]; from gguf.scripts import gguf_dump; gguf_dump.main()"
    )
    dump = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "BOF4_S" in dump.stdout


def test_public_names_exist() -> None:
    assert gguf_bof4.BOF4_S.format is FMT
