"""State-space duality on a GPU: WKV-6 with one decay a head."""

from __future__ import annotations

from torch import Tensor

from kssm.ops.wkv6.kernel import wkv6_triton


def ssd_scan_triton(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Shapes and results as ``ssd_scan``; all tensors fp32.

    WKV-6 reads the state before the token's decay and update, so the queries take that decay
    along and what a token reads of itself is added here.
    """
    heads = x.shape[2] // b.shape[2]
    log_decay, u = (step * a).unsqueeze(-1), x * step.unsqueeze(-1)
    own = (b * c).sum(-1).repeat_interleave(heads, dim=2)
    k, c = (entry.repeat_interleave(heads, dim=2) for entry in (b, c))
    bonus = k.new_zeros(k.shape[2:])
    y, final = wkv6_triton(c * log_decay.exp(), k, u, log_decay.expand_as(k), bonus, state.mT)
    return y + own.unsqueeze(-1) * u, final.mT
