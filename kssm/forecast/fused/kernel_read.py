"""A forecast's last part: from normalised quantiles to values at any levels, as one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.forecast.distribution import LEVELS, interpolate
from kssm.forecast.fused.kernel_signal import scale_of

_BLOCK = 64
"""Numbers that a program writes."""


@triton.jit(do_not_specialize=["horizon", "levels"])
def read_kernel(
    forecast_ptr,  # [rows, K, 9] float32, normalised
    scaler_ptr,  # [rows, 7] float64
    weights_ptr,  # [9, levels] float64: what each quantile counts for in a level
    out_ptr,  # [rows, horizon, levels] float64
    horizon,
    levels,
    K: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """BLOCK_H horizons of one row; NaN for a row that has seen no sample."""
    row = tl.program_id(0).to(tl.int64)
    ahead = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    level = tl.arange(0, BLOCK_Q)[None, :]
    wanted = (ahead < horizon) & (level < levels)
    quantiles = forecast_ptr + (row * K + ahead) * 9
    z = tl.zeros([BLOCK_H, BLOCK_Q], tl.float64)
    for k in tl.static_range(9):
        weight = tl.load(weights_ptr + k * levels + level, mask=level < levels, other=0.0)
        z += weight * tl.load(quantiles + k, mask=ahead < horizon, other=0.0).to(tl.float64)
    z = tl.minimum(z, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    z = tl.maximum(z, -LARGEST, propagate_nan=tl.PropagateNan.ALL)
    stats = scaler_ptr + row * 7
    mean = tl.load(stats + 1)
    growth = tl.exp(z)
    value = 0.5 * (growth - 1.0 / growth) * scale_of(mean, tl.load(stats + 2)) + mean
    value = tl.where(tl.load(stats) == 0, float("nan"), value)
    tl.store(out_ptr + (row * horizon + ahead) * levels + level, value, mask=wanted)


def level_weights(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """How the quantiles at ``LEVELS`` make those at other levels, [9, levels] float64."""
    return interpolate(torch.eye(len(LEVELS), dtype=torch.float64), levels).to(device)


def read(forecast: Tensor, scaler: Tensor, weights: Tensor, horizon: int, largest: float) -> Tensor:
    """Quantiles [B, horizon, levels] float64 of forecasts [B, K, 9] with statistics [B, 7]."""
    rows, known, quantiles = forecast.shape
    assert quantiles == len(LEVELS)
    levels = weights.shape[1]
    out = torch.empty(rows, horizon, levels, dtype=torch.float64, device=forecast.device)
    width = triton.next_power_of_2(levels)
    block = max(1, _BLOCK // width)
    read_kernel[(rows, triton.cdiv(horizon, block))](
        forecast, scaler, weights, out, horizon, levels,
        K=known, LARGEST=largest, BLOCK_H=block, BLOCK_Q=width, num_warps=2,
    )  # fmt: skip
    return out
