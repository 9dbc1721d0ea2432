"""Checkpoints of audio forecasters: shipped ones by name, others from a folder."""

from __future__ import annotations

from collections.abc import Mapping
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
from kssm.quantization import WeightFormat, quantize

DEFAULT: Final = "kssm-audio"
ARCHITECTURE: Final = "kssm-audio-forecaster"


def is_audio(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes an audio forecaster."""
    return config.get("architecture") == ARCHITECTURE


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
        listed = {name: tuple(fields.pop(name)) for name in ("orders", "memories")}
        return AudioConfig(backbone=backbone, **listed, **fields)
    except (KeyError, TypeError, AttributeError, InvalidInputError) as error:
        raise CheckpointError(f"{folder}: malformed configuration: {error}") from error


def load(
    name_or_path: str | Path = DEFAULT,
    device: str | torch.device = "cpu",
    *,
    weights: WeightFormat | None = None,
    check_values: bool = True,
) -> AudioForecaster:
    """In evaluation mode on ``device``, with weights in a format of ``kssm.quantization``.

    Raises ``model_not_found``, ``CheckpointError``, ``invalid_weights``.
    """
    folder = locate(name_or_path)
    network = AudioForecaster(parse(read_config(folder), folder))
    load_weights(network, folder, check_values=check_values)
    quantize(network, weights or "float32")
    return network.eval().requires_grad_(False).to(device)
