"""Series from random causal graphs: root signals pushed through lags, sums and nonlinearities."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.gaussian import stationary_component
from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import standardise
from kssm.training.synthetic.trends import trend

ROOTS = 3
CHILDREN = 3
EDGE_PROBABILITY = 0.6


def causal_graph(sampler: Sampler) -> Tensor:
    """The last node of a random acyclic graph, ``[rows, length]``.

    Three roots (cycles, coloured noise, one with a trend), then three nodes, each a random
    nonlinearity of a weighted sum of lagged earlier nodes, and a little noise.
    """
    nodes = list(stationary_component(sampler.resized(ROOTS * sampler.rows)).split(sampler.rows))
    nodes[-1] = nodes[-1] + sampler.gate(0.4) * trend(sampler)
    for _ in range(CHILDREN):
        nodes.append(standardise(_child(sampler, nodes)))
    noise = sampler.log_uniform(0.003, 0.3) * sampler.normal(sampler.length)
    return nodes[-1] + noise


def _child(sampler: Sampler, parents: list[Tensor]) -> Tensor:
    last = parents[-1]
    total = sampler.normal() * lagged(sampler, last)
    for parent in parents[:-1]:
        weight = sampler.normal() * sampler.gate(EDGE_PROBABILITY)
        total = torch.addcmul(total, weight, parent)
    return activation(sampler, total + 0.5 * sampler.normal())


def lagged(sampler: Sampler, x: Tensor) -> Tensor:
    """Half of the rows delayed by up to a sixteenth of the series, the start mirrored."""
    lag = sampler.integers(0, max(sampler.length // 16, 1) + 1) * sampler.chance(0.5)
    position = torch.arange(sampler.length, device=sampler.device)[None]
    return x.gather(1, (position - lag).abs())


def activation(sampler: Sampler, x: Tensor) -> Tensor:
    """One of seven nonlinearities for each row."""
    options = [
        (0.35, lambda _, x: x),
        (0.15, lambda _, x: torch.tanh(2.0 * x)),
        (0.12, lambda _, x: torch.relu(x)),
        (0.10, lambda s, x: torch.sin(s.uniform(0.5, 2.0) * x)),
        (0.10, lambda _, x: torch.where(x > 0.0, x, 0.2 * x)),
        (0.10, lambda _, x: x.clamp(-3.0, 3.0).square()),
        (0.08, lambda _, x: torch.exp((0.6 * x).clamp(max=4.0))),
    ]
    return mixture(sampler, options, x)
