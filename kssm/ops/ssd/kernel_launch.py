"""State-space duality on a GPU: chunk states, a scan over chunks, then all chunks at once."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.launch import on_device
from kssm.ops.linear_scan.kernel import hand_on
from kssm.ops.ssd.kernel import backward_kernel, forward_kernel, push_kernel

_CHUNK = 64
_MAX_SIZE, _MAX_STATES = 64, 128


def fits(x: Tensor, b: Tensor) -> bool:
    """Whether heads and states are small enough for a multiprocessor's shared memory."""
    return x.shape[-1] <= _MAX_SIZE and b.shape[-1] <= _MAX_STATES


def ssd_scan_triton(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    precision: str = "tf32x3",
) -> tuple[Tensor, Tensor]:
    """Shapes and results as ``ssd_scan``; all tensors fp32.

    ``precision`` of the products: "tf32x3" is as good as fp32, "tf32" rounds to 10 bits.
    """
    tokens = x.shape[1]
    longest = _CHUNK if b.shape[-1] <= _CHUNK else _CHUNK // 2
    size = min(longest, max(16, triton.next_power_of_2(tokens)))
    x, step, b, c = (_padded(t, -tokens % size) for t in (x, step, b, c))
    y, final = _Ssd.apply(x, step, step.double() * a.double(), b, c, state, size, precision)
    return y[:, :tokens], final


def _padded(tokens: Tensor, missing: int) -> Tensor:
    """Tokens without a step, which change nothing, behind the last."""
    return F.pad(tokens, (0, 0) * (tokens.dim() - 2) + (0, missing)).contiguous()


class _Ssd(torch.autograd.Function):
    """Keeps the inputs and the states between chunks."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        x, step, log_decay, b, c, state, size, precision = given
        launch = _Launch(x, b, size, precision)
        total = launch.chunks(log_decay).cumsum(2)
        until = torch.exp(total[:, :, -1:] - total).float().flatten(1, 2)
        added = launch.push(x, step * until, b)
        starts, final = hand_on(total[:, :, -1].exp().float(), added, state)
        y = launch.forward(x, step, total, b, c, starts)
        ctx.save_for_backward(x, step, total, b, c, starts)
        ctx.launch = launch
        return y, final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, step, total, b, c, starts = ctx.saved_tensors
        launch: _Launch = ctx.launch
        dy = gradients[0].contiguous()
        asked = launch.push(dy, total.exp().float().flatten(1, 2), c)
        whole = total[:, :, -1].exp().float()
        ends, d_state = hand_on(whole, asked, gradients[1], reverse=True)
        found = launch.backward(x, step, total, b, c, dy, starts, ends)
        du, db, dc, d_log = found
        d_step = (du * x).sum(-1)
        groups = (b.shape[2], -1)
        db, dc = (t.unflatten(2, groups).sum(3) for t in (db, dc))
        dx = du * step.unsqueeze(-1)
        return dx, d_step, d_log.double(), db, dc, d_state, None, None


class _Launch:
    """The grid of one call: every head of every chunk."""

    def __init__(self, x: Tensor, b: Tensor, size: int, precision: str) -> None:
        self.size = size
        self.batch, tokens, self.heads, width = x.shape
        self.count = tokens // size
        states = b.shape[3]
        self.grid = (self.batch * self.count * self.heads,)
        self.options: dict[str, Any] = {
            "H": self.heads,
            "G": b.shape[2],
            "P": width,
            "N": states,
            "L": size,
            "BLOCK_P": max(16, triton.next_power_of_2(width)),
            "BLOCK_N": max(16, triton.next_power_of_2(states)),
            "PRECISION": precision,
        }
        self.state = (self.batch, self.count, self.heads, width, states)

    def chunks(self, entry: Tensor) -> Tensor:
        """[B, T, H] -> [B, K, L, H]."""
        return entry.unflatten(1, (self.count, self.size))

    def push(self, x: Tensor, weight: Tensor, b: Tensor) -> Tensor:
        """What each chunk adds to the state [B, K, H, P, N]."""
        out = x.new_empty(self.state)
        with on_device(x.device):
            push_kernel[self.grid](x, weight.contiguous(), b, out, **self.options, num_warps=4)
        return out

    def forward(
        self, x: Tensor, step: Tensor, total: Tensor, b: Tensor, c: Tensor, starts: Tensor
    ) -> Tensor:
        """y [B, T, H, P]."""
        y = torch.empty_like(x)
        with on_device(x.device):
            forward_kernel[self.grid](x, step, total, b, c, starts, y, **self.options, num_warps=4)
        return y

    def backward(
        self,
        x: Tensor,
        step: Tensor,
        total: Tensor,
        b: Tensor,
        c: Tensor,
        dy: Tensor,
        starts: Tensor,
        ends: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See ``backward_kernel``."""
        du = torch.empty_like(x)
        parts = x.new_empty(2, *x.shape[:3], b.shape[3])
        d_log = torch.empty_like(step)
        with on_device(x.device):
            backward_kernel[self.grid](
                x, step, total, b, c, dy, starts, ends,
                du, parts[0], parts[1], d_log, **self.options, num_warps=8,
            )  # fmt: skip
        return du, parts[0], parts[1], d_log
