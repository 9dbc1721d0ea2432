"""Launching the kernels of the gates: what becomes of a token's inputs, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kssm.ops.matrix_scan.kernel_gates import gates_kernel, rotate_kernel, turn_states_kernel
from kssm.ops.matrix_scan.kernel_gates_backward import (
    gates_backward_kernel,
    rotate_backward_kernel,
)
from kssm.ops.matrix_scan.kernel_launch_backward import ChunkGradients


@dataclass(frozen=True)
class Tokens:
    """Arguments of one call, evenly spaced; ``chunk`` tokens are kept together."""

    b: Tensor  # [B, T, G, W]
    c: Tensor
    alpha: Tensor  # [B, T, H]
    dt: Tensor
    omega: Tensor  # [B, T, G, N]
    parameters: Sequence[Tensor]  # alpha_bias, dt_bias, rate
    token_dt: Tensor | None
    lengths: Tensor | None
    chunk: int

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.b.shape[1], self.chunk)

    @property
    def exact(self) -> bool:
        """Whether phases and decays are worth fp64: 16-bit inputs do not carry it."""
        return self.b.dtype == torch.float32

    @property
    def optional(self) -> tuple[Tensor | None, Tensor | None]:
        return self.token_dt, self.lengths

    @property
    def pairs(self) -> dict[str, Any]:
        """Compile-time sizes of the kernels that see a group's pairs."""
        pairs = self.omega.shape[-1]
        padded = triton.next_power_of_2(pairs)
        return {
            "G": self.b.shape[2],
            "N": pairs,
            "Q": self.chunk,
            "PAIRS": padded,
            "EXACT": self.exact,
        }


class Turned(NamedTuple):
    """What the gate kernels leave for the chunk kernels."""

    b: Tensor  # [B, T, G, W]
    c: Tensor
    decay: Tensor  # [B, H, K Q]
    weight: Tensor
    prefix: Tensor  # [B, G, N, K] int32, units of 2^-32 turns up to each chunk's end
    b_rest: Tensor | None  # [B, T, G, W] what 16-bit b and c have lost by rounding
    c_rest: Tensor | None


def turn(given: Tokens, *, rests: bool) -> Turned:
    """Gates of all tokens, and B and C in the turning frame; ``rests`` asks for the last two."""
    batch, tokens, heads = given.alpha.shape
    groups, chunks, pairs = given.b.shape[2], given.chunks, given.omega.shape[-1]
    new = given.b.new_empty
    kind = torch.float64 if given.exact else torch.float32
    decay, weight = (new(batch, heads, chunks * given.chunk, dtype=kind) for _ in range(2))
    totals = new(batch, groups, pairs, chunks, dtype=torch.int32)
    gates_kernel[(batch * chunks,)](
        given.alpha, given.dt, given.omega, *given.optional, *given.parameters,
        decay, weight, totals,
        given.alpha.stride(1), given.dt.stride(1), given.omega.stride(1), tokens, chunks,
        H=heads, HEADS=triton.next_power_of_2(heads), **given.pairs,
    )  # fmt: skip
    prefix = totals.cumsum(-1, dtype=torch.int32)  # whole turns are lost, as they may be
    b, c = (new(given.b.shape) for _ in range(2))
    b_rest = c_rest = None
    if rests and not given.exact:
        b_rest, c_rest = (new(given.b.shape) for _ in range(2))
    rotate_kernel[(batch * chunks * groups,)](
        given.b, given.c, given.omega, *given.optional, given.parameters[2], prefix,
        b, c, b_rest, c_rest,
        given.b.stride(1), given.c.stride(1), given.omega.stride(1), tokens, chunks,
        **given.pairs,
    )  # fmt: skip
    return Turned(b, c, decay, weight, prefix, b_rest, c_rest)


def outer_states(states: Tensor, prefix: Tensor) -> Tensor:
    """[B, H, W, P] in the turning frame behind every row -> [B, H, P, N, 2]."""
    batch, heads, width, values = states.shape
    return _turned_states(states, prefix, (batch, heads, values, width // 2, 2), back=False)


def inner_states(states: Tensor, prefix: Tensor) -> Tensor:
    """The way back, for gradients."""
    batch, heads, values, pairs, _ = states.shape
    return _turned_states(states, prefix, (batch, heads, 2 * pairs, values), back=True)


def _turned_states(states: Tensor, prefix: Tensor, shape: tuple[int, ...], *, back: bool) -> Tensor:
    out = states.new_empty(shape)
    _, groups, pairs, chunks = prefix.shape
    values = shape[3] if back else shape[2]
    turn_states_kernel[(shape[0] * shape[1],)](
        states.contiguous(), prefix, out, chunks,
        H=shape[1], G=groups, P=values, N=pairs, PAIRS=triton.next_power_of_2(pairs), BACK=back,
    )  # fmt: skip
    return out


class TokenGradients(NamedTuple):
    """Of the token inputs but x, and of the parameters."""

    b: Tensor
    c: Tensor
    alpha: Tensor
    dt: Tensor
    omega: Tensor
    parameters: Sequence[Tensor]


def turn_backward(given: Tokens, turned: Turned, found: ChunkGradients) -> TokenGradients:
    """From the gradients of what ``turn`` made."""
    db, dc, domega, drate = _rotate_backward(given, turned, found)
    batch, tokens, heads = given.alpha.shape
    new, chunks = given.b.new_empty, given.chunks
    dalpha = new(batch, tokens, heads, dtype=given.alpha.dtype)
    ddt = new(batch, tokens, heads, dtype=given.dt.dtype)
    dbias = new(2, batch, chunks, heads, dtype=torch.float32)
    gates_backward_kernel[(batch * chunks,)](
        given.alpha, given.dt, *given.optional, *given.parameters[:2], found.decay, found.weight,
        dalpha, ddt, dbias, given.alpha.stride(1), given.dt.stride(1), tokens, chunks,
        H=heads, Q=given.chunk, HEADS=triton.next_power_of_2(heads),
    )  # fmt: skip
    biases = dbias.sum((1, 2))
    return TokenGradients(db, dc, dalpha, ddt, domega, [*biases.unbind(), drate.sum((0, 1))])


def _rotate_backward(
    given: Tokens, turned: Turned, found: ChunkGradients
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of b, c, omega, and of rate [B, K, G, N] by chunk."""
    batch, tokens, groups, width = given.b.shape
    sharing, new = given.alpha.shape[2] // groups, given.b.new_empty
    db, dc = (new(given.b.shape) for _ in range(2))
    domega = new(given.omega.shape, dtype=given.omega.dtype)
    drate = new(batch, given.chunks, groups, width // 2, dtype=torch.float32)
    rotate_backward_kernel[(batch * given.chunks * groups,)](
        turned.b, turned.c, given.omega, *given.optional, given.parameters[2], turned.prefix,
        found.b, found.c, found.flow, db, dc, domega, drate,
        given.omega.stride(1), tokens, given.chunks,
        PARTS=found.b.shape[0], SHARING=sharing, HEADS=triton.next_power_of_2(sharing),
        num_warps=8, **given.pairs,
    )  # fmt: skip
    return db, dc, domega, drate
