"""Triton kernels of the gated norm and its gradients: a program takes one group of channels
through some blocks of rows. Nothing but the inputs is kept for the gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from kssm.ops.kernel_maths import sigmoid


@triton.jit
def tile(x_ptr, row_stride, r, c, mask):
    return tl.load(x_ptr + r * row_stride + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, value_ptr, skip_ptr, gate_ptr, plus_ptr, total_ptr, out_ptr,
    x_row, value_row, gate_row, plus_row, rows, eps,
    C: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """out and total = x + plus [rows, C]; ``value``, ``gate`` and ``plus`` may be None."""
    groups: tl.constexpr = C // GROUP
    inner = tl.arange(0, BLOCK_G)
    c = (tl.program_id(0) % groups) * GROUP + inner
    weight = tl.load(weight_ptr + c, mask=inner < GROUP, other=0.0).to(tl.float32)[None, :]
    if value_ptr is not None:
        skip = tl.load(skip_ptr + c, mask=inner < GROUP, other=0.0).to(tl.float32)[None, :]
    first = (tl.program_id(0) // groups).to(tl.int64) * (BLOCK_R * STEPS)
    for i in range(STEPS):
        r = first + i * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
        mask = (r < rows) & (inner < GROUP)[None, :]
        x = tile(x_ptr, x_row, r, c[None, :], mask)
        if plus_ptr is not None:
            total = (x + tile(plus_ptr, plus_row, r, c[None, :], mask)).to(x_ptr.dtype.element_ty)
            tl.store(total_ptr + r * C + c[None, :], total, mask=mask)
            x = total.to(tl.float32)
        mixed = x * tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / GROUP + eps) * weight
        if value_ptr is not None:
            mixed += skip * tile(value_ptr, value_row, r, c[None, :], mask)
        if gate_ptr is not None:
            z = tile(gate_ptr, gate_row, r, c[None, :], mask)
            mixed = mixed * z * sigmoid(z)
        tl.store(out_ptr + r * C + c[None, :], mixed.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dout_ptr, x_ptr, weight_ptr, value_ptr, skip_ptr, gate_ptr, residual_ptr,
    dx_ptr, dvalue_ptr, dgate_ptr, sums_ptr,
    dout_row, x_row, value_row, gate_row, residual_row, dgate_row, rows, eps,
    C: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_R: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Gradients; ``residual`` is one of x that is added; ``sums`` [programs / groups, 2, C] are
    those of weight and skip."""
    groups: tl.constexpr = C // GROUP
    inner = tl.arange(0, BLOCK_G)
    c = (tl.program_id(0) % groups) * GROUP + inner
    weight = tl.load(weight_ptr + c, mask=inner < GROUP, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    if value_ptr is not None:
        skip = tl.load(skip_ptr + c, mask=inner < GROUP, other=0.0).to(tl.float32)[None, :]
        dskip = tl.zeros([BLOCK_R, BLOCK_G], tl.float32)
    part = (tl.program_id(0) // groups).to(tl.int64)
    for i in range(STEPS):
        r = (part * STEPS + i) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
        mask = (r < rows) & (inner < GROUP)[None, :]
        x = tile(x_ptr, x_row, r, c[None, :], mask)
        scale = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / GROUP + eps)
        x = x * scale
        d = tile(dout_ptr, dout_row, r, c[None, :], mask)
        if gate_ptr is not None:
            mixed = x * weight
            z = tile(gate_ptr, gate_row, r, c[None, :], mask)
            if value_ptr is not None:
                mixed += skip * tile(value_ptr, value_row, r, c[None, :], mask)
            s = sigmoid(z)
            dz = d * mixed * s * (1.0 + z * (1.0 - s))
            tl.store(
                dgate_ptr + r * dgate_row + c[None, :],
                dz.to(dgate_ptr.dtype.element_ty),
                mask=mask,
            )
            d = d * z * s
        if value_ptr is not None:
            value = tile(value_ptr, value_row, r, c[None, :], mask)
            dskip += d * value
            at = dvalue_ptr + r * C + c[None, :]
            tl.store(at, (d * skip).to(dvalue_ptr.dtype.element_ty), mask=mask)
        dweight += d * x
        d = d * weight
        d = scale * (d - x * (tl.sum(d * x, 1, keep_dims=True) / GROUP))
        if residual_ptr is not None:
            d += tile(residual_ptr, residual_row, r, c[None, :], mask)
        tl.store(dx_ptr + r * C + c[None, :], d.to(dx_ptr.dtype.element_ty), mask=mask)
    at = sums_ptr + part * 2 * C + c
    tl.store(at, tl.sum(dweight, 0), mask=inner < GROUP)
    if value_ptr is not None:
        tl.store(at + C, tl.sum(dskip, 0), mask=inner < GROUP)
