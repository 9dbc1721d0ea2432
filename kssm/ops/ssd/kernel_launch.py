"""State-space duality on a GPU: WKV-6 with one decay a head and the present token read in full."""

from __future__ import annotations

from torch import Tensor

from kssm.ops.wkv6.kernel import wkv6_triton


def ssd_scan_triton(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Shapes and results as ``ssd_scan``; all tensors fp32."""
    heads = x.shape[2] // b.shape[2]
    k, r = (entry.repeat_interleave(heads, dim=2) for entry in (b, c))
    log_decay = (step * a).unsqueeze(-1).expand_as(k)
    bonus = k.new_ones(k.shape[2:])
    y, final = wkv6_triton(r, k, x * step.unsqueeze(-1), log_decay, bonus, state.mT)
    return y, final.mT
