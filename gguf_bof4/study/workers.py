"""Independent pieces of work, matrices or chunks of tokens, on several threads that compute on one core each.

PyTorch splits every single operation over its threads and waits for all of them. On matrices of 10^6 numbers, and cores
that other programs use, too, that takes three times the processor time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def set_threads(threads: int) -> None:
    """Use this many threads; 0: the default of PyTorch."""
    if threads:
        torch.set_num_threads(threads)


def _compute_on_one_core() -> None:
    torch.set_num_threads(1)  # of the calling thread


def in_parallel(
    function: Callable[[_Item], _Result], items: Iterable[_Item], done: Callable[[int], None] = lambda count: None
) -> list[_Result]:
    """What a function returns for each item, in their order.

    Args:
        function: called on as many threads as PyTorch has.
        done: called on this thread with the number of results so far.

    Raises:
        Exception: what the function raised for the first item for which it did; items that were not begun are dropped.
    """
    results: list[_Result] = []
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=_compute_on_one_core) as pool:
        try:
            for result in pool.map(function, items):
                results.append(result)
                done(len(results))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results
