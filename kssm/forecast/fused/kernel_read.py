"""A forecast's last part as one kernel: from the rows' states to values at any levels.

Reads what ``kssm/forecast/apart.py`` reads in torch (``forecast_apart``): each resolution's
normalised quantiles, weighed by the contest and mixed on the row's own grid, in float64. A lane is
one sample ahead of one row and goes through the levels one after the other, so that one compiled
kernel serves every number of rows, samples and levels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kssm.forecast import contest as rules
from kssm.forecast.distribution import LEVELS, MEDIAN, between
from kssm.forecast.fused.kernel_signal import scale_of
from kssm.forecast.native.reading import Contest, Sources
from kssm.forecast.network import MAX_NORMALISED
from kssm.ops.launch import blocks_of, on_device

_BLOCK = 64
"""Lanes a program."""

_PROGRAMS = 264
"""Programs that keep a device busy: with fewer, levels are shared out too."""

_SHARPNESS = tl.constexpr(rules.SHARPNESS)
_STALENESS = tl.constexpr(rules.STALENESS)
_DOUBT = tl.constexpr(rules.DOUBT)
_DOUBT_BLOCKS = tl.constexpr(rules.DOUBT_BLOCKS)
_OVERLAP = tl.constexpr(rules.OVERLAP)
_WORST = tl.constexpr(rules.WORST)
_TINY = tl.constexpr(rules.TINY)
_LARGEST = tl.constexpr(MAX_NORMALISED)


@triton.jit
def _age(clock, FACTOR: tl.constexpr):
    """Samples since the last whole FACTOR of them, in range whatever the clock says."""
    sane = (clock >= 0) & (clock < 1e15)
    return (tl.where(sane, clock, 0.0).to(tl.int64) % FACTOR).to(tl.int32)


@triton.jit
def _ratio(sums):
    """A copy's loss over the row's, from the contest's three sums at ``sums``; and its blocks."""
    blocks = tl.load(sums + 2)
    ratio = (tl.load(sums) + _TINY) / (tl.load(sums + 1) + _TINY)
    ratio = tl.minimum(ratio, _WORST, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(blocks > 0, ratio, 1.0), blocks


@triton.jit
def _shares(sums, clock, ahead, FACTORS: tl.constexpr, DIRECT: tl.constexpr):
    """Each resolution's weight [BLOCK] in the forecast so far ahead: ``contest.weights``.

    ``sums`` points to the contest of each lane's row, [copies, 2, 3].
    """
    far = tl.minimum(tl.maximum((ahead - DIRECT / 8) / (DIRECT / 4), 0.0), 1.0)
    one = tl.full(ahead.shape, 1.0, tl.float64)
    nears, fars, doubts = (one,), (one,), (one * 0.0,)
    least_near, least_far = one, one
    for copy in tl.static_range(len(FACTORS) - 1):
        near_ratio, near_blocks = _ratio(sums + copy * 6)
        far_ratio, far_blocks = _ratio(sums + copy * 6 + 3)
        blocks = tl.minimum(near_blocks, far_blocks)
        doubt = (_DOUBT * _DOUBT_BLOCKS) / (_DOUBT_BLOCKS + blocks)
        doubts = doubts + (tl.where(blocks > 0, doubt, float("inf")),)
        nears, fars = nears + (near_ratio,), fars + (far_ratio,)
        least_near = tl.minimum(least_near, near_ratio)
        least_far = tl.minimum(least_far, far_ratio)
    logits, best = (), one * float("-inf")
    for r in tl.static_range(len(FACTORS)):
        near = (nears[r] - 1.0) / least_near
        excess = near + far * ((fars[r] - 1.0) / least_far - near)
        beyond = tl.log(tl.maximum(ahead / (DIRECT * FACTORS[r]), 1.0))
        logit = -_SHARPNESS * excess - doubts[r] - beyond
        if r > 0:
            logit -= _STALENESS * tl.log(1.0 + _age(clock, FACTORS[r]) / ahead)
        logits, best = logits + (logit,), tl.maximum(best, logit)
    parts, total = (), one * 0.0
    for r in tl.static_range(len(FACTORS)):
        part = tl.exp(logits[r] - best)
        parts, total = parts + (part,), total + part
    shares = ()
    for r in tl.static_range(len(FACTORS)):
        shares = shares + (parts[r] / total,)
    return shares


@triton.jit
def _value(nine, wanted, mean, scale):
    """The quantile at ``wanted`` (as ``level_table`` has it) of nine, in the row's units."""
    low = tl.load(nine + tl.load(wanted).to(tl.int32)).to(tl.float64)
    high = tl.load(nine + tl.load(wanted + 1).to(tl.int32)).to(tl.float64)
    z = low + (high - low) * tl.load(wanted + 2)
    z = tl.minimum(z, _LARGEST, propagate_nan=tl.PropagateNan.ALL)
    z = tl.maximum(z, -_LARGEST, propagate_nan=tl.PropagateNan.ALL)
    growth = tl.exp(z)
    return 0.5 * (growth - 1.0 / growth) * scale + mean


@triton.jit
def _paths(forecasts, points, stats, slot, ahead, clock, FACTORS: tl.constexpr):
    """Of each resolution: the points around a lane's sample, how far it lies from the first to the
    second, whether the first is a forecast (else it is the row's last value), location and scale.
    """
    paths = ()
    for r in tl.static_range(len(FACTORS)):
        age = _age(clock, FACTORS[r])
        lead = ahead + age
        right = (lead + FACTORS[r] - 1) // FACTORS[r] - 1
        left_at = tl.maximum(right * FACTORS[r], age)
        share = (lead - left_at).to(tl.float64) / ((right + 1) * FACTORS[r] - left_at)
        first = forecasts[r] + slot * points[r] * 9
        before, after = first + tl.maximum(right - 1, 0) * 9, first + right * 9
        mean = tl.load(stats[r] + slot * 7 + 1)
        scale = scale_of(mean, tl.load(stats[r] + slot * 7 + 2))
        paths = paths + ((before, after, share, right > 0, mean, scale),)
    return paths


@triton.jit
def _mixed(paths, shares, wanted, last):
    """The weighted mean of the resolutions' quantiles at ``wanted``."""
    _, after, _, _, mean, scale = paths[0]
    mixed = _value(after, wanted, mean, scale) * shares[0]
    for r in tl.static_range(1, len(paths)):
        before, after, way, between, mean, scale = paths[r]
        left = tl.where(between, _value(before, wanted, mean, scale), last)
        right = _value(after, wanted, mean, scale)
        gap = right - left
        value = tl.where(way < 0.5, left + way * gap, right - gap * (1.0 - way))
        mixed += tl.where(shares[r] > 0, value, 0.0) * shares[r]
    return mixed


@triton.jit(do_not_specialize=["rows", "horizon", "levels"])
def read_kernel(
    forecasts,  # of each resolution [slots, points, 9] float32, normalised
    points,  # of each: how many
    stats,  # of each [slots, 7] float64
    slots_ptr,  # [rows] int64, or None: in order
    clock_ptr,  # [slots] float64
    contest_ptr,  # [slots, copies, 2, 3] float64
    wanted_ptr,  # [levels + 1, 3] float64: ``level_table``
    out_ptr,  # [rows, horizon, levels] float64
    rows,
    horizon,
    levels,
    FACTORS: tl.constexpr,
    DIRECT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK samples ahead, of one row or several; NaN for a row that has seen no sample."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    base = start // horizon
    place = (start - base * horizon).to(tl.int32) + tl.arange(0, BLOCK)
    row = base + place // horizon
    ahead = place % horizon + 1
    slot = tl.minimum(row, rows - 1)  # lanes past the end read what the last row does
    if slots_ptr is not None:
        slot = tl.maximum(tl.load(slots_ptr + slot), 0)
    seen = tl.load(stats[0] + slot * 7) != 0
    last = tl.load(stats[0] + slot * 7 + 5)
    clock = tl.zeros([BLOCK], tl.float64)
    if len(FACTORS) > 1:
        clock = tl.load(clock_ptr + slot)
    paths = _paths(forecasts, points, stats, slot, ahead, clock, FACTORS)
    shares = (tl.full([BLOCK], 1.0, tl.float64),)
    middle, narrowing = clock, clock
    if len(FACTORS) > 1:
        sums = contest_ptr + slot * (6 * (len(FACTORS) - 1))
        shares = _shares(sums, clock, ahead.to(tl.float64), FACTORS, DIRECT)
        squares = tl.zeros([BLOCK], tl.float64)
        for r in tl.static_range(len(FACTORS)):
            squares += shares[r] * shares[r]
        narrowing = 1.0 - _OVERLAP * (1.0 - squares)
        middle = _mixed(paths, shares, wanted_ptr + levels * 3, last)
    out = out_ptr + (row * horizon + ahead - 1) * levels
    for level in range(tl.program_id(1), levels, tl.num_programs(1)):
        value = _mixed(paths, shares, wanted_ptr + level * 3, last)
        if len(FACTORS) > 1:
            value = middle + (value - middle) * narrowing
        tl.store(out + level, tl.where(seen, value, float("nan")), mask=row < rows)


def level_table(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """How to read each level, and at last the median: [len(levels) + 1, 3] float64.

    Two of the nine quantiles, and how many times their distance the level lies from the first.
    """
    entries: list[tuple[int, int, float]] = []
    for level in (*levels, LEVELS[MEDIAN]):
        low, high, weight = between(level)
        entries.append((MEDIAN, low, weight) if high is None else (low, high, weight))
    return torch.tensor(entries, dtype=torch.float64, device=device)


def read(
    sources: Sources,
    horizon: int,
    wanted: Tensor,
    direct: int,
    contest: Contest | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """As ``kssm.forecast.native.reading.read_quantiles``, the levels as a ``level_table``."""
    forecasts, stats = (tuple(t.contiguous() for t in kind) for kind in zip(*sources, strict=True))
    rows, levels = len(forecasts[0] if slots is None else slots), len(wanted) - 1
    joined = (None, None) if contest is None else (contest.clock, contest.sums)
    clock, sums = (None if t is None else t.contiguous() for t in joined)
    device = forecasts[0].device
    out = torch.empty(rows, horizon, levels, dtype=torch.float64, device=device)
    programs = blocks_of(rows * horizon, _BLOCK)
    if programs:
        grid = (programs, min(levels, blocks_of(_PROGRAMS, programs)))
        with on_device(device):
            read_kernel[grid](
                forecasts, tuple(f.shape[1] for f in forecasts), stats,
                None if slots is None else slots.contiguous(), clock, sums, wanted, out,
                rows, horizon, levels,
                FACTORS=(1,) if contest is None else (1, *contest.factors),
                DIRECT=direct, BLOCK=_BLOCK, num_warps=2,
            )  # fmt: skip
    return out
