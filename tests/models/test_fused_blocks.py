"""Blocks with their elementwise kernels, interpreted where there is no GPU, against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kssm.models.kssm import KSSMBlock, KSSMConfig
from kssm.models.kssm_matrix import KSSMMatrixBlock, KSSMMatrixConfig
from kssm.models.stack import Block
from kssm.ops import conv_silu, gated_norm, joint, swiglu
from kssm.ops.conv_silu import kernel_launch
from tests.ops.kernels import DEVICE, ON_GPU, draw

SIZES = {"d_model": 24, "n_layers": 1, "d_inner": 32, "d_mlp": 20}
TOKENS = 11


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every fp32 tensor takes the kernels, and is noted."""
    seen: list[Tensor] = []

    def fuses(x: Tensor) -> bool:
        if x.dtype == torch.float32:
            seen.append(x)
        return x.dtype == torch.float32

    for module in (conv_silu, gated_norm, joint, swiglu):
        monkeypatch.setattr(module, "fuses", fuses)
    if not ON_GPU:  # several spans in a few tokens, where tokens are slow
        monkeypatch.setattr(kernel_launch, "FORWARD", kernel_launch.Cut(4, 32, 1))
        monkeypatch.setattr(kernel_launch, "BACKWARD", kernel_launch.Cut(8, 32, 1))
    return seen


def results(block: Block, device: str, dtype: torch.dtype, *, state: bool) -> list[Tensor]:
    """Outputs, new state and all gradients, rows of unequal lengths."""
    block = copy.deepcopy(block).to(device, dtype)
    x = draw(2, TOKENS, 24, seed=1).to(device, dtype).requires_grad_()
    old = {
        name: draw(2, *shape, seed=5).to(device, dtype).requires_grad_()
        for name, (shape, _) in block.state_spec().items()
    }
    lengths = torch.tensor([TOKENS, 2], device=device)
    y, new = block(x, old if state else None, lengths, None)
    y = torch.where((torch.arange(TOKENS, device=device) < lengths[:, None])[..., None], y, 0)
    outputs = [y, *new.values()]
    weights = [draw(*t.shape, seed=20 + i).to(t) for i, t in enumerate(outputs)]
    leaves = [x, *(old.values() if state else ()), *block.parameters()]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


BLOCKS: dict[str, Callable[[], Block]] = {
    "kssm": lambda: KSSMBlock(KSSMConfig(**SIZES, rank=4, group_size=16)),
    "kssm_matrix": lambda: KSSMMatrixBlock(KSSMMatrixConfig(**SIZES, head_dim=16, pairs=4)),
    "no feed-forward": lambda: KSSMMatrixBlock(
        KSSMMatrixConfig(**{**SIZES, "d_mlp": 0}, head_dim=16, pairs=4)
    ),
}


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_agrees_with_float64(name: str, state: bool, fused: list[Tensor]) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]()
    found = results(block, DEVICE, torch.float32, state=state)
    assert fused
    expected = results(block, "cpu", torch.float64, state=state)
    for a, b in zip(found, expected, strict=True):
        error = (a.cpu().double() - b).norm() / b.norm().clamp_min(1e-9)
        assert error < 1e-4
