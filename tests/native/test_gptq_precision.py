"""gptq with products in bf16: what is rounded, and what is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_models import family_folder
from convert_models import tensors
from torch import nn

from gguf_bof4.convert import convert
from gguf_bof4.encoders.gptq import precision
from gguf_bof4.encoders.gptq.layer import Layer, Workers
from gguf_bof4.errors import UserError

ROUNDING = 2.0**-8
"""Of a number to the 8 significant bits of bf16: half a unit in the last place, relative to the number."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, unquantized."""
    folder = tmp_path_factory.mktemp("llama")
    convert(family_folder(folder, "llama"), folder / "f32.gguf", type="F32")
    return folder / "f32.gguf"


def gptq(source: Path, target: Path, **options: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    convert(source, target, type="BOF4_S", encoder="gptq", calibration=__file__, samples=4, sample_length=48, **options)
    return tensors(target)


class Block(nn.Module):
    """A decoder layer of two matrices; it returns its inputs, so that each layer sees the same."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = hidden + self.down(torch.relu(self.up(hidden)))
        return moved


@pytest.fixture
def block() -> Block:
    torch.manual_seed(1)
    return Block().requires_grad_(False)


def test_linear_modules_round_inputs_and_weights(block: Block) -> None:
    x = torch.randn(40, 64)
    exact = block.up(x)
    with precision.linear_in(torch.bfloat16, block):
        rounded = block.up(x)
        assert isinstance(block.up, nn.Linear)  # as gptq asks for
        assert block.up.weight.dtype == rounded.dtype == torch.float32
    # inputs, weights, the bias and the sum are rounded
    bound = 4 * ROUNDING * (x.abs() @ block.up.weight.abs().T + block.up.bias.abs())
    assert bool(((rounded - exact).abs() <= bound).all())
    assert float((rounded - exact).abs().max()) > 0
    assert torch.equal(block.up(x), exact)  # as before


def test_weights_that_are_replaced_count_at_once(block: Block) -> None:
    """A matrix is quantized while the layer multiplies in bf16, and so is only one of two copies."""
    x = torch.randn(8, 64)
    with precision.linear_in(torch.bfloat16, block):
        block.up(x)
        other = copy.deepcopy(block)
        block.up._parameters["weight"] = nn.Parameter(torch.zeros(96, 64), requires_grad=False)
        assert torch.equal(block.up(x), block.up.bias.bfloat16().float().expand(8, -1))
        assert not torch.equal(other.up(x), block.up(x))


def test_nothing_is_kept_afterwards(block: Block) -> None:
    with precision.linear_in(torch.bfloat16, block):
        block(torch.randn(4, 64))
    assert type(block.up) is nn.Linear
    assert not any(isinstance(value, tuple) for value in vars(block.up).values())  # rounded weights are freed


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_rounded_inputs(block: Block, weighted: bool) -> None:
    hidden = torch.randn(5, 24, 64)
    given = torch.rand(5, 24) * 2 if weighted else torch.ones(5, 24)
    made = []
    for dtype, count in ((torch.float32, 1), (torch.bfloat16, 1), (torch.bfloat16, 3)):
        workers = Workers(count, torch.device("cpu"))
        layer = Layer(block, {}, workers, dtype)
        weights = [given if weighted else None]
        made.append(layer.moments("up", hidden, layer, 1.5 * hidden, weights)[0])
        workers.close()
    exact, rounded, by_three = made
    assert torch.equal(rounded.hessian, by_three.hessian) and torch.equal(rounded.drift, by_three.drift)
    assert torch.equal(rounded.hessian, rounded.hessian.T)
    x = (hidden * given.sqrt()[..., None]).reshape(-1, 64)
    bound = 3 * ROUNDING * x.abs().T @ x.abs() / len(x)
    assert bool(((rounded.hessian - exact.hessian).abs() <= bound).all())
    assert bool(((rounded.drift - exact.drift).abs() <= bound).all())  # the drift is half of x x^T
    assert float((rounded.hessian - exact.hessian).abs().max()) > 0


def test_files_do_not_depend_on_threads_and_keep_outputs(llama: Path, tmp_path: Path) -> None:
    one = gptq(llama, tmp_path / "one.gguf", precision="bf16", threads=1)
    assert gptq(llama, tmp_path / "three.gguf", precision="bf16", threads=3) == one
    exact = gptq(llama, tmp_path / "exact.gguf", precision="f32")
    assert exact != one
    assert exact.keys() == one.keys()
    # bytes of most blocks are the same: a code moves only where it was nearly between two
    in_f32, in_bf16 = (np.frombuffer(made["blk.0.attn_q.weight"][2], np.uint8) for made in (exact, one))
    assert 0.9 < np.mean(in_f32 == in_bf16) < 1


def test_work_of_another_precision_is_not_mixed_in(llama: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith("layer 2 of 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gptq(llama, tmp_path / "x.gguf", precision="bf16", progress=interrupt)
    with pytest.raises(UserError, match="--calibration-precision differ"):
        gptq(llama, tmp_path / "x.gguf", precision="f32")


def test_auto_is_what_the_processor_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for bf16, amx, expected in ((False, False, "f32"), (True, False, "bf16"), (False, True, "bf16")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=bf16: found, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=amx: found, raising=False)
        assert precision.chosen("auto", cpu) == expected
        assert precision.chosen("auto", torch.device("cuda")) == "f32"
        assert [precision.chosen(name, cpu) for name in precision.DTYPES] == list(precision.DTYPES)


def test_other_precisions_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--calibration-precision f16: give one of auto, f32, bf16"):
        gptq(llama, tmp_path / "x.gguf", precision="f16")
