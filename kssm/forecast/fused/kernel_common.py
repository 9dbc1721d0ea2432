"""Triton building blocks of the fused step."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kssm.ops.kssm_scan.kernel_common import INTERPRETED, exp2, reciprocal

__all__ = [
    "INTERPRETED",
    "finish_early",
    "is_finite",
    "product",
    "residual",
    "rms_norm",
    "scratch",
    "settled",
    "sigmoid",
    "silu",
    "slots_of",
    "vector",
    "wait_for_inputs",
    "with_parts",
]


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Wait until the kernel before has written its results; weights may be read before."""
    if PDL:
        gdc_wait()


@triton.jit
def finish_early(PDL: tl.constexpr):
    """Let the next kernel start and load its weights; it still waits for this one's end."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def settled(x):
    """x [M, N] in fp32 or 16 bits, as it is: the compiler moves no change of layout across.

    Above a sum it would hand round every term instead of the result; behind a norm it would keep
    an operand of several products in registers, where shared memory serves as well.
    """
    if not INTERPRETED:
        if x.dtype == tl.float32:
            x = tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=f,f", [x], tl.float32, is_pure=False, pack=1
            )
        else:
            x = tl.inline_asm_elementwise(
                "mov.b32 $0, $1;", "=r,r", [x], x.dtype, is_pure=False, pack=2
            )
    return x


@triton.jit
def slots_of(slots_ptr, tile, rows, BLOCK: tl.constexpr):
    """(arena slots or 0, whether the rows are no padding) of a tile of the batch."""
    row = tile * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + row, mask=row < rows, other=-1)
    return tl.maximum(slot, 0), slot >= 0


@triton.jit
def scratch(pointer, tile, first, BLOCK: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers [BLOCK, WIDTH] to columns first ... of a tile's rows in memory of STRIDE columns.

    Scratch memory has room for whole tiles: nothing is masked.
    """
    base = pointer + tile.to(tl.int64) * (BLOCK * STRIDE) + first
    return base + (tl.arange(0, BLOCK)[:, None] * STRIDE + tl.arange(0, WIDTH)[None, :])


@triton.jit
def product(x, weight, KIND: tl.constexpr):
    """x [M, K] times the transpose of weight [N, K], operands of dtype KIND, sums in fp32.

    In fp32 each operand is split in three parts that tensor cores take: as accurate as fp32. One
    row is multiplied out where the weights arrive: sooner done than bringing them to tensor cores.
    """
    if x.shape[0] == 1:
        result = tl.sum(x.to(tl.float32) * weight.to(tl.float32), axis=1)[None, :]
    elif weight.dtype == tl.float32:
        result = tl.dot(x, tl.trans(weight), input_precision="tf32x3")
    else:
        result = tl.dot(x.to(KIND), tl.trans(weight))
    return result


@triton.jit
def vector(pointer, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """SIZE numbers as [1, SIZE], or as [BLOCK, SIZE] where the tile is small.

    There each lane reads the numbers that it needs: less work than handing them round.
    """
    place = pointer + tl.arange(0, SIZE)[None, :]
    if BLOCK <= 16:
        place += tl.zeros([BLOCK, 1], tl.int32)
    return tl.load(place)


@triton.jit
def rms_norm(x, weight, SIZE: tl.constexpr, EPS: tl.constexpr):
    """x [M, SIZE] over its root mean square, times weight from ``vector``."""
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / SIZE + EPS)
    return x * scale[:, None] * weight


@triton.jit
def silu(x):
    """x sigmoid(x)."""
    return x * sigmoid(x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) to a few units in the last place."""
    return reciprocal(1.0 + exp2(x * -1.4426950408889634))


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def residual(
    x_ptr, parts_ptr, tile, room, BLOCK: tl.constexpr, DM: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """Residual stream [BLOCK, DM]: what is stored, plus the partial sums [PARTS, room, DM]."""
    x = tl.load(scratch(x_ptr, tile, 0, BLOCK, DM, DM))
    return with_parts(x, parts_ptr, tile, room, BLOCK, DM, PARTS)


@triton.jit
def with_parts(
    x, parts_ptr, tile, room, BLOCK: tl.constexpr, DM: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """x plus the partial sums of its tile."""
    for part in tl.static_range(PARTS):
        x += tl.load(scratch(parts_ptr + part * room * DM, tile, 0, BLOCK, DM, DM))
    return settled(x)
