"""How the reference models and texts are made: rescaled channels, dithered grids, prose of HTML pages."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from gguf_bof4.reference_models import dither, rescale_channels
from gguf_bof4.reference_texts import prose

Vector = npt.NDArray[np.float64]


def test_prose_leaves_out_code_and_navigation() -> None:
    page = (
        "<html><head><title>T</title></head><body><nav>menu</nav><h1>Heading</h1>"
        "<p>One  <em>two</em> &amp; three.</p><pre>let x;</pre><p>Four.</p></body></html>"
    )
    assert prose(page) == "Heading\n\nOne two & three.\n\nFour."


def test_rescaled_channels_compute_the_same() -> None:
    rng = np.random.default_rng(1)
    width, hidden, heads, kv_heads = 8, 12, 4, 2
    shapes = {
        "attn_norm": (width,), "attn_q": (width, width), "attn_k": (width // 2, width), "attn_v": (width // 2, width),
        "attn_output": (width, width), "ffn_norm": (width,), "ffn_gate": (hidden, width), "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
    }  # fmt: skip
    tensors = {f"blk.0.{n}.weight": rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    tensors["blk.0.attn_v.bias"] = rng.standard_normal(width // 2).astype(np.float32)
    x = rng.standard_normal(width)

    def products() -> list[Vector]:
        t = {name.removeprefix("blk.0."): w.astype(np.float64) for name, w in tensors.items()}
        normed = {n: t[f"{n}_norm.weight"] * x for n in ("attn", "ffn")}
        value = t["attn_v.weight"] @ normed["attn"] + t["attn_v.bias"]
        per_query_head = value.reshape(kv_heads, -1).repeat(heads // kv_heads, axis=0).reshape(-1)
        gate, up = t["ffn_gate.weight"] @ normed["ffn"], t["ffn_up.weight"] @ normed["ffn"]
        return [
            t["attn_q.weight"] @ normed["attn"], t["attn_k.weight"] @ normed["attn"],
            t["attn_output.weight"] @ per_query_head, gate, t["ffn_down.weight"] @ (np.tanh(gate) * up),
        ]  # fmt: skip

    before, weights = products(), {name: w.copy() for name, w in tensors.items()}
    rescale_channels(tensors, layers=1, kv_heads=kv_heads, heads=heads)
    for name, w in tensors.items():
        assert not np.isclose(w, weights[name]).all(), name
    for old, new in zip(before, products(), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5)


def test_dithering_fills_the_steps_of_the_grid() -> None:
    rng = np.random.default_rng(2)
    step = np.float32(0.25)
    grid = (rng.integers(-8, 8, (64, 32)) * step).astype(np.float32)
    dithered = grid.copy()
    dither(dithered)
    assert (np.abs(dithered - grid) <= step / 2).all()
    assert np.std(dithered - grid) == pytest.approx(step / math.sqrt(12), rel=0.05)  # uniform
