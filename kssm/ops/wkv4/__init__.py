"""WKV-4: the recurrence of RWKV-4, an average of values weighted by decaying exponentials of keys.

The equations are in README.md. A state is (numerator, denominator, peak): both sums are kept
divided by exp(peak), so that no key overflows. A fresh state is zeros: a denominator of 0 says
that there is nothing yet, whatever the peak.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.ops.wkv4.reference import NOTHING, wkv4_reference, wkv4_token

__all__ = ["wkv4", "wkv4_reference", "wkv4_step_"]

_CHUNK = 16


def wkv4(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    state: Tensor,
    dt: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance all rows over many tokens, a chunk of them at a time; differentiable.

    Args:
        k: [B, T, D] keys, fp32 or fp64.
        v: [B, T, D] values.
        rate: [D] decay of the logarithm of a weight a token, >= 0.
        bonus: [D] added to the key of the token itself.
        state: [B, D, 3] (numerator, denominator, peak).
        dt: [B, T] factors >= 0 on the decay of each token, None = 1.
        lengths: [B] number of valid tokens; the others leave the state as it is.

    Returns:
        [B, T, D], and the state after each row's last valid token.
    """
    steps = torch.ones_like(k[..., 0]) if dt is None else dt.to(k.dtype)
    valid = torch.ones_like(steps, dtype=torch.bool)
    if lengths is not None:
        valid = torch.arange(k.shape[1], device=k.device) < lengths.unsqueeze(1)
        steps = steps.masked_fill(~valid, 0.0)
        k = k.masked_fill(~valid.unsqueeze(-1), NOTHING)
        v = v.masked_fill(~valid.unsqueeze(-1), 0.0)
    outputs: list[Tensor] = []
    parts = (t.split(_CHUNK, dim=1) for t in (k, v, steps, valid))
    for chunk_k, chunk_v, chunk_steps, chunk_valid in zip(*parts, strict=True):
        y, state = _chunk(chunk_k, chunk_v, chunk_steps, chunk_valid, rate, bonus, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def wkv4_step_(
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    bonus: Tensor,
    states: Tensor,
    slots: Tensor,
    dt: Tensor | None = None,
) -> Tensor:
    """One token for each of the rows ``slots`` [N] of ``states`` [S, D, 3], in place: [N, D].

    Rows whose new state is not finite keep their old one.
    """
    old = states[slots]
    steps = torch.ones_like(k[:, 0]) if dt is None else dt.to(k.dtype)
    y, new = wkv4_token(k, v, rate * steps.unsqueeze(-1), bonus, old)
    healthy = torch.isfinite(new).flatten(1).all(1)[:, None, None]
    states[slots] = torch.where(healthy, new, old)
    return y


def _chunk(
    k: Tensor,
    v: Tensor,
    steps: Tensor,
    valid: Tensor,
    rate: Tensor,
    bonus: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """All pairs of tokens of a chunk at once, and what came before it as one more token."""
    numerator, denominator, peak = state.unbind(-1)
    peak = torch.where(denominator == 0, NOTHING, peak)
    length = k.shape[1]
    elapsed = steps.cumsum(1)
    before = elapsed - steps  # decays that the state has seen when token i reads it
    age = before.unsqueeze(2) - elapsed.unsqueeze(1)  # [B, i, s]
    place = torch.arange(length, device=k.device)
    earlier = place.unsqueeze(1) > place
    logit = k.unsqueeze(1) - age.clamp_min(0).unsqueeze(-1) * rate  # [B, i, s, D]
    logit = torch.where(earlier[:, :, None], logit, NOTHING)
    own = k + bonus
    carried = peak.unsqueeze(1) - before.unsqueeze(-1) * rate
    top = torch.maximum(torch.maximum(logit.amax(2), own), carried)
    weight = torch.exp(logit - top.unsqueeze(2))
    carry, self_weight = torch.exp(carried - top), torch.exp(own - top)
    # Not a product with 0: a later token that is not finite must not reach an earlier one.
    values = torch.where(earlier[:, :, None], weight * v.unsqueeze(1), 0.0)
    above = values.sum(2) + self_weight * v
    above = above + carry * numerator.unsqueeze(1)
    below = weight.sum(2) + self_weight + carry * denominator.unsqueeze(1)
    ends = (k, v, elapsed, rate)
    new = _after(ends, numerator, denominator, peak)
    return above / below, torch.where(valid[:, :1, None], new, state)


def _after(
    ends: tuple[Tensor, Tensor, Tensor, Tensor],
    numerator: Tensor,
    denominator: Tensor,
    peak: Tensor,
) -> Tensor:
    """The state after a chunk."""
    k, v, elapsed, rate = ends
    total = elapsed[:, -1:]
    logit = k - (total - elapsed).unsqueeze(-1) * rate
    carried = peak - total * rate
    top = torch.maximum(logit.amax(1), carried)
    weight, carry = torch.exp(logit - top.unsqueeze(1)), torch.exp(carried - top)
    above = (weight * v).sum(1) + carry * numerator
    return torch.stack([above, weight.sum(1) + carry * denominator, top], dim=-1)
