"""WKV-6 on a GPU: states between chunks as matrix products, tokens walked inside each chunk.

One kernel does the forward pass and the three sums of the backward pass: all of them read a
decaying matrix before a token changes it. There is no product of a chunk's decays to divide by,
so nothing overflows however strong they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kssm.ops.launch import blocks_of, on_device
from kssm.ops.linear_scan.kernel import hand_on

_CHUNK = 64


@triton.jit(do_not_specialize=["tokens", "chunks", "size"])
def walk_kernel(
    read_ptr, inner_ptr, lane_ptr, decay_ptr, start_ptr, out_ptr, tokens, chunks, size, heads,
    Q: tl.constexpr, P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr,
    DECAY_ON_LANES: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """out_t = read_t M ; M <- diag(decay_t) M + inner_t^T lane_t, for one chunk and BLOCK_P lanes.

    read, inner: [B, T, H, Q]; lane, out: [B, T, H, P]; decay has Q or P numbers, and then it
    multiplies rows or columns of M. start: [B, K, H, Q, P], M as the walk finds it; with REVERSE
    the walk begins at the chunk's last token. T = K size.
    """
    blocks: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    pid = tl.program_id(0)
    block = pid % blocks
    head = (pid // blocks) % heads
    chunk = (pid // (blocks * heads)).to(tl.int64)  # counts the chunks of all rows
    q = tl.arange(0, BLOCK_Q)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    in_q, in_p = q < Q, p < P
    start = start_ptr + (chunk * heads + head) * (Q * P)
    mask = in_q[:, None] & in_p[None, :]
    matrix = tl.load(start + q[:, None] * P + p[None, :], mask=mask, other=0.0)
    first = (chunk // chunks) * tokens + (chunk % chunks) * size
    for i in range(size):
        if REVERSE:
            token = (first + size - 1 - i) * heads + head
        else:
            token = (first + i) * heads + head
        read = tl.load(read_ptr + token * Q + q, mask=in_q, other=0.0)
        inner = tl.load(inner_ptr + token * Q + q, mask=in_q, other=0.0)
        lane = tl.load(lane_ptr + token * P + p, mask=in_p, other=0.0)
        out = tl.sum(read[:, None] * matrix, axis=0)
        tl.store(out_ptr + token * P + p, out, mask=in_p)
        update = inner[:, None] * lane[None, :]
        if DECAY_ON_LANES:
            decay = tl.load(decay_ptr + token * P + p, mask=in_p, other=0.0)
            matrix = matrix * decay[None, :] + update
        else:
            decay = tl.load(decay_ptr + token * Q + q, mask=in_q, other=0.0)
            matrix = matrix * decay[:, None] + update


def wkv6_triton(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``wkv6``; all tensors fp32."""
    return _Wkv6.apply(r, k, v, log_decay, bonus, initial_state)


class _Tokens(NamedTuple):
    """r, k, log_decay [B, T, H, K] and v [B, T, H, V], T a multiple of ``size``."""

    r: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    size: int

    @classmethod
    def padded(cls, *tokens: Tensor) -> _Tokens:
        """Whole chunks: tokens of zeros, which change nothing, behind the last."""
        size = min(_CHUNK, tokens[0].shape[1])
        return cls(*(_padded(t, size) for t in tokens), size)

    def chunks(self, entry: Tensor) -> Tensor:
        """[B, T, H, X] -> [B, K, H, size, X]."""
        return entry.unflatten(1, (-1, self.size)).transpose(2, 3)

    def until_end(self) -> Tensor:
        """Decay that a token's update still meets in its chunk, [B, K, H, size, K]."""
        return _later(_next(self.chunks(self.log_decay))).exp()

    def since_start(self) -> Tensor:
        """Decay that a token's read has met in its chunk, [B, K, H, size, K]."""
        before = F.pad(self.chunks(self.log_decay)[..., :-1, :], (0, 0, 1, 0))
        return before.cumsum(-2).exp()

    def whole(self) -> Tensor:
        """Decay of each chunk, [B, K, H, K]."""
        return self.chunks(self.log_decay).sum(-2).exp()


def _next(entry: Tensor) -> Tensor:
    """Each token's successor in its chunk [..., size, X], zeros at the end."""
    return F.pad(entry[..., 1:, :], (0, 0, 0, 1))


def _later(entry: Tensor) -> Tensor:
    """Sums over a token and those after it in its chunk [..., size, X]."""
    return entry.flip(-2).cumsum(-2).flip(-2)


def _padded(tokens: Tensor, size: int) -> Tensor:
    missing = -tokens.shape[1] % size
    return F.pad(tokens, (0, 0, 0, 0, 0, missing)) if missing else tokens.contiguous()


class _Wkv6(torch.autograd.Function):
    """Keeps the inputs and the states between chunks."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        r, k, v, log_decay, bonus, initial = given
        tokens = _Tokens.padded(r, k, v, log_decay)
        added = (tokens.chunks(tokens.k) * tokens.until_end()).mT @ tokens.chunks(tokens.v)
        starts, final = hand_on(tokens.whole(), added, initial)
        decay = tokens.log_decay.exp()
        y = _walk(tokens.r, tokens.k, tokens.v, decay, starts, tokens.size)
        own = (tokens.r * bonus * tokens.k).sum(-1, keepdim=True)
        y.addcmul_(own, tokens.v)
        ctx.save_for_backward(*tokens[:4], bonus, starts, final)
        ctx.size, ctx.length = tokens.size, r.shape[1]
        return y[:, : r.shape[1]], final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        *entries, bonus, starts, final = ctx.saved_tensors
        tokens = _Tokens(*entries, ctx.size)
        dy = _padded(gradients[0].to(tokens.r.dtype), ctx.size)
        ends, d_initial = _adjoint_states(tokens, dy, gradients[1].to(starts.dtype))
        r, k, v, log_decay = tokens[:4]
        decay, size = log_decay.exp(), tokens.size
        dr = _walk(dy, v, k, decay, starts.mT.contiguous(), size, lanes=True)
        dk = _walk(v, dy, r, decay, ends.mT.contiguous(), size, lanes=True, reverse=True)
        dv = _walk(k, r, dy, decay, ends, size, reverse=True)
        after = torch.cat([starts[:, 1:], final.unsqueeze(1)], dim=1)
        d_log = _decay_gradient(tokens, dr, dk, (after * ends).sum(-1))
        match = (dy * v).sum(-1, keepdim=True)
        d_bonus = (match * r * k).sum((0, 1))
        dr.addcmul_(match, bonus * k)
        dk.addcmul_(match, bonus * r)
        dv.addcmul_((r * bonus * k).sum(-1, keepdim=True), dy)
        dr, dk, dv, d_log = (t[:, : ctx.length] for t in (dr, dk, dv, d_log))
        return dr, dk, dv, d_log, d_bonus, d_initial


def _adjoint_states(tokens: _Tokens, dy: Tensor, d_final: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the states after each chunk [B, K, H, K, V] and of the first state."""
    asked = (tokens.chunks(tokens.r) * tokens.since_start()).mT @ tokens.chunks(dy)
    return hand_on(tokens.whole(), asked, d_final, reverse=True)


def _decay_gradient(tokens: _Tokens, dr: Tensor, dk: Tensor, at_end: Tensor) -> Tensor:
    """Gradient of log_decay [B, T, H, K] from those of the recurrent reads and updates.

    With P the running sum of log_decay in a chunk, a read is a function of r exp(P of the token
    before), an update of k exp(-P) and the chunk's end of exp(P of the last token).
    """
    read, update = tokens.chunks(tokens.r * dr), tokens.chunks(tokens.k * dk)
    total = _later(_next(read) - update) + at_end.unsqueeze(-2)
    return total.transpose(2, 3).flatten(1, 2)


def _walk(
    read: Tensor,
    inner: Tensor,
    lane: Tensor,
    decay: Tensor,
    starts: Tensor,
    size: int,
    *,
    lanes: bool = False,
    reverse: bool = False,
) -> Tensor:
    """Launch ``walk_kernel``; all tensors contiguous."""
    batch, tokens, heads, inner_size = read.shape
    lane_size = lane.shape[-1]
    block_q = triton.next_power_of_2(inner_size)
    block_p = min(triton.next_power_of_2(lane_size), 32 if block_q <= 64 else 16)
    chunks = tokens // size
    out = torch.empty_like(lane)
    with on_device(read.device):
        walk_kernel[(batch * chunks * heads * blocks_of(lane_size, block_p),)](
            read, inner, lane, decay, starts, out, tokens, chunks, size, heads,
            Q=inner_size, P=lane_size, BLOCK_Q=block_q, BLOCK_P=block_p,
            DECAY_ON_LANES=lanes, REVERSE=reverse, num_warps=1,
        )  # fmt: skip
    return out
