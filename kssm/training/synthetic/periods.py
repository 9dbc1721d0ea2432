"""Which seasonal periods series have: the calendar's at usual sampling rates, and random ones."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.training.synthetic.sampler import Sampler, constant

# Main, second and third period in samples, weight. A row of zeros stands for random periods.
CALENDAR_PERIODS: tuple[tuple[float, float, float, float], ...] = (
    (24, 168, 8766, 5.0),  # hourly: day, week, year
    (96, 672, 35064, 4.0),  # a quarter of an hour
    (144, 1008, 52560, 3.5),  # ten minutes
    (288, 2016, 105120, 4.0),  # five minutes
    (48, 336, 17520, 3.0),  # half an hour
    (7, 30.44, 365.25, 4.0),  # daily: week, month, year
    (52.18, 13, 4.35, 2.0),  # weekly
    (12, 6, 4, 2.0),  # monthly
    (4, 8, 20, 1.0),  # quarterly
    (60, 1440, 10080, 2.0),  # a minute
    (6, 360, 8640, 1.5),  # ten seconds: minute, hour, day
    (60, 3600, 300, 1.0),  # a second
    (365.25, 7, 30.44, 1.5),  # daily, led by the year
    (24, 12, 8766, 1.5),  # hourly with a half-day cycle (tides, commuters)
    (288, 144, 2016, 1.0),
    (96, 48, 672, 1.0),
    (360, 8640, 60480, 1.0),  # ten seconds, led by the hour
    (720, 5040, 30, 1.0),  # two minutes
    (0, 0, 0, 5.0),
)
SHORT_PERIODS: tuple[tuple[float, float, float, float], ...] = (
    (4, 8, 20, 2.0),
    (12, 6, 48, 5.0),
    (52.18, 13, 26.1, 2.0),
    (7, 30.44, 365.25, 3.0),
    (24, 168, 12, 2.0),
    (48, 336, 24, 1.0),
    (5, 21, 63, 1.0),  # trading days
    (1e6, 1e5, 1e5, 3.0),  # no season within reach (yearly data)
    (0, 0, 0, 2.0),
)


def draw_periods(sampler: Sampler) -> Tensor:
    """Three periods in samples for each row, ``[rows, 3]``, the main one first."""
    table = SHORT_PERIODS if sampler.short else CALENDAR_PERIODS
    known = constant([row[:3] for row in table], sampler.device)
    drawn = known[sampler.choice([row[3] for row in table])]
    return torch.where(drawn == 0.0, _random_periods(sampler), drawn)


def _random_periods(sampler: Sampler) -> Tensor:
    """A free period, a small multiple of it, and another free one; half of them whole numbers."""
    longest, slowest = (80.0, 200.0) if sampler.short else (300.0, 2000.0)
    main = sampler.log_uniform(3.0, longest)
    free = torch.cat(
        [main, main * sampler.integers(2, 13), sampler.log_uniform(3.0, slowest)], dim=1
    )
    return torch.where(sampler.chance(0.5), free.round(), free)
