"""One decoder layer, run over all samples: which linear modules share an input, and the Hessian of that input.

A forward pass of a sample waits in front of each group of modules until they are quantized, so that it is run once, and
not from the start for each group.

Results do not depend on the number of workers: every sample is run on one thread, and every tile of the Hessian is
summed by one worker over the samples in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from gguf_bof4.encoders.gptq.model import LayerInputs, Skeleton
from gguf_bof4.encoders.gptq.precision import add_product
from gguf_bof4.encoders.gptq.weights import Weights

_TOKENS_AT_ONCE = 8192
"""Tokens whose inputs of a module are in memory at a time. A constant, because the order of sums depends on it."""

_TILE = 256
"""Columns of the Hessian that a worker sums at a time."""

T = TypeVar("T")


class _Reached(Exception):
    """Ends the run of a layer once the input of the wanted module is known, or is not wanted any more."""


class Workers:
    """Threads that run torch on one core each; a single thread for a GPU."""

    def __init__(self, threads: int, device: torch.device) -> None:
        self.device = device
        self.count = threads if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))

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


class _Pass:
    """A forward pass of one sample on a thread of its own, which waits wherever it is told to.

    The thread runs only while another one is in `until`, so that no more of them run than there are workers.
    """

    def __init__(self, run: Callable[[], torch.Tensor]) -> None:
        self._run = run
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._found: torch.Tensor | None = None
        self._failure: BaseException | None = None
        self._wanted: nn.Module | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._body, daemon=True)

    def _body(self) -> None:
        torch.set_num_threads(1)
        _inputs.wanted, _inputs.reached = self._wanted, self._wait
        try:
            with torch.inference_mode():
                found = self._run()
            self._found = found if self._wanted is None else None
        except BaseException as failure:
            self._failure = failure
        self._stopped.release()

    def _wait(self, given: torch.Tensor) -> None:
        self._found = given
        self._stopped.release()
        self._go.acquire()
        _inputs.wanted = self._wanted
        if self._abandoned:
            raise _Reached

    def until(self, module: nn.Module | None) -> torch.Tensor:
        """Go on to a module, and return its input; to the end with None, and return the output.

        Raises:
            RuntimeError: the module is not called.
        """
        self._wanted, self._found = module, None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        found, self._found = self._found, None
        return self._checked(found)

    def _checked(self, found: torch.Tensor | None) -> torch.Tensor:
        if self._failure is not None:
            raise self._failure
        if found is None:
            raise RuntimeError("a module was not called")
        return found

    def abandon(self) -> None:
        """End the pass where it waits."""
        if self._thread.is_alive():
            self._abandoned = True
            self._go.release()
            self._thread.join()


@dataclass
class Layer:
    """A decoder layer with its weights.

    Attributes:
        module: of transformers, on the device of the workers.
        arguments: its keyword arguments, which are the same for all samples.
        dtype: in which moments are multiplied, and gradients, float32 or bf16; they are summed in float32.
        passes: forward passes of the first samples, which wait where they are; the others are run anew each time.
    """

    module: nn.Module
    arguments: dict[str, Any]
    workers: Workers
    dtype: torch.dtype = torch.float32
    passes: list[_Pass] = field(default_factory=list)

    @contextmanager
    def passing(self, hidden: torch.Tensor, count: int) -> Iterator[None]:
        """Passes of the first `count` samples go on within the block; on a GPU there are none.

        Args:
            hidden: inputs of the layer, float32 [samples, tokens, width].
        """
        if self.workers.device.type == "cpu":
            rows = [hidden[i : i + 1] for i in range(min(count, len(hidden)))]
            self.passes = [_Pass(partial(self.output, row)) for row in rows]
        try:
            yield
        finally:
            for each in self.passes:
                each.abandon()
            self.passes = []

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Outputs for one sample: float32 [1, tokens, width] on the CPU, from inputs of the same shape."""
        made = self.module(hidden.to(self.workers.device), **self.arguments)
        output: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return output.cpu()

    def advance(self, hidden: torch.Tensor) -> None:
        """Replace inputs of the layer by its outputs, float32 [samples, tokens, width], in place."""

        def step(i: int) -> None:
            made = self.passes[i].until(None) if i < len(self.passes) else self.output(hidden[i : i + 1])
            hidden[i : i + 1] = made

        self.workers.map(step, range(len(hidden)))
        self.passes = []

    def input_of(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """Inputs of a module for one sample, float32 [tokens, n]; modules after it are not run. Needs `watched`."""
        seen: list[torch.Tensor] = []

        def keep(given: torch.Tensor) -> None:
            seen.append(given)
            raise _Reached

        _inputs.wanted, _inputs.reached = self.module.get_submodule(name), keep
        try:
            self.module(hidden.to(self.workers.device), **self.arguments)
        except _Reached:
            pass
        finally:
            _inputs.wanted = None
        if not seen:
            raise RuntimeError(f"module {name} was not called")
        return seen[0].reshape(-1, seen[0].shape[-1])

    def _input_in_pass(self, name: str, hidden: torch.Tensor, i: int) -> torch.Tensor:
        """The same for the i-th sample, by its pass where it has one."""
        if i >= len(self.passes):
            return self.input_of(name, hidden[i : i + 1])
        seen = self.passes[i].until(self.module.get_submodule(name))
        return seen.reshape(-1, seen.shape[-1])

    @contextmanager
    def watched(self, names: Iterable[str]) -> Iterator[None]:
        """`input_of` and passes stop at these modules."""
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
        """Mean over all tokens of x x^T, x the input of a module, without passes: float32 [n, n], on the device."""
        with self.watched([name]):
            batches = self._batches(lambda i: self.input_of(name, hidden[i : i + 1]), hidden)
            moments = self._summed(hidden, ((inputs, None) for inputs in batches), [None])
        return moments[0].hessian

    def moments(
        self,
        name: str,
        hidden: torch.Tensor,
        original: Layer,
        unquantized: torch.Tensor,
        weights: Sequence[torch.Tensor | None] = (None,),
        matrix: torch.Tensor | None = None,
    ) -> list[Moments]:
        """Means over all tokens of x x^T and of (y - x) x^T, x the input of a module, y that in the unquantized model.

        Args:
            hidden: inputs of the layer in the quantized model, float32 [samples, tokens, width].
            original: the layer with unquantized weights.
            unquantized: its inputs in the unquantized model, float32 [samples, tokens, width].
            weights: of the tokens, each float32 [samples, tokens] of mean 1; None: all count the same.
            matrix: W, float32 [rows, n]: the drift is the mean of W (y - x) x^T, which takes less time than that of
                (y - x) x^T where there are fewer than n / 2 rows.

        Returns:
            The moments with each of the weights.
        """

        def moved(own: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            # not in place: the input of a module may be that of the layer, which is needed again
            difference = (own - x).to(self.dtype)
            return difference if matrix is None else difference @ matrix.T.to(self.dtype)

        with self.watched([name]), original.watched([name]):
            batches = zip(
                self._batches(lambda i: self._input_in_pass(name, hidden, i), hidden),
                original._batches(lambda i: original._input_in_pass(name, unquantized, i), unquantized),
                strict=True,
            )
            both = ((inputs, self.workers.map(lambda pair: moved(*pair), zip(own, inputs, strict=True)))
                    for inputs, own in batches)  # fmt: skip
            return self._summed(hidden, both, weights)

    def _batches(self, input_of: Callable[[int], torch.Tensor], hidden: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Inputs of a module, for as many samples as are in memory at a time.

        Args:
            input_of: gives that of the i-th sample.
        """
        at_once = max(1, _TOKENS_AT_ONCE // hidden.shape[1])
        for start in range(0, len(hidden), at_once):
            yield self.workers.map(input_of, range(start, min(start + at_once, len(hidden))))

    def _summed(
        self,
        hidden: torch.Tensor,
        batches: Iterable[tuple[list[torch.Tensor], list[torch.Tensor] | None]],
        weights: Sequence[torch.Tensor | None],
    ) -> list[Moments]:
        """Means over all tokens of x x^T and, where there are differences d, of d x^T."""
        totals: list[Moments] = []
        first = 0
        for inputs, differences in batches:
            n = inputs[0].shape[1]
            if not totals:
                zeros = partial(torch.zeros, device=self.workers.device)
                rows = 0 if differences is None else differences[0].shape[1]
                totals = [Moments(zeros(n, n), zeros(rows, n)) for _ in weights]
            for total, own in zip(totals, weights, strict=True):
                x, d = inputs, differences
                if own is not None:
                    roots = own[first : first + len(inputs)].sqrt().to(self.workers.device)
                    x = [i * root[:, None] for i, root in zip(inputs, roots, strict=True)]
                    d = d and [i * root[:, None] for i, root in zip(d, roots, strict=True)]
                if self.dtype != torch.float32:  # one product for all samples: its sums are rounded once
                    x, d = [torch.cat(x).to(self.dtype)], d and [torch.cat(d).to(self.dtype)]
                # the largest first, so that none of them is the last to start
                self.workers.map(partial(_add_tile, total, x, d), reversed(range(0, n, _TILE)))
            first += len(inputs)
        for total in totals:
            for part in (total.hessian, total.drift):
                part.div_(hidden.shape[0] * hidden.shape[1])
            _mirror(total.hessian)
        return totals


@dataclass(frozen=True)
class Moments:
    """Means over tokens, on the device.

    Attributes:
        hessian: of x x^T, x the input of a module, float32 [n, n].
        drift: of (y - x) x^T, y the input in the unquantized model, float32 [n, n]; of a matrix W, of W (y - x) x^T,
            float32 [rows, n]; without an unquantized model [0, n].
    """

    hessian: torch.Tensor
    drift: torch.Tensor


def _add_tile(
    total: Moments, inputs: list[torch.Tensor], differences: list[torch.Tensor] | None, first: int
) -> None:
    """Add a tile of columns; of the Hessian only its part above the diagonal."""
    last = min(first + _TILE, len(total.hessian))
    for x in inputs:
        add_product(total.hessian[:last, first:last], x[:, :last], x[:, first:last])
    for x, off in zip(inputs, differences or (), strict=differences is not None):
        add_product(total.drift[:, first:last], off, x[:, first:last])


def _mirror(hessian: torch.Tensor) -> None:
    """Give a matrix below its diagonal what it has above; only tiles on and above the diagonal were summed."""
    for first in range(0, len(hessian), _TILE):
        last = min(first + _TILE, len(hessian))
        hessian[first:last, :first] = hessian[:first, first:last].T
        tile = hessian[first:last, first:last]
        tile.copy_(tile.triu() + tile.triu(1).T)


class _Inputs(threading.local):
    """The module whose input is wanted for the sample that this thread runs, and what is called with that input."""

    wanted: nn.Module | None = None
    reached: Callable[[torch.Tensor], None]


_inputs = _Inputs()


def _stop_if_wanted(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    if module is _inputs.wanted:
        _inputs.wanted = None  # the first call counts
        _inputs.reached(arguments[0])


def load_layer(
    skeleton: Skeleton, weights: Weights, i: int, inputs: LayerInputs, workers: Workers,
    dtype: torch.dtype = torch.float32,
) -> Layer:  # fmt: skip
    """Read the weights of a decoder layer.

    Args:
        dtype: in which moments are multiplied.

    Raises:
        UserError: the source does not have one of them.
    """
    prefix = f"{skeleton.layers_name}.{i}."
    weights.fill(skeleton, [prefix + name for name, _ in skeleton.layers[i].named_parameters()])
    module = skeleton.layers[i].to(workers.device)
    return Layer(module, to_device(inputs.arguments[i], workers.device), workers, dtype)
