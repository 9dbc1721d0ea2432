"""``generate``: families in proportion, shuffled, augmented."""

from __future__ import annotations

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.training.synthetic.augment import augment
from kssm.training.synthetic.config import SyntheticConfig
from kssm.training.synthetic.families import FAMILIES
from kssm.training.synthetic.sampler import Sampler, device_generator, mixture

SHORTEST = 32


@torch.no_grad()
def generate(
    config: SyntheticConfig,
    count: int,
    length: int,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws ``count`` finite float32 series ``[count, length]``, all families mixed in the rows.

    The same generator state, device type and arguments give the same series. Nothing here waits
    for the device, so a GPU's queue stays full. ``length`` below 32 or ``count`` below 1 raises
    ``InvalidInputError`` (``invalid_config``).
    """
    if count < 1 or length < SHORTEST:
        message = f"cannot generate {count} series of {length} samples"
        raise InvalidInputError(message, code="invalid_config")
    place = torch.device(device)
    short = length <= config.short_length
    sampler = Sampler(count, length, short, device_generator(generator, place), place)
    weights = (config.short_weights if short else config.weights).as_dict()
    options = [(weight, FAMILIES[name]) for name, weight in weights.items() if weight > 0.0]
    raw = torch.nan_to_num(mixture(sampler, options), nan=0.0, posinf=0.0, neginf=0.0)
    return augment(sampler, raw, config.augmentation)
