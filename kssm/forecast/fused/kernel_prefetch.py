"""Asking for memory ahead of need."""

import triton
import triton.language as tl

from kssm.forecast.fused.kernel_common import INTERPRETED


@triton.jit
def prefetch_rows(pointer, SIZE: tl.constexpr):
    """Ask the L2 cache for the SIZE fp32 numbers at each of the row pointers [M]."""
    if not INTERPRETED:
        lines: tl.constexpr = triton.next_power_of_2((SIZE + 31) // 32)
        line = tl.minimum(tl.arange(0, lines) * 32, SIZE - 1)
        address = (pointer[:, None] + line[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip
