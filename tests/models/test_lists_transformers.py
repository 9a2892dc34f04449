"""The patched llama.cpp with lists against transformers with the weights that Python decodes, outliers applied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from listed import contents, predict, write_decoded
from llama import THREADS, succeed
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from gguf_bof4.lists import list_name, read_tensor

PROMPTS = ("The history of computing began when", "The capital of France is", "Water boils at a lower temperature")
N_TOKENS = 80

ROUNDING = 0.1
"""What Q8_0 activations do to log probabilities of likely tokens (root mean square; 0.084 measured).

With the weights decoded to F32 and keys and values in F32, llama.cpp is a thousand times nearer to transformers.
"""

MARGIN = 3 * 2**0.5 * ROUNDING
"""Two tokens whose logits are nearer than that may swap ranks: three standard errors of a difference of two, the
largest that is to be expected of some hundred tokens. (A wrong product is off by several.)"""


@pytest.fixture(scope="module")
def tokenizer(smol_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smol_folder)


@pytest.fixture(scope="module")
def decoded(smol_listed: Path, smol_folder: Path) -> Iterator[LlamaForCausalLM]:
    """The model in float32 with the file's weights, all of them, as `lists.read_tensor` gives them."""
    reader = gguf.GGUFReader(smol_listed)
    config = AutoConfig.from_pretrained(smol_folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    model = LlamaForCausalLM(config).to(torch.float32).eval()
    n_lists = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # the output is the embeddings, and named once
            module, suffix = name.rsplit(".", 1)
            stored = names.get_name(module)
            assert stored is not None, name
            weights = read_tensor(reader, f"{stored}.{suffix}")
            part = module.rsplit(".", 1)[-1]
            if part in heads:  # llama.cpp alternates the rows of the two halves that a rotation mixes
                halves = weights.reshape(heads[part], -1, 2, weights.shape[-1])
                weights = halves.swapaxes(1, 2).reshape(weights.shape)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights)))
            n_lists += any(t.name == list_name(f"{stored}.{suffix}") for t in reader.tensors)
    assert n_lists == 7 * config.num_hidden_layers
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for the same reason as llama.cpp's
    yield model
    torch.set_num_threads(threads)


def difference(model: Path, decoded: LlamaForCausalLM, text: Path, *arguments: str) -> float:
    """Root mean square difference of log probabilities of tokens that transformers gives more than 1 %."""
    found = predict(model, text, *arguments)
    length = found.tokens.shape[1]
    assert not contents(gguf.GGUFReader(model), "tokenizer.ggml.add_bos_token")  # which would replace a first token
    with torch.no_grad():
        logits = decoded(torch.from_numpy(found.tokens.astype(np.int64))).logits[:, length // 2 : -1]
    expected = torch.log_softmax(logits, dim=-1).numpy()
    likely = expected > np.log(0.01)
    assert likely.sum() > 1000
    return float(np.sqrt(np.square(found.log_probabilities - expected)[likely].mean()))


def test_log_probabilities_are_those_of_transformers(
    built: Path, smol_listed: Path, decoded: LlamaForCausalLM, evaluation: Path, tmp_path: Path
) -> None:
    rounded = difference(smol_listed, decoded, evaluation)
    one_by_one = difference(smol_listed, decoded, evaluation, "-ub", "1")
    exact_file = write_decoded(smol_listed, tmp_path / "decoded.gguf")
    exact = difference(exact_file, decoded, evaluation, "-ctk", "f32", "-ctv", "f32", "-fa", "off")
    exact_file.unlink()
    print(
        f"root mean square difference: {rounded:.4f} with lists, {one_by_one:.4f} token by token, "
        f"{exact:.6f} with decoded weights"
    )
    assert rounded < ROUNDING
    assert one_by_one < ROUNDING
    # llama-perplexity writes log probabilities in 16 bits, steps of 0.00024
    assert exact < 0.001


@pytest.mark.parametrize("prompt_text", PROMPTS)
def test_greedy_text_is_that_of_transformers(
    built: Path, smol_listed: Path, decoded: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt_text: str
) -> None:
    """To the last token; or every token that differs nearly had the largest logit, too."""
    options = ("-n", str(N_TOKENS), "--temp", "0", "--no-conversation", "--no-display-prompt", "--ignore-eos")
    # the last two newlines are the program's own, and would become one token with what is before them
    text = succeed(
        "completion", "-m", smol_listed, "-p", prompt_text, *options, "--log-verbosity", "1", *THREADS
    ).removesuffix("\n\n")  # fmt: skip
    prompt = tokenizer(prompt_text, return_tensors="pt").input_ids
    # what --ignore-eos keeps llama.cpp from choosing
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    with torch.no_grad():
        answer = decoded.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS,
            do_sample=False, pad_token_id=tokenizer.eos_token_id, suppress_tokens=ends,
        )[0, prompt.shape[1] :]  # fmt: skip
    expected = tokenizer.decode(answer)
    print(repr(expected))
    if text.rstrip("\n") == expected.rstrip("\n"):
        print(f"the same {N_TOKENS} tokens")
        return
    print(repr(text))
    # logits of transformers for llama.cpp's tokens: where do they differ, and by how much?
    ids = tokenizer(prompt_text + text, return_tensors="pt").input_ids[:, : prompt.shape[1] + N_TOKENS]
    assert ids.shape[1] >= prompt.shape[1] + 64
    with torch.no_grad():
        logits = decoded(ids).logits[0, prompt.shape[1] - 1 : -1]
    logits[:, ends] = -torch.inf
    margins = logits.max(dim=-1).values - logits.gather(1, ids[0, prompt.shape[1] :, None])[:, 0]
    differing = margins.nonzero()[:, 0].tolist()
    print({i: round(float(margins[i]), 4) for i in differing})
    assert differing, "the same tokens give different texts"
    assert float(margins.max()) < MARGIN
