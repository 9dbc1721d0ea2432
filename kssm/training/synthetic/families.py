"""The families by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from kssm.training.synthetic.bounded import bounded
from kssm.training.synthetic.calendars import calendar
from kssm.training.synthetic.causal import causal_graph
from kssm.training.synthetic.cloud import cloud_operations
from kssm.training.synthetic.counts import counts, intermittent
from kssm.training.synthetic.gaussian import composed
from kssm.training.synthetic.growth import growth
from kssm.training.synthetic.oscillations import oscillations
from kssm.training.synthetic.pulses import pulses
from kssm.training.synthetic.sampler import Sampler
from kssm.training.synthetic.stochastic import stochastic
from kssm.training.synthetic.structural import structural

Family = Callable[[Sampler], Tensor]

# The names are the fields of ``FamilyWeights``.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "structural": structural,
        "calendar": calendar,
        "bounded": bounded,
        "composed": composed,
        "causal": causal_graph,
        "stochastic": stochastic,
        "counts": counts,
        "intermittent": intermittent,
        "pulses": pulses,
        "cloud": cloud_operations,
        "oscillations": oscillations,
        "growth": growth,
    }
)
