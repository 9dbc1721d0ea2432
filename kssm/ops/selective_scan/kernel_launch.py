"""The selective scan on a GPU: chunk summaries, a scan over chunks, then all chunks at once."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from kssm.ops.launch import blocks_of, on_device
from kssm.ops.linear_scan.kernel import hand_on
from kssm.ops.selective_scan.kernel import backward_kernel, forward_kernel, summary_kernel

_CHUNK = 64
_SUB = 8
"""States are kept for the backward pass every so many tokens."""


def selective_scan_triton(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Shapes and results as ``selective_scan``; all tensors fp32."""
    return _SelectiveScan.apply(x, step, a, b, c, state)


class _SelectiveScan(torch.autograd.Function):
    """Keeps the inputs and the states before every ``_SUB``-th token."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        x, step, a, b, c = (t.contiguous() for t in given[:5])
        cut = _Cut(x, a)
        rates = a.t().contiguous()
        added = cut.summary(x, step, rates, b, reverse=False)
        starts, final = hand_on(cut.decay(step, rates), added, given[5].mT)
        keep = any(ctx.needs_input_grad)
        y, saved = cut.forward(x, step, rates, b, c, starts, keep=keep)
        if saved is not None:
            ctx.save_for_backward(x, step, a, b, c, saved)
        return y, final.mT.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, step, a, b, c, saved = ctx.saved_tensors
        cut, rates = _Cut(x, a), a.t().contiguous()
        dy = gradients[0].contiguous()
        asked = cut.summary(dy, step, rates, c, reverse=True)
        decay = cut.decay(step, rates)
        ends, d_state = hand_on(decay, asked, gradients[1].mT, reverse=True)
        dx, dstep, da, db, dc = cut.backward(x, step, rates, b, c, dy, saved, ends)
        return dx, dstep, da.t(), db, dc, d_state.mT


class _Cut:
    """The grid of one call: chunks of the tokens times blocks of the channels."""

    def __init__(self, x: Tensor, a: Tensor) -> None:
        self.batch, self.tokens, self.channels = x.shape
        self.states = a.shape[1]
        self.size = min(_CHUNK, blocks_of(self.tokens, _SUB) * _SUB)
        self.chunks = blocks_of(self.tokens, self.size)
        self.saves = blocks_of(self.tokens, _SUB)

    def decay(self, step: Tensor, rates: Tensor) -> Tensor:
        """Decay of every state over each chunk [B, K, N, D]."""
        missing = self.chunks * self.size - self.tokens
        padded = torch.nn.functional.pad(step, (0, 0, 0, missing))
        time = padded.unflatten(1, (self.chunks, self.size)).sum(2)
        return torch.exp(time.unsqueeze(2) * rates)

    def summary(
        self, x: Tensor, step: Tensor, rates: Tensor, b: Tensor, *, reverse: bool
    ) -> Tensor:
        out = x.new_empty(self.batch, self.chunks, self.states, self.channels)
        sizes = (self.tokens, self.chunks, self.size)
        with on_device(x.device):
            summary_kernel[self._grid(32)](
                x, step, _base_2(rates), b, out, *sizes, REVERSE=reverse, **self._options(32)
            )
        return out

    def forward(
        self,
        x: Tensor,
        step: Tensor,
        rates: Tensor,
        b: Tensor,
        c: Tensor,
        starts: Tensor,
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """y and, with ``keep``, the states that the backward pass starts from."""
        y, saved = torch.empty_like(x), None
        if keep:
            saved = x.new_empty(self.batch, self.saves, self.states, self.channels)
        sizes = (self.tokens, self.chunks, self.size, self.saves)
        with on_device(x.device):
            forward_kernel[self._grid(32)](
                x, step, _base_2(rates), b, c, starts, y, saved, *sizes,
                SUB=_SUB, **self._options(32),
            )  # fmt: skip
        return y, saved

    def backward(
        self,
        x: Tensor,
        step: Tensor,
        rates: Tensor,
        b: Tensor,
        c: Tensor,
        dy: Tensor,
        saved: Tensor,
        ends: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, step, rates [N, D], b and c."""
        blocks = blocks_of(self.channels, 16)
        dx, dstep = torch.empty_like(x), torch.empty_like(x)
        parts = (self.batch, self.tokens, blocks, self.states)
        db, dc = x.new_empty(parts), x.new_empty(parts)
        da = x.new_empty(self.batch * self.chunks, self.states, self.channels)
        sizes = (self.tokens, self.chunks, self.size, self.saves)
        with on_device(x.device):
            backward_kernel[self._grid(16)](
                x, step, _base_2(rates), b, c, dy, saved, ends,
                dx, dstep, db, dc, da, *sizes, SUB=_SUB, **self._options(16),
            )  # fmt: skip
        return dx, dstep, da.sum(0), db.sum(2), dc.sum(2)

    def _grid(self, block_d: int) -> tuple[int]:
        return (self.batch * self.chunks * blocks_of(self.channels, block_d),)

    def _options(self, block_d: int) -> dict[str, int]:
        return {
            "D": self.channels,
            "N": self.states,
            "BLOCK_D": block_d,
            "BLOCK_N": triton.next_power_of_2(self.states),
            "num_warps": 1,
        }


def _base_2(rates: Tensor) -> Tensor:
    return rates * math.log2(math.e)
