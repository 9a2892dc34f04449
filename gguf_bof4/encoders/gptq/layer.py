"""One decoder layer, run over all samples: which linear modules share an input, and the Hessian of that input.

Results do not depend on the number of workers: every sample is run on one thread, and every tile of the Hessian is
summed by one worker over the samples in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

_TOKENS_AT_ONCE = 8192
"""Tokens whose inputs of a module are in memory at a time. A constant, because the order of sums depends on it."""

_TILE = 256
"""Columns of the Hessian that a worker sums at a time."""

T = TypeVar("T")


class _Reached(Exception):
    """Ends the run of a layer once the input of the wanted module is known."""


class Workers:
    """Threads that run torch on one core each; a single thread for a GPU."""

    def __init__(self, threads: int, device: torch.device) -> None:
        self.device = device
        self._count = threads if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._count, initializer=torch.set_num_threads, initargs=(1,))

    def map(self, call: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """Results in the order of the items."""

        def quietly(item: Any) -> T:
            with torch.inference_mode():  # is local to a thread
                return call(item)

        futures = [self._pool.submit(quietly, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors of nested tuples, lists and dictionaries, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value


@dataclass
class Layer:
    """A decoder layer with its weights.

    Attributes:
        module: of transformers, on the device of the workers.
        arguments: its keyword arguments, which are the same for all samples.
    """

    module: nn.Module
    arguments: dict[str, Any]
    workers: Workers

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Outputs for one sample: float32 [1, tokens, width] on the CPU, from inputs of the same shape."""
        made = self.module(hidden.to(self.workers.device), **self.arguments)
        output: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return output.cpu()

    def advance(self, hidden: torch.Tensor) -> None:
        """Replace inputs of the layer by its outputs, float32 [samples, tokens, width], in place."""

        def step(i: int) -> None:
            hidden[i : i + 1] = self.output(hidden[i : i + 1])

        self.workers.map(step, range(len(hidden)))

    def input_of(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Inputs of a module for one sample, float32 [tokens, n]; modules after it are not run. Needs `watched`."""
        place = _inputs
        place.wanted, place.seen = self.module.get_submodule(name), None
        try:
            self.module(hidden.to(self.workers.device), **self.arguments)
        except _Reached:
            pass
        finally:
            place.wanted = None
        seen: torch.Tensor | None = getattr(place, "seen", None)
        if seen is None:
            raise RuntimeError(f"module {name} was not called")
        return seen.reshape(-1, seen.shape[-1])

    @contextmanager
    def watched(self, names: Iterable[str]) -> Iterator[None]:
        """`input_of` works for these modules."""
        hooks = [self.module.get_submodule(name).register_forward_pre_hook(_stop_if_wanted) for name in names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def groups(self, names: Iterable[str], hidden: torch.Tensor) -> list[list[str]]:
        """Modules in the order in which one sample calls them, those that share an input in one list."""
        calls: list[tuple[str, torch.Tensor]] = []

        def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _, arguments: calls.append((name, arguments[0]))

        hooks = [self.module.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
        try:
            self.output(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        found: list[tuple[torch.Tensor, list[str]]] = []
        seen = set()
        for name, given in calls:
            if name in seen:
                continue
            seen.add(name)
            if found and found[-1][0] is given:
                found[-1][1].append(name)
            else:
                found.append((given, [name]))
        return [names for _, names in found]

    def hessian(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Mean over all tokens of x x^T, x the input of a module: float32 [n, n], on the device."""
        with self.watched([name]):
            batches = ((x, None) for x in self._batches(name, hidden))
            total, _ = self._summed(hidden, batches)
        return total

    def hessian_and_drift(
        self, name: str, hidden: torch.Tensor, original: Layer, unquantized: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Means over all tokens of x x^T and of (y - x) x^T, x the input of a module, y that in the unquantized model.

        Args:
            hidden: inputs of the layer in the quantized model, float32 [samples, tokens, width].
            original: the layer with unquantized weights.
            unquantized: its inputs in the unquantized model, float32 [samples, tokens, width].

        Returns:
            Two float32 [n, n], on the device.
        """
        with self.watched([name]), original.watched([name]):
            batches = zip(self._batches(name, hidden), original._batches(name, unquantized), strict=True)
            # not in place: the input of a module may be that of the layer, which is needed again
            moved = ((inputs, [y - x for x, y in zip(inputs, own, strict=True)]) for inputs, own in batches)
            total, drift = self._summed(hidden, moved)
        assert drift is not None
        return total, drift

    def _batches(self, name: str, hidden: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Inputs of a module, for as many samples as are in memory at a time."""
        at_once = max(1, _TOKENS_AT_ONCE // hidden.shape[1])
        for start in range(0, len(hidden), at_once):
            rows = [h[None] for h in hidden[start : start + at_once]]
            yield self.workers.map(lambda h: self.input_of(name, h), rows)

    def _summed(
        self, hidden: torch.Tensor, batches: Iterable[tuple[list[torch.Tensor], list[torch.Tensor] | None]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Means over all tokens of x x^T and, where there are differences d, of d x^T."""
        totals: list[torch.Tensor] = []
        for inputs, differences in batches:
            n = inputs[0].shape[1]
            if not totals:
                totals = [torch.zeros(n, n, device=self.workers.device) for _ in range(1 if differences is None else 2)]
            tile = partial(_add_tile, totals, inputs, differences)
            # the largest first, so that none of them is the last to start
            self.workers.map(tile, reversed(range(0, n, _TILE)))
        for total in totals:
            total.div_(hidden.shape[0] * hidden.shape[1])
        # only tiles on and above the diagonal were summed
        hessian = totals[0].triu_()
        hessian += hessian.triu(1).T
        return hessian, totals[1] if len(totals) > 1 else None


def _add_tile(
    totals: list[torch.Tensor], inputs: list[torch.Tensor], differences: list[torch.Tensor] | None, first: int
) -> None:
    """Add a tile of columns; of the Hessian only its part above the diagonal."""
    last = min(first + _TILE, len(totals[0]))
    for x in inputs:
        totals[0][:last, first:last].addmm_(x[:, :last].T, x[:, first:last])
    for x, off in zip(inputs, differences or (), strict=differences is not None):
        totals[1][:, first:last].addmm_(off.T, x[:, first:last])


class _Inputs(threading.local):
    """The module whose input is wanted, and that input, for the sample that this thread runs."""

    wanted: nn.Module | None = None
    seen: torch.Tensor | None = None


_inputs = _Inputs()


def _stop_if_wanted(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    if module is _inputs.wanted:
        _inputs.seen = arguments[0]
        raise _Reached
