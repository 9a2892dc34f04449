"""Outlier lists for transformers, whose loader of GGUF weights knows nothing of them.

`AutoModelForCausalLM.from_pretrained(folder, gguf_file=...)` reads a file with gguf.GGUFReader and decodes every tensor
with gguf.dequantize. While it does, a reader takes the place of GGUFReader that gives listed tensors their outliers and
does not show the lists, which are no weights.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from types import ModuleType
from typing import Any

import gguf

from gguf_bof4.errors import UserError
from gguf_bof4.lists import LISTED_TYPES, SUFFIX, ListedRows, check_weight, list_name, parse

MODULE = "transformers.modeling_gguf_pytorch_utils"
"""The module of transformers that reads GGUF files."""

FUNCTION = "load_gguf_checkpoint"

_loading = threading.RLock()


def _with_outliers(tensors: Iterable[gguf.ReaderTensor]) -> Iterator[gguf.ReaderTensor]:
    """The tensors of a file without its lists; the data of a listed one is a ListedRows.

    Raises:
        UserError: a list is not valid.
    """
    named = {t.name: t for t in tensors}
    for name, tensor in named.items():
        if name.endswith(SUFFIX):
            weight = named.get(name.removesuffix(SUFFIX))
            check_weight(name.removesuffix(SUFFIX), None if weight is None else weight.tensor_type)
        elif (companion := named.get(list_name(name))) is not None:
            shape = tuple(int(n) for n in reversed(tensor.shape))
            rows = ListedRows(tensor.data, parse(companion.data, name, shape))
            yield tensor._replace(data=rows)  # type: ignore[arg-type]
        else:
            yield tensor


class OutlierReader(gguf.GGUFReader):
    """GGUFReader for programs that decode each of its tensors with gguf.dequantize: outliers are added there.

    Attributes:
        tensors: without the outlier lists.

    Raises:
        UserError: an outlier list is not valid, or the file is one of several parts.
    """

    def __init__(self, path: PathLike[str] | str, mode: Any = "r"):
        super().__init__(path, mode)
        parts = self.fields.get("split.count")
        is_ours = any(int(t.tensor_type) in LISTED_TYPES for t in self.tensors)
        if is_ours and parts is not None and parts.contents() > 1:
            raise UserError(
                f"{fspath(path)} is one of {parts.contents()} parts of a model, and transformers reads one file: "
                "join them with `llama-gguf-split --merge`"
            )
        try:
            self.tensors = list(_with_outliers(self.tensors))
        except UserError as error:
            raise UserError(f"{fspath(path)}: {error}") from error


@contextmanager
def _reading_outliers() -> Iterator[None]:
    """gguf.GGUFReader is OutlierReader: transformers imports it from gguf each time that it loads a file."""
    with _loading:
        before = gguf.GGUFReader
        gguf.GGUFReader = OutlierReader  # type: ignore[misc]
        try:
            yield
        finally:
            gguf.GGUFReader = before  # type: ignore[misc]


def _teach(module: ModuleType) -> None:
    """Wrap the function of transformers that loads GGUF files."""
    load: Callable[..., Any] = getattr(module, FUNCTION)

    @functools.wraps(load)
    def load_with_outliers(*args: Any, **kwargs: Any) -> Any:
        with _reading_outliers():
            return load(*args, **kwargs)

    setattr(module, FUNCTION, load_with_outliers)


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of MODULE: importing it here would import PyTorch."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_teach(module: ModuleType) -> None:
                run(module)
                _teach(module)

            spec.loader.exec_module = run_and_teach  # type: ignore[method-assign]
        return spec


def teach_transformers() -> None:
    """Make transformers apply outlier lists, whether it has been imported already or will be. Once a process."""
    if (module := sys.modules.get(MODULE)) is not None:
        _teach(module)
    else:
        sys.meta_path.insert(0, _Finder())
