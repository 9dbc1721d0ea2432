"""Checkpoints of audio forecasters: shipped ones by name, others from a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from kssm.audio.config import AudioConfig
from kssm.audio.forecaster import AudioForecaster
from kssm.audio.model import AudioNetwork
from kssm.checkpoint import load_weights, read_config, save_model
from kssm.errors import CheckpointError, InvalidInputError
from kssm.forecast.pretrained import locate
from kssm.models.kssm import KSSMConfig
from kssm.models.registry import config_from_mapping

DEFAULT: Final = "kssm-audio"
ARCHITECTURE: Final = "kssm-audio-forecaster"


def save(network: AudioNetwork, folder: str | Path, *, half: bool = True) -> None:
    """Write a checkpoint folder (matrices in fp16 when ``half``)."""
    config = {"architecture": ARCHITECTURE, "format": 1, **asdict(network.config)}
    save_model(folder, config, network, dtype=torch.float16 if half else None)


def parse(config: dict[str, Any], folder: Path) -> AudioConfig:
    """The configuration in ``config.json``; raises ``invalid_checkpoint``."""
    fields = dict(config)
    if fields.pop("architecture", None) != ARCHITECTURE or fields.pop("format", None) != 1:
        raise CheckpointError(f"{folder} is not a format 1 {ARCHITECTURE}")
    try:
        backbone = config_from_mapping("kssm", fields.pop("backbone"))
        assert isinstance(backbone, KSSMConfig)
        return AudioConfig(backbone=backbone, **fields)
    except (KeyError, TypeError, AttributeError, InvalidInputError) as error:
        raise CheckpointError(f"{folder}: malformed configuration: {error}") from error


def load(
    name_or_path: str | Path = DEFAULT,
    device: str | torch.device = "cpu",
    *,
    check_values: bool = True,
) -> AudioForecaster:
    """In evaluation mode on ``device``; raises ``model_not_found``, ``CheckpointError``."""
    folder = locate(name_or_path)
    network = AudioForecaster(parse(read_config(folder), folder))
    load_weights(network, folder, check_values=check_values)
    return network.eval().requires_grad_(False).to(device)
