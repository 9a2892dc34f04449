"""Token weights of gptq: block by block they are the gradients of the whole model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from calibration_models import family_folder

from gguf_bof4.convert import convert
from gguf_bof4.encoders.gptq import token_weights
from gguf_bof4.encoders.gptq.layer import Layer, Workers
from gguf_bof4.encoders.gptq.model import first_inputs, is_linear, make_skeleton
from gguf_bof4.encoders.gptq.weights import FolderWeights


@pytest.fixture(scope="module", params=["smollm", "gemma3", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with tied output, with soft caps or norms behind layers, and with transposed matrices."""
    return family_folder(tmp_path_factory.mktemp(request.param), request.param)


def test_they_are_the_squared_gradients_of_the_whole_model(folder: Path, tmp_path: Path) -> None:
    tokens = torch.randint(3, 300, (3, 40), generator=torch.Generator().manual_seed(0))
    weights = FolderWeights(folder, sorted(folder.glob("*.safetensors")))
    skeleton = make_skeleton(weights.config(), folder)
    workers = Workers(2, torch.device("cpu"))
    steps: list[str] = []
    with torch.inference_mode():
        inputs = first_inputs(skeleton, lambda names: weights.fill(skeleton, names), tokens)

        def load(i: int) -> Layer:
            prefix = f"{skeleton.layers_name}.{i}."
            weights.fill(skeleton, [prefix + name for name, _ in skeleton.layers[i].named_parameters()])
            return Layer(skeleton.layers[i], inputs.arguments[i], workers)

        def modules(i: int) -> list[str]:
            return [name for name, module in skeleton.layers[i].named_modules() if is_linear(module)]

        before = inputs.hidden.clone()
        path = token_weights.compute(
            tmp_path, skeleton, lambda names: weights.fill(skeleton, names), load, modules, inputs.hidden, tokens,
            steps.append,
        )  # fmt: skip
        assert torch.equal(before, inputs.hidden)
    workers.close()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert len(steps) == 5  # two layers, there and back, and the loss

    attention = skeleton.model.config._attn_implementation
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    model.eval()
    for i in range(2):
        layer = model.get_submodule(skeleton.layers_name)[i]
        found = token_weights.read(path, i)
        assert set(found) == set(modules(i))
        seen: dict[str, torch.Tensor] = {}

        def note(_: object, __: object, output: torch.Tensor, name: str, seen: dict[str, torch.Tensor] = seen) -> None:
            seen[name] = output

        hooks = [layer.get_submodule(name).register_forward_hook(partial(note, name=name)) for name in found]
        logits = model(tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        gradients = torch.autograd.grad(loss, [seen[name] for name in found])
        for hook in hooks:
            hook.remove()
        for name, gradient in zip(found, gradients, strict=True):
            expected = gradient.reshape(3, 40, -1).square().mean(dim=2)
            expected /= expected.mean()
            torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=1e-4, msg=name)


def test_the_option_changes_the_codes_and_threads_do_not(tmp_path: Path) -> None:
    source = family_folder(tmp_path, "llama")
    options = {
        "encoder": "gptq", "type": "BOF4_S", "samples": 4, "sample_length": 48, "calibration": str(Path(__file__)),
    }  # fmt: skip
    contents = []
    for i, (weighed, threads) in enumerate(((False, 1), (True, 1), (True, 3))):
        path = tmp_path / f"{i}.gguf"
        convert(source, path, token_weights=weighed, threads=threads, **options)
        contents.append(path.read_bytes())
    assert contents[0] != contents[1]
    assert contents[1] == contents[2]
