"""Triton kernels of the linear scan: a program walks the tokens of a block of channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.ops.launch import blocks_of, on_device

_BLOCK = 64
_UNROLL = 8


@triton.jit
def _load(ptr, index, mask, PAIRS: tl.constexpr):
    """Real and imaginary parts; the imaginary part of a real number is no load but zero."""
    if PAIRS:
        re = tl.load(ptr + 2 * index, mask=mask, other=0.0)
        im = tl.load(ptr + 2 * index + 1, mask=mask, other=0.0)
    else:
        re = tl.load(ptr + index, mask=mask, other=0.0)
        im = re
    return re, im


@triton.jit(do_not_specialize=["T"])
def scan_kernel(
    decay_ptr, value_ptr, initial_ptr, states_ptr, T, M,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """UNROLL tokens are asked for before the first is used, so that latencies overlap."""
    blocks = tl.cdiv(M, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    lane = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < M
    re, im = _load(initial_ptr, row * M + lane, inside, PAIRS)
    for start in range(0, T, UNROLL):
        decays, values = (), ()
        for u in tl.static_range(UNROLL):
            index = (row * T + start + u) * M + lane
            mask = lane < tl.where(start + u < T, M, 0)
            decays = decays + (_load(decay_ptr, index, mask, PAIRS),)
            values = values + (_load(value_ptr, index, mask, PAIRS),)
        for u in tl.static_range(UNROLL):
            index = (row * T + start + u) * M + lane
            mask = lane < tl.where(start + u < T, M, 0)
            if PAIRS:
                new = decays[u][0] * re - decays[u][1] * im + values[u][0]
                im = decays[u][0] * im + decays[u][1] * re + values[u][1]
                re = new
                tl.store(states_ptr + 2 * index, re, mask=mask)
                tl.store(states_ptr + 2 * index + 1, im, mask=mask)
            else:
                re = decays[u][0] * re + values[u][0]
                tl.store(states_ptr + index, re, mask=mask)


def scan_triton(decay: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """decay, value [B, T, M] and initial [B, M] of one dtype -> states [B, T, M]."""
    batch, tokens, channels = value.shape
    states = torch.empty_like(value, memory_format=torch.contiguous_format)
    given = [_numbers(t) for t in (decay, value, initial)]
    with on_device(value.device):
        scan_kernel[(batch * blocks_of(channels, _BLOCK),)](
            *given,
            _numbers(states),
            tokens,
            channels,
            PAIRS=value.is_complex(),
            BLOCK=_BLOCK,
            UNROLL=_UNROLL,
            num_warps=2,
        )
    return states


@triton.jit(do_not_specialize=["T"])
def hand_on_kernel(
    decay_ptr, added_ptr, initial_ptr, before_ptr, last_ptr, T, M, REPEAT,
    REVERSE: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """As ``scan_kernel``, but writes the states before each step, and the last one apart.

    A decay is shared by REPEAT neighbours. With REVERSE the walk begins at the end.
    """
    blocks = tl.cdiv(M, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    lane = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    state = tl.load(initial_ptr + row * M + lane, mask=lane < M, other=0.0)
    for start in range(0, T, UNROLL):
        decays, values = (), ()
        for u in tl.static_range(UNROLL):
            t = start + u
            if REVERSE:
                t = T - 1 - start - u
            mask = lane < tl.where((t >= 0) & (t < T), M, 0)
            at = decay_ptr + (row * T + t) * (M // REPEAT) + lane // REPEAT
            decays = decays + (tl.load(at, mask=mask, other=1.0),)
            values = values + (tl.load(added_ptr + (row * T + t) * M + lane, mask=mask, other=0.0),)
        for u in tl.static_range(UNROLL):
            t = start + u
            if REVERSE:
                t = T - 1 - start - u
            mask = lane < tl.where((t >= 0) & (t < T), M, 0)
            tl.store(before_ptr + (row * T + t) * M + lane, state, mask=mask)
            state = decays[u] * state + values[u]
    tl.store(last_ptr + row * M + lane, state, mask=lane < M)


def hand_on(
    decay: Tensor, added: Tensor, initial: Tensor, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """States before each chunk, handed from chunk to chunk, and the one after all.

    Args:
        decay: [B, K, ...] what a chunk leaves of the state before it, fp32; its trailing
            dimensions are the leading ones of a state.
        added: [B, K, ...] what it adds.
        initial: [B, ...] before the first chunk, or with ``reverse`` after the last.
    """
    added = added.contiguous()
    batch, chunks = added.shape[:2]
    size = added[0, 0].numel()
    before, last = torch.empty_like(added), torch.empty_like(added[:, 0])
    with on_device(added.device):
        hand_on_kernel[(batch * blocks_of(size, _BLOCK),)](
            decay.contiguous(),
            added,
            initial.contiguous(),
            before,
            last,
            chunks,
            size,
            size // decay[0, 0].numel(),
            REVERSE=reverse,
            BLOCK=_BLOCK,
            UNROLL=_UNROLL,
            num_warps=2,
        )
    return before, last


def _numbers(tensor: Tensor) -> Tensor:
    tensor = tensor.resolve_conj().contiguous()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
