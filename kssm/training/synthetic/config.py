"""Configuration of the synthetic generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from kssm.errors import InvalidInputError


def _refuse(message: str) -> InvalidInputError:
    return InvalidInputError(message, code="invalid_config")


@dataclass(frozen=True)
class FamilyWeights:
    """Share of each family; any non-negative numbers, only their proportions count."""

    structural: float = 0.34
    calendar: float = 0.19
    bounded: float = 0.06
    composed: float = 0.09
    causal: float = 0.05
    stochastic: float = 0.07
    counts: float = 0.05
    intermittent: float = 0.02
    pulses: float = 0.05
    cloud: float = 0.05
    oscillations: float = 0.02
    growth: float = 0.01

    def __post_init__(self) -> None:
        values = self.as_dict().values()
        if any(not value >= 0.0 for value in values) or not sum(values) > 0.0:
            raise _refuse("family weights must be non-negative and not all zero")

    def as_dict(self) -> dict[str, float]:
        """Family name to weight."""
        return asdict(self)


SHORT_WEIGHTS = FamilyWeights(
    structural=0.45,
    calendar=0.07,
    bounded=0.02,
    composed=0.09,
    causal=0.03,
    stochastic=0.09,
    counts=0.08,
    intermittent=0.05,
    pulses=0.03,
    cloud=0.03,
    oscillations=0.01,
    growth=0.05,
)


@dataclass(frozen=True)
class AugmentationConfig:
    """Probability, a row, of each augmentation; they are applied in this order."""

    mixup: float = 0.15
    stretch: float = 0.05
    smooth: float = 0.04
    flip_sign: float = 0.15
    flip_time: float = 0.10
    censor_above: float = 0.04
    censor_below: float = 0.06
    quantise: float = 0.12
    outliers: float = 0.07
    stuck: float = 0.03
    dropouts: float = 0.03
    offset: float = 0.70
    scale_deviation: float = 2.0  # of the logarithm of the final scale; not a probability

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            limit = float("inf") if item.name == "scale_deviation" else 1.0
            if not 0.0 <= value <= limit:
                raise _refuse(f"augmentation {item.name} = {value} is out of range")


@dataclass(frozen=True)
class SyntheticConfig:
    """What ``generate`` draws from.

    Series of at most ``short_length`` samples are drawn in the short regime: periods of yearly,
    quarterly, monthly and weekly data, more trend, fewer seasons, ``short_weights``.
    """

    weights: FamilyWeights = field(default_factory=FamilyWeights)
    short_weights: FamilyWeights = SHORT_WEIGHTS
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    short_length: int = 512
