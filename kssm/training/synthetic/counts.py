"""Counts and intermittent demand: non-negative, often zero, over a structural rate."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import slow_noise, standardise
from kssm.training.synthetic.structural import structural

MAX_RATE = 5e4


def counts(sampler: Sampler) -> Tensor:
    """Poisson counts with seasonal rates, over-dispersion and excess zeros; whole numbers >= 0."""
    rate = count_rate(sampler)
    spread = sampler.uniform(0.0, 0.8) * sampler.gate(0.4)
    rate = rate * torch.exp(spread * sampler.normal(sampler.length))
    drawn = torch.poisson(rate.clamp(0.0, MAX_RATE), generator=sampler.generator)
    absent = sampler.gate(0.4) * sampler.uniform(0.0, 0.9)
    return drawn * (sampler.uniform(0.0, 1.0, sampler.length) >= absent)


def count_rate(sampler: Sampler) -> Tensor:
    """Expected counts, log-linear or linear in a structural series, 0.03 ... 100 on average."""
    driver = standardise(structural(sampler)).clamp(-4.0, 6.0)
    base = sampler.log_uniform(0.03, 100.0)
    log_linear = torch.exp(sampler.uniform(0.0, 1.0) * driver)
    linear = torch.relu(1.0 + 0.6 * driver)
    return base * torch.where(sampler.chance(0.5), log_linear, linear)


def intermittent(sampler: Sampler) -> Tensor:
    """Lumpy demand: long zero stretches, sizes whole or log-normal; >= 0."""
    return mixture(sampler, [(0.5, sized_counts), (0.5, renewal_demand)])


def sized_counts(sampler: Sampler) -> Tensor:
    """Counts of orders, each with a log-normal amount."""
    return counts(sampler) * torch.exp(0.7 * sampler.normal(sampler.length))


def renewal_demand(sampler: Sampler) -> Tensor:
    """Orders of whole size arriving with a slowly changing probability of 2 ... 60%."""
    logit = torch.logit(sampler.log_uniform(0.02, 0.6))
    probability = torch.sigmoid(logit + sampler.uniform(0.0, 1.0) * slow_noise(sampler))
    arrives = sampler.uniform(0.0, 1.0, sampler.length) < probability
    mean_extra = sampler.log_uniform(0.1, 30.0).expand(-1, sampler.length)
    size = 1.0 + torch.poisson(mean_extra, generator=sampler.generator)
    return arrives * size
