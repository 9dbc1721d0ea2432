"""The contest between a row's resolutions: who forecast this row's own past best.

At the end of every block of M samples each resolution's forecast of the next M is kept. When
those samples have come, the forecasts are judged by pinball loss, near (the first quarter) and
far apart, and the losses of the block are folded into slowly fading sums. Weights follow from
the ratio of a thinned copy's loss to the loss of the row itself over the same blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from kssm.forecast.distribution import LEVELS
from kssm.forecast.scaler import WARM_UP, is_visible, location_and_scale

JUDGED: Final = (0, 4, 8)
"""Indices into ``LEVELS`` of the quantiles that are judged: 10%, 50%, 90%."""

FADE: Final = 0.99
SHARPNESS: Final = 32.0
DOUBT: Final = 4.0
DOUBT_BLOCKS: Final = 8.0
STALENESS: Final = SHARPNESS
"""As if losses grew in proportion to how far ahead a forecast looks."""

MATURE: Final = 16
"""Coarse samples before a thinned copy takes part."""

OVERLAP: Final = 0.2
"""How much of a mean forecast's spread is due to the resolutions' erring apart, at most."""

WORST: Final = 10.0
TINY: Final = 1e-12
_LIMIT: Final = 1e6


def mature_blocks(factor: int, block: int) -> int:
    """Blocks of ``block`` samples before a copy of every ``factor``-th takes part."""
    return -(-MATURE * factor // block)


def rivals(quantiles: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept for judging of forecasts [..., R, M, 3] made with statistics [..., 7].

    Returns the forecasts in scales from the location (fp32) and location and scale [..., 2]; the
    scale is 0 where the row has too few samples to be judged.
    """
    location, scale = location_and_scale(stats)
    units = (quantiles - location[..., None, None, None]) / scale[..., None, None, None]
    ready = stats[..., 0] >= WARM_UP
    kept = torch.stack([location, torch.where(ready, scale, 0.0)], dim=-1)
    return units.clamp(-_LIMIT, _LIMIT).float(), kept


def judge(block: Tensor, forecasts: Tensor, location_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of kept forecasts once their block of samples has come.

    Args:
        block: [..., M] float64 samples, anything not visible is missing.
        forecasts: [..., R, M, 3] as ``rivals`` keeps them.
        location_scale: [..., 2] likewise.

    Returns:
        loss [..., R, 2]: mean pinball loss near and far, and valid [..., 2]: whether there was
        something to judge.
    """
    location, scale = location_scale[..., 0:1], location_scale[..., 1:2]
    seen = is_visible(block) & (scale > 0)
    units = torch.where(seen, block - location, 0.0) / torch.where(scale > 0, scale, 1.0)
    error = units.clamp(-_LIMIT, _LIMIT)[..., None, :, None] - forecasts.double()
    levels = constant(tuple(LEVELS[i] for i in JUDGED), error.dtype, error.device)
    pinball = torch.maximum(levels * error, (levels - 1.0) * error).mean(-1)
    near = block.shape[-1] // 4
    parts = [
        (pinball[..., cut], seen[..., cut].unsqueeze(-2))
        for cut in (slice(near), slice(near, None))
    ]
    counts = torch.stack([mask.sum(-1) for _, mask in parts], dim=-1)
    sums = torch.stack([torch.where(mask, loss, 0.0).sum(-1) for loss, mask in parts], dim=-1)
    return sums / counts.clamp_min(1), counts.squeeze(-2) > 0


def fold(sums: Tensor, loss: Tensor, valid: Tensor, blocks_seen: Tensor, mature: Tensor) -> Tensor:
    """Add one block's losses to the fading sums.

    Args:
        sums: [B, F, 2, 3] for each thinned copy, near and far: its own faded loss, the row's over
            the same blocks, and the number of blocks.
        loss, valid: as ``judge`` returns them, R = F + 1 with the row itself first.
        blocks_seen: [B] blocks the row had when the forecasts were made.
        mature: [F] blocks a copy must have seen to take part.
    """
    takes_part = valid.unsqueeze(1) & (blocks_seen.unsqueeze(1) >= mature).unsqueeze(-1)
    own, base = loss[:, 1:], loss[:, :1].expand_as(loss[:, 1:])
    new = torch.stack(
        [
            FADE * sums[..., 0] + own,
            FADE * sums[..., 1] + base,
            sums[..., 2] + 1.0,
        ],
        dim=-1,
    )
    return torch.where(takes_part.unsqueeze(-1), new, sums)


def weights(
    sums: Tensor, factors: Sequence[int], horizon: int, direct: int, ages: Tensor
) -> Tensor:
    """Weight of each resolution at each step ahead: sums [B, F, 2, 3] -> [B, F + 1, horizon].

    A copy's log weight falls by ``SHARPNESS`` times its excess loss and by ``DOUBT``, which fades
    as blocks are judged; a resolution asked beyond its head's ``direct`` coarse samples loses in
    proportion to how often it must be rolled out. Copies never judged weigh nothing.

    The contest judges forecasts when all resolutions have read the same samples. A copy whose last
    one is ``ages`` [B, F] samples old looks that much further ahead than the row itself, and loses
    ``STALENESS`` times the logarithm of the ratio.
    """
    ratio = ((sums[..., 0] + TINY) / (sums[..., 1] + TINY)).clamp_max(WORST)
    ratio = torch.where(sums[..., 2] > 0, ratio, 1.0)
    ratio = torch.cat([torch.ones_like(ratio[:, :1]), ratio], dim=1)
    excess = (ratio - 1.0) / ratio.amin(1, keepdim=True)
    far, beyond = _reach(tuple(factors), horizon, direct, sums.device)
    excess = torch.lerp(excess[..., :1], excess[..., 1:], far)
    blocks = sums[..., 2].amin(-1)
    doubt = DOUBT * DOUBT_BLOCKS / (DOUBT_BLOCKS + blocks)
    doubt = torch.where(blocks > 0, doubt, torch.inf)
    doubt = torch.cat([torch.zeros_like(doubt[:, :1]), doubt], dim=1)
    ahead = torch.arange(1, horizon + 1, device=sums.device, dtype=torch.float64)
    stale = STALENESS * torch.log1p(ages.unsqueeze(-1) / ahead)
    stale = torch.cat([torch.zeros_like(stale[:, :1]), stale], dim=1)
    return torch.softmax(-SHARPNESS * excess - doubt.unsqueeze(-1) - beyond - stale, dim=1)


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor, made once: CUDA graphs cannot hold its way to the device."""
    return torch.tensor(values, dtype=dtype, device=device)


@functools.lru_cache(maxsize=256)
def _reach(
    factors: tuple[int, ...], horizon: int, direct: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """How far each step ahead counts as far [horizon], and what rolling out costs [R, horizon]."""
    ahead = torch.arange(1, horizon + 1, device=device, dtype=torch.float64)
    reach = torch.tensor([1, *factors], device=device, dtype=torch.float64) * direct
    far = ((ahead - direct / 8) / (direct / 4)).clamp(0.0, 1.0)
    return far, torch.log((ahead / reach.unsqueeze(1)).clamp_min(1.0))


def narrowing(shares: Tensor) -> Tensor:
    """Factor on the spread of the mean of quantiles with weights [B, R, H]: [B, H], at most 1.

    The mean of several forecasts errs less than each of them does, by how evenly they are mixed;
    the mean of their spreads knows nothing of it.
    """
    return 1.0 - OVERLAP * (1.0 - shares.square().sum(1))
