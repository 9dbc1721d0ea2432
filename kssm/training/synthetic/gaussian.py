"""Composed series in the manner of random Gaussian-process kernels: sums and products."""

from __future__ import annotations

from torch import Tensor

from kssm.training.synthetic.periods import draw_periods
from kssm.training.synthetic.profiles import harmonic_profile, read_profile
from kssm.training.synthetic.sampler import Sampler, mixture
from kssm.training.synthetic.signals import coloured_noise, standardise
from kssm.training.synthetic.trends import relative_time

STEPS = 3


def composed(sampler: Sampler) -> Tensor:
    """One component, then up to three more added or multiplied on, and white noise."""
    x, *others = component(sampler.resized((1 + STEPS) * sampler.rows)).split(sampler.rows)
    for other in others:
        forms = [(0.25, _kept), (0.45, _added), (0.15, _multiplied), (0.15, _scaled)]
        x = mixture(sampler, forms, x, other)
    noise = sampler.log_uniform(0.003, 0.5) * sampler.normal(sampler.length)
    return x + noise * x.std(1, keepdim=True)


def _kept(_: Sampler, x: Tensor, other: Tensor) -> Tensor:  # noqa: ARG001
    return x


def _added(sampler: Sampler, x: Tensor, other: Tensor) -> Tensor:
    return x + sampler.log_uniform(0.2, 2.0) * other


def _multiplied(_: Sampler, x: Tensor, other: Tensor) -> Tensor:
    return x * other


def _scaled(_: Sampler, x: Tensor, other: Tensor) -> Tensor:
    return x * (1.0 + other)


def component(sampler: Sampler) -> Tensor:
    """A periodic signal, coloured noise or a straight line, of deviation about 1."""
    return mixture(sampler, [(4.0, periodic), (4.0, coloured_noise), (1.0, line)])


def periodic(sampler: Sampler) -> Tensor:
    """A harmonic cycle of a calendar or random period, standardised."""
    period = draw_periods(sampler)[:, :1]
    phase = sampler.time() / period + sampler.uniform(0.0, 1.0)
    table = harmonic_profile(sampler, period, harmonics=8, decay=(0.5, 3.0))
    return standardise(read_profile(table, phase))


def line(sampler: Sampler) -> Tensor:
    """A line of random slope and height."""
    return sampler.uniform(-3.0, 3.0) * relative_time(sampler) + sampler.normal()


def stationary_component(sampler: Sampler) -> Tensor:
    """A cycle or coloured noise, standardised (roots of causal graphs)."""
    return mixture(sampler, [(0.55, periodic), (0.45, coloured_noise)])
