"""What training minimises: logarithms of error energies, and the spreads' likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from kssm.audio.model import AudioNetwork, Encoded
from kssm.audio.next_sample import Guess

_WARM_UP: Final = 8
_QUIET: Final = 1e-7
_FAINT: Final = 1e-4
_SHARES: Final = (0.25, 0.25, 0.5)  # of the first patch, the first two, the first four


@dataclass(frozen=True)
class Lost:
    """Some patches of a batch replaced by what the network would put there.

    samples: [B, T] with the gaps filled; share: [B, N] 1 where a patch was lost.
    """

    samples: Tensor
    share: Tensor


def fresh(network: AudioNetwork, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """History and context of rows that have heard nothing."""
    config = network.config
    history = torch.zeros(rows, config.history, device=device)
    return history, torch.zeros(rows, config.backbone.d_model, device=device)


@torch.no_grad()
def lose(
    network: AudioNetwork, samples: Tensor, rows: int, gaps: int, generator: torch.Generator
) -> Lost:
    """Lose ``gaps`` stretches of one to four patches in each of the first ``rows`` rows."""
    config, device = network.config, samples.device
    patches = samples.shape[1] // config.patch
    share = torch.zeros(len(samples), patches, device=device)
    if not rows:
        return Lost(samples, share)
    history, context = fresh(network, rows, device)
    encoded, _ = network.encode(samples[:rows], history, context, share[:rows], None)
    room = (patches - 8) // gaps
    draw = torch.randint(0, room - 4, (rows, gaps), generator=generator, device=device)
    border = 8 + torch.arange(gaps, device=device) * room + draw
    lengths = torch.randint(1, 5, (rows, gaps), generator=generator, device=device)
    row = torch.arange(rows, device=device).repeat_interleave(gaps)
    guess = _look(network, encoded, row, border.flatten() * config.blocks)[0].mean
    filled = samples.clone()
    for k in range(4):
        kept = (lengths.flatten() > k).nonzero().squeeze(1)
        at = border.flatten()[kept] + k
        place = at.unsqueeze(1) * config.patch + torch.arange(config.patch, device=device)
        filled[row[kept].unsqueeze(1), place] = guess[
            kept, k * config.patch : (k + 1) * config.patch
        ]
        share[row[kept], at] = 1.0
    return Lost(filled, share)


def losses(
    network: AudioNetwork, truth: Tensor, lost: Lost, reads: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Loss terms of a batch; ``reads`` borders of each row are looked ahead from."""
    history, context = fresh(network, len(truth), truth.device)
    encoded, _ = network.encode(lost.samples, history, context, lost.share, None)
    patch = network.config.patch
    ahead = network.guess_next(encoded, lost.samples)
    folded = Guess(*(part.unflatten(1, (-1, patch)) for part in ahead))
    terms = _next_terms(folded, truth.unflatten(1, (-1, patch)), lost.share == 0)
    return terms | _outlook_terms(network, encoded, truth, reads, generator)


def _next_terms(guess: Guess, truth: Tensor, heard: Tensor) -> dict[str, Tensor]:
    """Guesses and truth [B, N, patch]; the first patches of a row are left out."""
    heard = heard[:, _WARM_UP:]
    truth, mean = truth[:, _WARM_UP:], guess.mean[:, _WARM_UP:]
    loudness = truth.square().mean((1, 2)).view(-1, 1, 1).sqrt() + 1e-9
    error = (truth - mean) / loudness
    energy = (truth / loudness).square().mean(-1) + _QUIET
    wrong = error.square().mean(-1) + _QUIET
    wide, wide_wrong = energy.unfold(1, 4, 2).mean(-1), wrong.unfold(1, 4, 2).mean(-1)
    gain = _mean((wrong / energy).log(), heard)
    gain = gain + _mean((wide_wrong / wide).log(), heard.unfold(1, 4, 2).all(-1))
    spread = guess.scale[:, _WARM_UP:] / loudness + _QUIET**0.5
    likelihood = (error.detach().abs() / spread).clamp(max=200.0) + spread.log()
    return {"next": 0.5 * gain, "next_spread": _mean(likelihood.mean(-1), heard)}


def _outlook_terms(
    network: AudioNetwork, encoded: Encoded, truth: Tensor, reads: int, generator: torch.Generator
) -> dict[str, Tensor]:
    config = network.config
    rows, device = len(truth), truth.device
    last = encoded.context.shape[1] - 2 - config.horizon // config.patch
    shape, blocks = (rows * reads,), config.blocks
    border = torch.randint(_WARM_UP, last, shape, generator=generator, device=device)
    within = torch.randint(0, blocks, shape, generator=generator, device=device)
    aligned = torch.rand(shape, generator=generator, device=device) < 0.5
    block = border * blocks + within.masked_fill(aligned, 0)
    row = torch.arange(rows, device=device).repeat_interleave(reads)
    guess, level = _look(network, encoded, row, block)
    place = block.unsqueeze(1) * config.block + torch.arange(config.horizon, device=device)
    target = truth[row.unsqueeze(1), place]
    error = (target - guess.mean) / level
    stretches = ((share, n * config.patch) for share, n in zip(_SHARES, (1, 2, 4), strict=True))
    gains = [
        share * _log_energy(error[:, :size], target[:, :size] / level) for share, size in stretches
    ]
    spread = guess.scale / level + 1e-3
    likelihood = ((error.detach().abs() / spread).clamp(max=50.0) + spread.log()).mean()
    return {
        "outlook": torch.stack(gains).sum(),
        "outlook_all": _share_lost(target, guess.mean, rows, 4 * config.patch),
        "outlook_spread": likelihood,
    }


def _look(
    network: AudioNetwork, encoded: Encoded, row: Tensor, block: Tensor
) -> tuple[Guess, Tensor]:
    """The outlooks before blocks [R] of rows [R], and the levels [R, 1] there."""
    context = encoded.context[row, block // network.config.blocks]
    guess = network.look_ahead(encoded.blocks[row, block], context)
    return guess, encoded.linear.level[row, block].unsqueeze(-1)


def _log_energy(error: Tensor, target: Tensor) -> Tensor:
    """Mean logarithm of the error's share of the energy, none above 1,000."""
    ratio = (error.square().mean(-1) + _FAINT) / (target.square().mean(-1) + _FAINT)
    return torch.log(ratio.clamp(max=1e3) + 1e-3).mean()


def _share_lost(target: Tensor, mean: Tensor, rows: int, size: int) -> Tensor:
    """The error's share of the energy of all of a row's reads [rows * reads, horizon] together."""
    wrong = (target - mean)[:, :size].square().unflatten(0, (rows, -1)).mean((1, 2))
    energy = target[:, :size].square().unflatten(0, (rows, -1)).mean((1, 2))
    return (wrong / (energy + 1e-14)).clamp(max=10.0).mean()


def _mean(x: Tensor, kept: Tensor) -> Tensor:
    return (x * kept).sum() / kept.sum().clamp_min(1)
