"""Cloud-operations series: levels that jump with deployments, bursts, spikes, full machines."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import events, standardise
from kssm.training.synthetic.structural import structural
from kssm.training.synthetic.trends import drifting_levels


def cloud_operations(sampler: Sampler) -> Tensor:
    """A load with plateaus and spikes; often cut at its floor or its ceiling."""
    load = standardise(structural(sampler)) * sampler.uniform(0.0, 1.0)
    load = load + sampler.log_uniform(0.3, 3.0) * drifting_levels(sampler)
    load = load + sampler.gate(0.6) * spikes(sampler) + 0.05 * sampler.normal(sampler.length)
    limits = [
        (0.5, lambda _, x: x),
        (0.4, lambda _, x: x.clamp(min=-0.5)),
        (0.1, lambda s, x: torch.minimum(x, s.uniform(0.5, 1.5))),
    ]
    return mixture(sampler, limits, load)


def spikes(sampler: Sampler) -> Tensor:
    """Single high samples at 2 ... 60 random times, log-normal heights."""
    height = torch.exp(0.8 * sampler.normal(sampler.length)) * sampler.log_uniform(1.0, 8.0)
    return events(sampler, sampler.log_uniform(2.0, 60.0)) * height
