"""The numpy reference: its properties, and the gguf package after registration."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf_writing import write_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import gguf_bof4
from gguf_bof4.formats import BOF4_K as FMT_K
from gguf_bof4.formats import BOF4_S as FMT
from gguf_bof4.formats import FORMATS, LEVEL_SCALE
from gguf_bof4.gguf_files.types import add_member
from gguf_bof4.quants import BOF4_K

TYPE = gguf.GGMLQuantizationType.BOF4_S
K = gguf.GGMLQuantizationType.BOF4_K

# what fp16 scales can hold; the extremes have tests of their own
ordinary = st.one_of(st.just(0.0), st.floats(2**-10, 60000, width=32), st.floats(-60000, -(2**-10), width=32))
blocks = npst.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(64)), elements=ordinary)
superblocks = npst.arrays(np.float32, st.tuples(st.integers(1, 2), st.just(256)), elements=ordinary)
block_scales = npst.arrays(np.int8, st.tuples(st.integers(1, 4), st.just(16)), elements=st.integers(-32, 31))

every_type = pytest.mark.parametrize(
    "qtype", [gguf.GGMLQuantizationType(f.type_id) for f in FORMATS], ids=lambda t: t.name
)


def roundtrip(weights: np.ndarray, qtype: gguf.GGMLQuantizationType = TYPE) -> np.ndarray:
    return gguf.dequantize(gguf.quantize(weights, qtype), qtype)


@given(block_scales)
def test_block_scales_of_all_values_are_packed_into_six_bits(scales: np.ndarray) -> None:
    packed = BOF4_K.pack_scales(scales)
    assert packed.shape == (len(scales), 12)
    assert np.array_equal(BOF4_K.unpack_scales(packed), scales)


def test_every_packed_byte_is_a_scale_of_its_own() -> None:
    packed = np.random.default_rng(0).integers(0, 256, (500, 12), dtype=np.uint8)
    assert np.array_equal(BOF4_K.pack_scales(BOF4_K.unpack_scales(packed)), packed)


def test_bof4_k_decodes_by_its_formula_exactly() -> None:
    """w = d * 2^-12 * s * k, every bit where README, "Formats", says."""
    data = np.random.default_rng(1).integers(0, 256, (200, 142), dtype=np.uint8)
    data = data[data[:, :2].copy().view(np.uint16)[:, 0] & 0x7C00 != 0x7C00]
    decoded = gguf.dequantize(data, K)
    for block, weights in zip(data, decoded, strict=True):
        d, scales, qs = float(block[:2].view(np.float16)[0]), block[2:14].astype(int), block[14:].astype(int)
        for i in range(256):
            j, half, at = i // 16, i // 128, i % 64
            s = (scales[j % 8] >> 4 * (j // 8) & 15 | (scales[8 + j % 4] >> 2 * (j // 4) & 3) << 4) - 32
            code = qs[64 * half + at] >> 4 * (i // 64 % 2) & 15
            assert weights[i] == d / 4096 * s * FMT_K.levels[code]


@given(superblocks)
def test_every_weight_of_bof4_k_gets_its_nearest_level(x: np.ndarray) -> None:
    encoded = gguf.quantize(x, K)
    decoded = gguf.dequantize(encoded, K).astype(np.float64).reshape(-1, 16)
    d = encoded[:, :2].copy().view(np.float16).astype(np.float64)
    units = (d / 4096 * BOF4_K.unpack_scales(encoded[:, 2:14])).reshape(-1, 1)
    candidates = units * np.array(FMT_K.levels)
    exact = x.astype(np.float64).reshape(-1, 16)
    best = np.abs(exact[:, :, None] - candidates[:, None]).min(axis=2)
    assert (np.abs(exact - decoded) <= best + 1e-6 * np.abs(exact).max(axis=1, keepdims=True)).all()


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


@every_type
@given(x=superblocks, factor=st.sampled_from([0.5, 2.0, -1.0, -4.0]))
def test_scaling_by_a_power_of_two_scales_the_result(
    qtype: gguf.GGMLQuantizationType, x: np.ndarray, factor: float
) -> None:
    x = x.reshape(-1, gguf.GGML_QUANT_SIZES[qtype][0])
    scaled = (x * np.float32(factor)).astype(np.float32)
    magnitude = np.abs(x)
    first_of_equals = (magnitude == magnitude.max(axis=1, keepdims=True)).sum(axis=1) == 1
    in_range = np.abs(scaled).max(axis=1) < 60000
    keep = first_of_equals & in_range
    assert np.array_equal(roundtrip(scaled, qtype)[keep], (roundtrip(x, qtype) * np.float32(factor))[keep])


def test_codes_are_where_the_format_says() -> None:
    x = np.zeros((1, 64), dtype=np.float32)
    x[0, 3] = -2.0  # the maximum: code 15, low nibble of byte 3
    x[0, 35] = 2.0 * 109 / 127  # level -109: code 0, high nibble of byte 3
    block = gguf.quantize(x, TYPE)[0]
    assert block[:2].view(np.float16)[0] == -2.0
    assert block[2 + 3] == 0x0F
    assert set(np.delete(block[2:], 3)) == {0x77}  # zeros: code 7 in both nibbles


@every_type
def test_zero_block_decodes_to_zeros(qtype: gguf.GGMLQuantizationType) -> None:
    assert (roundtrip(np.zeros((2, 512), dtype=np.float32), qtype) == 0).all()


@every_type
@pytest.mark.parametrize("value", [65519.0, -65519.0])
def test_magnitudes_that_fp16_rounds_down_get_the_largest_scale(
    value: float, qtype: gguf.GGMLQuantizationType
) -> None:
    decoded = roundtrip(np.full((1, 256), value, dtype=np.float32), qtype)
    assert np.abs(decoded / value - 1).max() < 0.01


def scales_of_two_blocks(value: float, qtype: gguf.GGMLQuantizationType) -> npt.NDArray[np.float16]:
    """The stored scales of a block of ones, and of one with this value, too."""
    n, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    x = np.ones((1, 2 * n), dtype=np.float32)
    x[0, n + 6] = value
    return gguf.quantize(x, qtype).reshape(2, nbytes)[:, :2].copy().view(np.float16)[:, 0]


@every_type
@pytest.mark.parametrize("value", [65520.0, -1e5, 1e30])
def test_a_weight_that_fp16_cannot_hold_marks_its_block_only(value: float, qtype: gguf.GGMLQuantizationType) -> None:
    good, marked = scales_of_two_blocks(value, qtype)
    assert np.isfinite(good)
    assert np.isinf(marked)


@every_type
def test_magnitudes_below_fp16_become_zero(qtype: gguf.GGMLQuantizationType) -> None:
    assert (roundtrip(np.full((1, 256), 1e-9, dtype=np.float32), qtype) == 0).all()


@every_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_marks_its_block_only(bad: float, qtype: gguf.GGMLQuantizationType) -> None:
    good, marked = scales_of_two_blocks(bad, qtype)
    assert np.isfinite(good)
    assert np.isnan(marked)


@pytest.mark.parametrize(("qtype", "expected"), [(TYPE, 0.00735), (K, 0.00620)], ids=["BOF4_S", "BOF4_K"])
def test_relative_squared_error_on_gaussian_weights(qtype: gguf.GGMLQuantizationType, expected: float) -> None:
    """Absmax, within 1 %: BOF4_S has the paper's 0.880 of NF4's error; BOF4_K's levels are made for scale search."""
    generator = np.random.default_rng(2505)
    error = energy = 0.0
    for _ in range(4):
        x = generator.standard_normal((256, 4096), dtype=np.float32)
        error += float(np.square(x - roundtrip(x, qtype), dtype=np.float64).sum())
        energy += float(np.square(x, dtype=np.float64).sum())
    assert error / energy == pytest.approx(expected, rel=0.01)


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
    assert gguf.GGMLQuantizationType["BOF4_K"] is gguf.GGMLQuantizationType(177) is K
    assert gguf.LlamaFileType(177).name == "MOSTLY_BOF4_K"
    assert gguf.GGML_QUANT_SIZES[K] == (256, 142)


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
    write_tensors(path, {"x": gguf.quantize(x, TYPE)}, TYPE)
    (tensor,) = gguf.GGUFReader(path).tensors
    assert (tensor.tensor_type, list(tensor.shape)) == (TYPE, [x.shape[1], x.shape[0]])
    assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), roundtrip(x))


def test_a_script_written_for_gguf_works_after_one_import(tmp_path: Path) -> None:
    """gguf's own dump script, on a file with the type."""
    path = tmp_path / "x.gguf"
    write_tensors(path, {"x.weight": gguf.quantize(np.ones((2, 64), dtype=np.float32), TYPE)}, TYPE)
    script = (
        f"import gguf_bof4, sys; sys.argv[1:] = [{str(path)!r}]; from gguf.scripts import gguf_dump; gguf_dump.main()"
    )
    dump = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "BOF4_S" in dump.stdout


def test_public_names() -> None:
    """What a script may import, README: the class of each type, the table of formats, reading with outliers."""
    assert {"BOF4_S", "BOF4_S_FORMAT", "FORMATS", "Format", "read_tensor"} <= set(gguf_bof4.__all__)
    assert all(hasattr(gguf_bof4, name) for name in gguf_bof4.__all__)
    assert gguf_bof4.BOF4_S.format is gguf_bof4.BOF4_S_FORMAT is FMT
