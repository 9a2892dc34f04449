"""Trains the codes and scales of one decoder layer until its outputs are those of the unquantized model.

This is TesseraQ's block reconstruction (arXiv 2410.19103, "Progressive Adaptive Rounding" and "Dequantization Scale
Tuning") for levels that are not equidistant. While it is trained, a weight lies between two neighbouring levels l_k and
l_(k+1) of its type:

    w = d 2 sigmoid(v) s (l_k + alpha (l_(k+1) - l_k)),    alpha = clamp(1.2 sigmoid(nu) - 0.1, 0, 1)

d is the scale of its block and s that of its sub-block. One nu belongs to each weight, one v to each block. Training
alternates between two steps: *harden* rounds all alpha for good but the share that is nearest to 0.5, *soften* trains
the rest of them, and all v. The last weights are rounded when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gguf_bof4.encoders.encoder import Encoded
from gguf_bof4.encoders.gptq.layer import Layer
from gguf_bof4.encoders.gptq.refine.factors import codes_of, factors, placed, sub_scales, with_codes, with_scales
from gguf_bof4.encoders.gptq.refine.training import BATCH, Budget, sample_at
from gguf_bof4.formats import FP16_MAX, Format

SHARES = (0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.024, 0.016, 0.008, 0.002)
"""Of the weights of a matrix that are not rounded yet, in each of as many stages of the same length.

The paper starts from codes that are nearest, with 0.75: gptq's are better than what few steps lead to from there
(bench/NOTES.md).
"""

NU_TRAVEL = 60.0
"""The sum of the learning rates of nu over all steps, whose number is a matter of minutes: 0.2 to 1 a step.

The paper has 2.5 in 2500 steps; as many take hours on a CPU (bench/NOTES.md).
"""

V_TRAVEL = 0.15
"""The same for v: the scale of a block changes by half of it."""

FEWEST_STEPS = 60
"""With fewer steps, both learning rates are those of as many: larger ones make codes worse, not better."""

RATES = (1.0, 0.25)
"""Of learning rates: where a layer is not better after training with the first, it is trained again with the next."""

V_DECAY = 1e-4
"""Weight decay of v."""

HARD = 50.0
"""The nu of a weight that is rounded up for good; its negative for one that is rounded down. No gradient reaches it."""

MOVED = 0.1
"""The distance of alpha from gptq's code at the start."""

SPREAD = 0.05
"""How much of the place of the unquantized weight is added to that: weights between two levels are rounded last."""

_STRETCH, _SHIFT = 1.2, 0.1

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def alpha_of(nu: torch.Tensor) -> torch.Tensor:
    """The place of a weight between its two levels, 0 to 1."""
    return nu.sigmoid().mul_(_STRETCH).sub_(_SHIFT).clamp_(0, 1)


def nu_of(alpha: torch.Tensor) -> torch.Tensor:
    """The inverse of `alpha_of`; of 0 and 1 the value nearest to zero."""
    return torch.logit((alpha + _SHIFT) / _STRETCH)


def start(multiples: Floats, codes: Bytes, levels: Sequence[int]) -> tuple[Bytes, Floats]:
    """Where training begins: the two levels of each weight, and its place between them.

    They are the levels around the unquantized weight where its code is one of them. Where the encoder chose another
    code to compensate for the errors of other weights, they are that code and its neighbour on the side of the
    unquantized weight. The place is near the code in both cases, and in the first a little nearer to the exact one.

    Args:
        multiples: unquantized weights in units of a level of 1, finite, float32 [...].
        codes: of the encoder, uint8 [...].
        levels: of the type, ascending.

    Returns:
        The code of the lower level, uint8 [...], and alpha, float32 [...].
    """
    table = np.array(levels, dtype=np.float32)
    below = np.clip(np.searchsorted(table, multiples, side="right") - 1, 0, len(levels) - 2).astype(np.uint8)
    is_above, is_below = codes > below + np.uint8(1), codes < below
    lower = np.where(is_above, codes - np.uint8(1), np.where(is_below, codes, below)).astype(np.uint8)
    exact = np.clip((multiples - table[below]) / (table[below + 1] - table[below]), 0, 1)
    near = np.where(codes > lower, np.float32(1 - MOVED), np.float32(MOVED))
    return lower, np.where(is_above | is_below, near, near + SPREAD * (exact - near)).astype(np.float32)


def stage_of(used: float) -> int:
    """The stage after this fraction of the budget."""
    return min(len(SHARES) - 1, int(used * len(SHARES)))


def hardened(nu: torch.Tensor, share: float) -> torch.Tensor:
    """All but this share are rounded for good: those whose alpha is farthest from 0.5.

    Args:
        share: of all weights, below 1, those among them that were rounded before.
    """
    distance = (alpha_of(nu) - 0.5).abs_().flatten()
    first = distance.kthvalue(int(share * distance.numel()) + 1).values
    is_soft = (distance < first).view(nu.shape)
    return torch.where(is_soft, nu, torch.where(nu > 0, HARD, -HARD))


class SoftMatrix:
    """An encoded tensor whose codes and scales are trained, and the linear module that has its weights.

    Args:
        encoded: the tensor.
        rows: unquantized, float32 [rows, n].
        places: for each of its rows the row of the module, int64 [rows].
        bias: of the module.
        device: of the module.

    Attributes:
        module: linear; its weights are those of the encoded tensor until `write` is called.
        nu: float32 [rows, n], rows in the order of the module.
        v: float32 [rows, blocks of a row].
    """

    def __init__(
        self, encoded: Encoded, fmt: Format, rows: Floats, places: npt.NDArray[np.int64], bias: torch.Tensor | None,
        device: torch.device,
    ) -> None:  # fmt: skip
        order = np.empty_like(places)
        order[places] = np.arange(len(places))
        codes, subs = codes_of(encoded.data, fmt), sub_scales(encoded.data, fmt)
        scales = factors(encoded.data, fmt).scales
        numerator, denominator = fmt.unit
        units = np.repeat(scales, fmt.n_sub_blocks, axis=1) * subs * np.float32(numerator / denominator)
        each = np.repeat(units, fmt.sub_block_size, axis=1)
        levels = np.array(fmt.levels, dtype=np.int8)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            multiples = rows / each
        is_fixed = ~np.isfinite(multiples)  # the scale is zero
        if encoded.outliers is not None:
            is_fixed[encoded.outliers.rows, encoded.outliers.columns] = True
        lower, alpha = start(np.where(is_fixed, 0, multiples), codes, fmt.levels)
        lower = np.where(is_fixed, np.minimum(codes, len(levels) - 2), lower).astype(np.uint8)
        kept = np.where(codes > lower, np.float32(HARD), np.float32(-HARD))

        def tensor(values: npt.NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(values[order]).to(device)

        self.encoded, self.format, self._places, self._lower_codes = encoded, fmt, places, lower
        self._lower, self._gap = tensor(levels[lower]), tensor(np.diff(levels)[lower])
        self._scales, self._sub_units = tensor(scales), tensor(subs * np.float32(numerator / denominator))
        self._outliers = placed(encoded.outliers, places)
        self.nu = nn.Parameter(torch.where(tensor(is_fixed), tensor(kept), nu_of(tensor(alpha))))
        self.v = nn.Parameter(torch.zeros(scales.shape, device=device))
        self.module = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None, device="meta")
        if bias is not None:
            self.module.bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.module.weight = nn.Parameter(self._weights(tensor(kept), self._scales))

    def _per_sub_block(self, values: torch.Tensor) -> torch.Tensor:
        """A view of [rows, n] as [rows, sub-blocks of a row, weights of a sub-block]."""
        return values.view(len(values), -1, self.format.sub_block_size)

    def _units(self, scales: torch.Tensor) -> torch.Tensor:
        """What a level of 1 is worth, float32 [rows, sub-blocks of a row, 1]."""
        return (scales.repeat_interleave(self.format.n_sub_blocks, dim=1) * self._sub_units)[..., None]

    def _levels(self, nu: torch.Tensor) -> torch.Tensor:
        """Mixed by alpha, float32 [rows, n]."""
        return alpha_of(nu).mul_(self._gap).add_(self._lower)

    def _weights(self, nu: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The matrix, float32 [rows, n], outliers included."""
        made = (self._per_sub_block(self._levels(nu)) * self._units(scales)).flatten(1)
        if self._outliers is not None:
            rows, columns, values = self._outliers
            made[rows, columns] += values.to(made.device)
        return made

    def _trained_scales(self) -> torch.Tensor:
        return self._scales * (2 * self.v.sigmoid())

    def _stored_scales(self) -> torch.Tensor:
        """The same as fp16, which the file stores."""
        return self._trained_scales().clamp(-FP16_MAX, FP16_MAX).half()

    @torch.no_grad()
    def write(self) -> None:
        """Give the module the weights as they are being trained."""
        self.module.weight.copy_(self._weights(self.nu, self._trained_scales()))

    @torch.no_grad()
    def pull(self) -> None:
        """Turn the gradient of the module's weights, which is removed, into gradients of nu and v."""
        gradient, self.module.weight.grad = self.module.weight.grad, None
        self.nu.grad = self.v.grad = None
        if gradient is None:  # no token reached the module
            return
        steep = self.nu.sigmoid()
        alpha = steep * _STRETCH - _SHIFT
        is_free = (alpha > 0) & (alpha < 1)
        steep.mul_(1 - steep).mul_(_STRETCH).mul_(is_free)
        by_level = self._per_sub_block(gradient) * self._units(self._trained_scales())
        self.nu.grad = by_level.flatten(1).mul_(self._gap).mul_(steep)
        by_unit = (self._per_sub_block(gradient.mul_(self._levels(self.nu)))).sum(dim=2) * self._sub_units
        by_scale = by_unit.view(len(by_unit), -1, self.format.n_sub_blocks).sum(dim=2)
        sigmoid = self.v.sigmoid()
        self.v.grad = by_scale * self._scales * (2 * sigmoid * (1 - sigmoid))

    @torch.no_grad()
    def restart(self, nu: torch.Tensor) -> None:
        """Begin again with this nu, and scales as they were given."""
        self.nu.copy_(nu)
        self.v.zero_()

    @torch.no_grad()
    def harden(self, share: float) -> None:
        """Round all but a share of the weights for good."""
        self.nu.copy_(hardened(self.nu, share))

    @torch.no_grad()
    def finish(self) -> Encoded:
        """Round the last weights and the scales, for the module, too, and return the tensor."""
        self.harden(0.0)
        scales = self._stored_scales()
        self.module.weight.copy_(self._weights(self.nu, scales.float()))
        is_upper = (self.nu > 0).cpu().numpy()[self._places]
        data = with_codes(self.encoded.data, self.format, self._lower_codes + is_upper.astype(np.uint8))
        data = with_scales(data, self.format, scales.cpu().numpy()[self._places])
        return Encoded(data, self.encoded.outliers, self.encoded.why_not)


def error(layer: Layer, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of a sample of the relative squared error of a layer's output.

    Each token counts as much as any other, whatever the norm of its hidden state: the norms of the layers behind
    divide by it. The first token's may be a thousand times that of the others.

    Args:
        hidden: inputs, float32 [1, tokens, width].
        targets: outputs that are wanted, of the same shape.
    """
    squares = (layer.output(hidden) - targets).square().sum(dim=-1)
    return (squares / targets.square().sum(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)).mean()


@dataclass(frozen=True)
class Reconstruction:
    """What the training of a layer has achieved.

    Attributes:
        before: mean relative squared error of the judging samples, as the tensors were given.
        after: the same with the new codes and scales.
        tensors: that the layer has now, by name: the new ones where they are better, and else those given.
    """

    before: float
    after: float
    tensors: Mapping[str, Encoded]

    @property
    def is_better(self) -> bool:
        return self.after < self.before

    @property
    def ratio(self) -> float:
        """The error after over that before; 1 where there was none before."""
        return self.after / self.before if self.before else 1.0


def _judge(layer: Layer, hidden: torch.Tensor, targets: torch.Tensor, samples: Sequence[int]) -> float:
    with torch.no_grad():
        return sum(float(error(layer, hidden[i : i + 1], targets[i : i + 1])) for i in samples) / len(samples)


def _train(
    layer: Layer, matrices: Mapping[str, SoftMatrix], hidden: torch.Tensor, targets: torch.Tensor,
    trained: Sequence[int], budget: Budget, rate: float, report: Callable[[int, float], None],
) -> None:  # fmt: skip
    """Train codes and scales of a layer as `reconstruct` says, all learning rates times `rate`."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [m.nu for m in matrices.values()], "travel": rate * NU_TRAVEL, "weight_decay": 0.0},
            {"params": [m.v for m in matrices.values()], "travel": rate * V_TRAVEL, "weight_decay": V_DECAY},
        ]
    )
    began, step, stage, used = time.monotonic(), 0, -1, 0.0
    while used < 1:
        if (now := stage_of(used)) > stage:
            stage = now
            for matrix in matrices.values():
                matrix.harden(SHARES[stage])
        for matrix in matrices.values():
            matrix.write()
        for i in range(BATCH):
            n = sample_at(trained, step * BATCH + i)
            with torch.autocast(layer.workers.device.type, torch.bfloat16, layer.dtype == torch.bfloat16):
                loss = error(layer, hidden[n : n + 1], targets[n : n + 1]) / BATCH
            loss.backward()  # type: ignore[no-untyped-call]
        for matrix in matrices.values():
            matrix.pull()
        step += 1
        last, used = used, budget.used(step, time.monotonic() - began)
        for group in optimizer.param_groups:
            group["lr"] = group["travel"] * min(min(used, 1.0) - last, 1 / FEWEST_STEPS)
        optimizer.step()
        report(step, used)


def reconstruct(
    layer: Layer, matrices: Mapping[str, SoftMatrix], hidden: torch.Tensor, targets: torch.Tensor,
    trained: Sequence[int], judged: Sequence[int], budget: Budget, report: Callable[[int, float], None],
) -> Reconstruction:  # fmt: skip
    """Train the codes and scales of a layer, whose modules afterwards have the weights of the tensors returned.

    Args:
        layer: its linear modules are those of the matrices; they are trained in its dtype, and judged in float32.
        matrices: by the names of their tensors.
        hidden: inputs of the layer in the quantized model, float32 [samples, tokens, width].
        targets: outputs of the layer in the unquantized model, of the same shape.
        trained: samples that are trained on.
        judged: samples that decide whether the result is kept.
        budget: of this layer, for each of up to two times.
        report: called after each step with its number and the fraction of the budget that is used.
    """
    given = {name: m.module.weight.detach().clone() for name, m in matrices.items()}
    starts = {name: m.nu.detach().clone() for name, m in matrices.items()}
    before = _judge(layer, hidden, targets, judged)
    for rate in RATES:
        _train(layer, matrices, hidden, targets, trained, budget, rate, report)
        tensors = {name: matrix.finish() for name, matrix in matrices.items()}
        after = _judge(layer, hidden, targets, judged)
        if after < before:
            return Reconstruction(before, after, tensors)
        for name, matrix in matrices.items():
            matrix.restart(starts[name])
    with torch.no_grad():
        for name, matrix in matrices.items():
            matrix.module.weight.copy_(given[name])
    return Reconstruction(before, after, {name: matrix.encoded for name, matrix in matrices.items()})
