"""Upstream's lazy tensors as sources.

In upstream's converter every tensor is a graph of torch operations. Most graphs are trivial: a tensor of a safetensors
file, that tensor cast from bfloat16 to float32, or a stack of such tensors (the experts of a layer). These are read
from the file in runs of rows, in their own precision; the cast is exact, so only memory use differs. Every other graph
is computed when the tensor is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as TensorType

from gguf_bof4.convert.sources import Bytes, Computed, Source, Stacked, type_of
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Tensor

_PINNED: Any = gguf
"""The pinned tree's gguf package, which has names that the installed one lacks."""

_SAFETENSORS_TYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}


def _lazy_in(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _lazy_in(item)
    elif isinstance(value, gguf.LazyBase):
        yield value


def evaluate(root: Any) -> Any:
    """The value of a lazy tensor; an array that is not lazy is its own value.

    Unlike upstream's to_eager, it frees every intermediate result after its last use and stores none in the graph; a
    later tensor that shares a part of the graph computes that part again.
    """
    if not isinstance(root, _PINNED.LazyBase):
        return root
    uses: Counter[int] = Counter()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        uses[id(node)] += 1
        if uses[id(node)] == 1 and node._data is None:
            waiting.extend(_lazy_in(node._args))
    values: dict[int, Any] = {}

    def value(node: Any) -> Any:
        if node._data is not None:
            return node._data
        key = id(node)
        if key not in values:
            values[key] = node._func(*gguf.LazyBase._recurse_apply(node._args, value), **node._kwargs)
        uses[key] -= 1
        return values[key] if uses[key] else values.pop(key)

    return value(root)


@dataclass
class Chunked:
    """A tensor that upstream loads in chunks of rows (gguf.LazyChunkedTensor).

    Attributes:
        chunks: each returns float32 [rows, columns]; they follow each other.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    chunks: list[Callable[[], npt.NDArray[Any]]]
    qtype: TensorType = TensorType.F32
    _next: int = 0
    _rest: npt.NDArray[Any] | None = field(default=None, repr=False)

    def read_rows(self, first: int, count: int) -> Bytes:
        """The next `count` rows [count, bytes of a row]; `first` can only be where the last call ended, or 0."""
        if first == 0:
            self._next, self._rest = 0, None
        pieces = []
        while count:
            if self._rest is None or not len(self._rest):
                self._rest = np.asarray(self.chunks[self._next](), dtype=np.float32).reshape(-1, self.shape[-1])
                self._next += 1
            pieces.append(self._rest[:count])
            count -= len(pieces[-1])
            self._rest = self._rest[len(pieces[-1]) :]
        return np.ascontiguousarray(np.concatenate(pieces)).view(np.uint8)


def _torch_source(name: str, lazy: Any, path: Path) -> Source | None:
    """The source of a trivial graph of torch operations, or None."""
    args, shape = lazy._args, tuple(int(n) for n in lazy._meta.shape)
    if lazy._data is not None or not shape:
        return None
    if len(args) == 1 and isinstance(args[0], gguf.utility.LocalTensor):
        qtype = _SAFETENSORS_TYPES.get(args[0].dtype)
        where = args[0].data_range
        if qtype is None or tuple(args[0].shape) != shape:
            return None
        return Tensor(name, qtype, shape, Path(where.filename), int(where.offset), int(where.size))
    if lazy._func is torch.stack:
        dim = lazy._kwargs.get("dim", args[1] if len(args) > 1 else 0)
        parts = [_torch_source(name, part, path) or _float_source(name, part, path) for part in args[0]]
        same = tuple(part for part in parts if part is not None and part.qtype == getattr(parts[0], "qtype", None))
        return Stacked(name, shape, path, same) if dim == 0 and len(same) == len(parts) else None
    is_cast = (
        len(args) == 2
        and args[1] is torch.float32
        and not lazy._kwargs
        and isinstance(args[0], gguf.LazyBase)
        and args[0]._meta.dtype == torch.bfloat16
        and lazy._meta.dtype == torch.float32
        and tuple(args[0]._meta.shape) == shape  # .view(torch.float32) would change it
    )
    return _torch_source(name, args[0], path) if is_cast else None


def _float_source(name: str, lazy: Any, path: Path) -> Source | None:
    """A source that computes a tensor of floats which numpy has, or None."""
    return _computed(name, lazy, path) if lazy._meta.dtype in {torch.float32, torch.float16} else None


def _computed(name: str, lazy: Any, path: Path) -> Source:
    """A source that evaluates a lazy torch or numpy tensor."""
    meta = lazy._meta
    dtype = np.dtype(str(meta.dtype).removeprefix("torch.")) if isinstance(meta, torch.Tensor) else meta.dtype
    shape = tuple(int(n) for n in meta.shape) or (1,)

    def compute() -> npt.NDArray[Any]:
        try:
            return np.asarray(evaluate(lazy)).reshape(shape)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{path}: tensor {name} cannot be computed: {error}") from error

    return Computed(name, type_of(np.empty(0, dtype)), shape, path, compute)


def source_of(name: str, data: Any, path: Path) -> Source:
    """A source for floats or integers that upstream's converter gives to its writer.

    Args:
        data: numpy array, gguf.LazyNumpyTensor or gguf.LazyChunkedTensor.
        path: the folder that messages name.

    Raises:
        ValueError: GGUF has no type for its elements.
    """
    if isinstance(data, _PINNED.LazyChunkedTensor):
        return Chunked(name, tuple(int(n) for n in data.shape), path, data._chunks)
    if isinstance(data, _PINNED.LazyBase):
        if (
            len(data._args) == 1
            and isinstance(data._args[0], gguf.LazyBase)
            and isinstance(data._args[0]._meta, torch.Tensor)
        ):
            trivial = _torch_source(name, data._args[0], path)
            if trivial is not None and trivial.shape == tuple(data.shape):
                return trivial
        return _computed(name, data, path)
    array = np.asarray(data)
    return Computed(name, type_of(array), array.shape or (1,), path, lambda: array.reshape(array.shape or (1,)))
