"""Sensitivities of bof4 search: predicted divergence of small random errors against the divergence itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_models import family_folder

from gguf_bof4 import native
from gguf_bof4.convert import convert
from gguf_bof4.encoders.gptq.model import linear_weight
from gguf_bof4.encoders.gptq.weights import tensor_names
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model, open_model
from gguf_bof4.search.gradients import EMBEDDING, OUTPUT, load_whole, measure
from gguf_bof4.search.texts import samples_of

LENGTH, CHUNKS = 64, 12
TEXT = Path(__file__)


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = family_folder(tmp_path_factory.mktemp(request.param), request.param)
    target = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    convert(folder, target, type="F32")
    return open_model(target)


def log_probabilities(network: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = network(input_ids=tokens, use_cache=False).logits[:, -LENGTH // 2 :].double()
        return torch.log_softmax(logits, dim=-1)


def test_predictions_are_the_divergence_of_small_errors(model: Model) -> None:
    """Of random errors in a matrix, the mean over five draws; a Fisher information from few chunks is known to 30 %."""
    terms = measure(model, (TEXT,), CHUNKS, LENGTH, 1)
    skeleton, tokenizer = load_whole(model)
    tokens = samples_of(tokenizer, (TEXT,), CHUNKS, LENGTH)
    before = log_probabilities(skeleton.model, tokens)
    modules = dict(skeleton.model.named_modules())
    architecture = str(model.value("general.architecture"))
    weights = {
        tensor: linear_weight(modules[f"{skeleton.layers_name}.1.{module}"])
        for module, tensor in tensor_names(skeleton, 1, architecture).items()
    }
    tied = all(t.name != OUTPUT for t in model.tensors)
    head = skeleton.model.get_output_embeddings()
    # of tied tables only the output is disturbed
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    weights[EMBEDDING if tied else OUTPUT] = linear_weight(head)
    generator, ratios = torch.Generator().manual_seed(7), {}
    for name, weight in weights.items():
        predicted = found = 0.0
        for _ in range(5):
            error = 1e-3 * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)
            squared = np.ascontiguousarray(error.square().numpy())
            # the embedding's own term is of errors in looked-up rows, which stay here
            term = terms[name][-1]
            mean = type(term)(np.full(1, term.rows.mean(), np.float32), term.columns)
            predicted += mean.loss(squared, np.arange(len(squared)))
            with torch.no_grad():
                weight.add_(error)
                after = log_probabilities(skeleton.model, tokens)
                weight.sub_(error)
            found += float((before.exp() * (before - after)).sum(-1).mean())
        ratios[name] = predicted / found
    assert len(ratios) == 8
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios
    assert 0.75 < np.exp(np.mean(np.log(list(ratios.values())))) < 1.33, ratios


def test_rows_of_tensors_have_the_weights_of_their_rows(model: Model) -> None:
    """Converters reorder rows of queries and keys; a row's weight must follow it."""
    terms = measure(model, (TEXT,), 2, LENGTH, 1)
    skeleton, _ = load_whole(model)
    modules = dict(skeleton.model.named_modules())
    architecture = str(model.value("general.architecture"))
    for module, tensor in tensor_names(skeleton, 0, architecture).items():
        (term,) = terms[tensor]
        rows = model.read_weights(next(t for t in model.tensors if t.name == tensor), native.dequantize)
        weight = linear_weight(modules[f"{skeleton.layers_name}.0.{module}"])
        assert term.rows.shape == (len(rows),) == (len(weight),)
        assert np.isfinite(term.rows).all() and (term.rows >= 0).all() and term.rows.max() > 0


def test_the_same_run_gives_the_same_sensitivities(model: Model) -> None:
    one, other = (measure(model, (TEXT,), 2, LENGTH, 1) for _ in range(2))
    assert one.keys() == other.keys()
    for name, terms in one.items():
        for a, b in zip(terms, other[name], strict=True):
            assert np.array_equal(a.rows, b.rows) and np.array_equal(a.columns, b.columns)


def test_texts_that_are_too_short_or_no_text(model: Model, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Some words.")
    with pytest.raises(UserError, match="less than one chunk of 64: give a longer text"):
        measure(model, (tmp_path / "short.txt",), 1, LENGTH, 1)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8"):
        measure(model, (tmp_path / "binary.txt",), 1, LENGTH, 1)
