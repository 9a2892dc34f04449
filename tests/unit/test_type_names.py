"""Names of tensor types on the command line, and the types of rows that do not divide into blocks."""

import pytest
from gguf import GGMLQuantizationType as T

from gguf_bof4.convert.policy import parse_pattern, parse_type, with_fallback
from gguf_bof4.errors import UserError

BOF4_S = T.BOF4_S


@pytest.mark.parametrize(
    ("wanted", "columns", "expected"),
    [
        (T.BOF4_K, 512, T.BOF4_K), (T.BOF4_K, 576, BOF4_S), (T.BOF4_K, 96, T.Q8_0), (T.BOF4_K, 100, T.F16),
        (BOF4_S, 64, BOF4_S), (BOF4_S, 96, T.Q8_0), (BOF4_S, 100, T.F16),
        (T.Q6_K, 256, T.Q6_K), (T.Q6_K, 576, T.Q8_0), (T.Q6_K, 100, T.F16),
        (T.Q4_K, 576, T.Q5_0), (T.Q5_K, 576, T.Q5_1), (T.Q3_K, 576, T.Q4_0), (T.IQ4_XS, 576, T.IQ4_NL),
        (T.Q8_0, 40, T.F16), (T.F32, 7, T.F32),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(wanted: T, columns: int, expected: T) -> None:
    decision = with_fallback(wanted, columns)
    assert decision.qtype == expected
    assert (decision.fallback is None) == (wanted == expected)
    if decision.fallback:
        assert str(columns) in decision.fallback and wanted.name in decision.fallback


def test_names_of_types() -> None:
    assert parse_type("bof4_s") == BOF4_S
    assert parse_type("Q6_k") == T.Q6_K
    assert parse_pattern(r"BLK\.[0-3]\.=q8_0") == (r"blk\.[0-3]\.", T.Q8_0)
    for wrong in ("Q9_0", "", "Q8_K", "I32"):
        with pytest.raises(UserError, match="there is no tensor type"):
            parse_type(wrong)
    with pytest.raises(UserError, match=r"importance matrix.*--imatrix"):
        parse_type("IQ2_XXS")
    assert parse_type("IQ2_XXS", importance=True) == T.IQ2_XXS
    for wrong in ("attn_v", "=q8_0", "attn_v=", "("):
        with pytest.raises(UserError, match="PATTERN=TYPE"):
            parse_pattern(wrong)
    with pytest.raises(UserError, match="regular expression"):
        parse_pattern("(=q8_0")
