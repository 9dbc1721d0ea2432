"""Synthetic signals on CPU or GPU: named families, mixed and augmented, fixed by a seed."""

from kssm.training.synthetic.config import (
    SHORT_WEIGHTS,
    AugmentationConfig,
    FamilyWeights,
    SyntheticConfig,
)
from kssm.training.synthetic.families import FAMILIES
from kssm.training.synthetic.generator import generate
from kssm.training.synthetic.sampler import Sampler

__all__ = [
    "FAMILIES",
    "SHORT_WEIGHTS",
    "AugmentationConfig",
    "FamilyWeights",
    "Sampler",
    "SyntheticConfig",
    "generate",
]
