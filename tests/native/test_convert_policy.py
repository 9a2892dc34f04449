"""Which type a tensor gets."""

import pytest
from convert_models import SHAPES
from gguf import GGMLQuantizationType as T

from gguf_bof4.convert.policy import Rules, decide

BOF4_S = T.BOF4_S
PLAIN = Rules(base=BOF4_S)


def type_of(name: str, rules: Rules = PLAIN, source: T = T.F32, tied: bool = False) -> T:
    return decide("llama", name, SHAPES[name], source, rules, tied).qtype


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.0.attn_q.weight", BOF4_S),
        ("blk.0.ffn_up_exps.weight", BOF4_S),
        ("token_embd.weight", T.Q6_K),
        ("output.weight", T.Q6_K),
        ("blk.0.attn_norm.weight", T.F32),
        ("blk.0.attn_q.bias", T.F32),
        ("blk.0.ffn_gate_inp.weight", T.F32),
        ("blk.1.ffn_up.weight", T.F32),  # one row: ggml sees a vector
        ("blk.0.ffn_down_exps.weight", T.Q8_0),  # rows of 96
        ("blk.1.ffn_down.weight", T.F16),  # rows of 100
    ],
)
def test_without_options(name: str, expected: T) -> None:
    assert type_of(name) == expected


@pytest.mark.parametrize("source", [T.F32, T.F16, T.BF16])
def test_what_is_not_quantized_stays_as_it_is(source: T) -> None:
    assert type_of("blk.0.ffn_gate_inp.weight", source=source) == source


def test_what_should_not_have_been_quantized_becomes_f32() -> None:
    assert type_of("blk.0.ffn_gate_inp.weight", source=T.Q8_0) == T.F32


def test_tables_of_integers_stay() -> None:
    assert decide("deepseek4", "blk.0.ffn_x.weight", (64, 64), T.I32, PLAIN, False).qtype == T.I32


def test_the_order_of_options() -> None:
    rules = Rules(
        base=BOF4_S,
        token_embedding=T.F16,
        output_tensor=T.Q8_0,
        patterns=(("attn_q", T.Q5_0), ("attn", T.Q4_0), ("token_embd|output", T.Q4_1), ("norm", T.Q8_0)),
    )
    assert type_of("token_embd.weight", rules) == T.F16
    assert type_of("output.weight", rules) == T.Q8_0
    assert type_of("blk.0.attn_q.weight", rules) == T.Q5_0
    assert type_of("blk.0.attn_k.weight", rules) == T.Q4_0
    assert type_of("blk.0.attn_norm.weight", rules) == T.F32
    assert type_of("blk.0.ffn_up.weight", rules) == BOF4_S
    assert type_of("token_embd.weight", Rules(base=BOF4_S, patterns=(("^token", T.Q4_1),))) == T.Q4_1


def test_tied_embeddings_follow_the_output_type() -> None:
    rules = Rules(base=BOF4_S, output_tensor=T.Q8_0)
    assert type_of("token_embd.weight", rules, tied=True) == T.Q8_0
    assert type_of("token_embd.weight", rules, tied=False) == T.Q6_K
    both = Rules(base=BOF4_S, output_tensor=T.Q8_0, token_embedding=T.Q4_K)
    assert type_of("token_embd.weight", both, tied=True) == T.Q4_K


def test_layers_of_multi_token_prediction_follow_embeddings_and_output() -> None:
    def nextn(name: str, rules: Rules = PLAIN) -> T:
        return decide("glm4moe", f"blk.46.nextn.{name}.weight", (64, 256), T.F32, rules, False).qtype

    assert (nextn("embed_tokens"), nextn("shared_head_head"), nextn("eh_proj")) == (T.Q6_K, T.Q6_K, BOF4_S)
    given = Rules(base=BOF4_S, token_embedding=T.F16, output_tensor=T.Q8_0)
    assert (nextn("embed_tokens", given), nextn("shared_head_head", given)) == (T.F16, T.Q8_0)
    named = Rules(base=BOF4_S, token_embedding=T.F16, patterns=(("nextn", T.Q4_K),))
    assert nextn("embed_tokens", named) == T.Q4_K
    assert nextn("embed_tokens", Rules(base=BOF4_S, pure=True)) == BOF4_S
    assert nextn("shared_head_head", Rules(base=BOF4_S, leave_output=True)) == T.F32


def test_pure_and_leave_output() -> None:
    assert type_of("token_embd.weight", Rules(base=BOF4_S, pure=True)) == BOF4_S
    assert type_of("output.weight", Rules(base=BOF4_S, pure=True)) == BOF4_S
    assert type_of("output.weight", Rules(base=BOF4_S, leave_output=True), source=T.Q8_0) == T.Q8_0


def test_a_pattern_can_name_the_table_per_layer() -> None:
    rules = Rules(base=BOF4_S, token_embedding=T.Q8_0, patterns=(("per_layer", T.Q4_K),))
    assert decide("gemma3n", "per_layer_token_embd.weight", (64, 256), T.F32, rules, True).qtype == T.Q4_K
    assert decide("gemma3n", "token_embd.weight", (64, 256), T.F32, rules, True).qtype == T.Q8_0
