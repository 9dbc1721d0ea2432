"""The Transformer's step kernel against the model's own step in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kssm.models.transformer import TransformerBlock, TransformerConfig
from tests.ops.kernels import DEVICE, draw, worst

pytest.importorskip("triton")

from kssm.ops.ring_step import ring_step_triton_

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NaNs

ROWS, SLOTS = 3, torch.tensor([4, 2, 5])


@pytest.mark.parametrize("with_dt", [False, True])
@pytest.mark.parametrize("seen", [0.0, 3.0, 7.0, 12.0])
@pytest.mark.usefixtures("poisoned")
def test_a_token(with_dt, seen):
    config = TransformerConfig(
        d_model=12, n_layers=1, n_heads=4, n_kv_heads=2, head_size=6, window=7
    )
    torch.manual_seed(0)
    block = TransformerBlock(config).double().requires_grad_(False)
    arena = {
        name: draw(6, *shape, seed=i).double()
        for i, (name, (shape, _)) in enumerate(block.state_spec().items())
    }
    arena["count"] = torch.full((6, 1), seen, dtype=torch.float64)
    arena["phase"] = arena["phase"] / 8
    before = {name: entry.float() for name, entry in arena.items()}
    x = draw(ROWS, 12, seed=9).double()
    x[2, 0] = torch.nan
    dt = torch.tensor([0.5, 1.0, 300.0]) if with_dt else None
    expected = block.step_(x, arena, SLOTS, dt)

    rings = [before[name].clone().to(DEVICE) for name in ("keys", "values", "count", "phase")]
    packed = block.qkv(block.attention_norm(x)).float().to(DEVICE)
    own_dt = None if dt is None else dt.to(DEVICE)
    step: Any = ring_step_triton_
    y = step(packed, *rings, SLOTS.to(DEVICE), own_dt, config.rope_theta)
    found = block._finish(x, y.cpu().double())
    assert worst(found[:2], expected[:2]) <= 1e-5
    assert found[2].isnan().all()
    for name, ring in zip(("keys", "values", "count", "phase"), rings, strict=True):
        assert worst(ring.cpu()[[2, 4]], arena[name][[2, 4]]) <= 1e-5, name
        assert torch.equal(ring.cpu()[[0, 1, 3, 5]], before[name][[0, 1, 3, 5]]), name
