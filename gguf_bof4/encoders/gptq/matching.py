"""Whether a tensor of the output is the weight of a module: names suggest it, equal rows prove it.

Converters reorder rows (of queries and keys, for the rotary embedding). GPTQ treats rows independently, so only the
quantized rows have to be put back in the module's order.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def find_rows(tensor: Floats, module: Floats) -> npt.NDArray[np.int64] | None:
    """For each row of the tensor, the row of the module that is the same, bit for bit.

    Args:
        tensor: float32 [rows, n].
        module: float32, the weight of a module.

    Returns:
        int64 [rows], a permutation; None where the rows are not the same ones.
    """
    if tensor.shape != module.shape:
        return None
    if np.array_equal(tensor.view(np.uint32), module.view(np.uint32)):
        return np.arange(len(tensor))
    places: dict[bytes, list[int]] = defaultdict(list)
    for i in reversed(range(len(module))):
        places[module[i].tobytes()].append(i)
    found = np.empty(len(tensor), dtype=np.int64)
    for i, row in enumerate(tensor):
        same = places.get(row.tobytes())
        if not same:
            return None
        found[i] = same.pop()
    return found
