"""Loading forecasters: by the name of a shipped checkpoint or from a folder."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from kssm.checkpoint import load_weights, read_config, save_model
from kssm.errors import CheckpointError, InvalidInputError, NotFoundError
from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
from kssm.forecast.resolutions import build_forecaster
from kssm.models.registry import config_from_mapping, name_of
from kssm.quantization import WeightFormat, format_of, parse_format, quantize

DEFAULT = "kssm-signal-base"
ARCHITECTURE = "kssm-signal-forecaster"


def available() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    return sorted(path.name for path in _shipped().iterdir() if (path / "config.json").is_file())


def locate(name_or_path: str | Path) -> Path:
    """Folder of a shipped checkpoint or of a path; raises ``model_not_found``."""
    shipped = _shipped() / str(name_or_path)
    for folder in (shipped, Path(name_or_path)):
        if (folder / "config.json").is_file():
            return folder
    names = ", ".join(available()) or "none"
    raise NotFoundError(
        f"no checkpoint {str(name_or_path)!r}: not a folder with config.json, shipped are: {names}",
        code="model_not_found",
    )


def load(
    name_or_path: str | Path = DEFAULT,
    device: str | torch.device = "cpu",
    *,
    weights: WeightFormat | None = None,
    check_values: bool = True,
) -> SignalForecaster:
    """A forecaster in evaluation mode on ``device``, from a name or a folder.

    ``weights`` is the format its weights get (``kssm.quantization``), None = the file's own.
    ``check_values`` refuses weights that are not finite. Raises ``model_not_found``,
    ``CheckpointError`` and ``invalid_weights``.
    """
    folder = locate(name_or_path)
    config = read_config(folder)
    stored = parse_format(config.pop("weights", "float32"))
    forecaster = build_forecaster(_parse(config, folder))
    quantize(forecaster, stored)
    load_weights(forecaster, folder, check_values=check_values)
    quantize(forecaster, weights or stored)
    forecaster = forecaster.eval().requires_grad_(False).to(device)
    forecaster.native.hold()
    return forecaster


def save(forecaster: SignalForecaster, folder: str | Path, *, half: bool = True) -> None:
    """Write a forecaster as a checkpoint folder (matrices in fp16 when ``half``).

    Quantized weights are written in their own format.
    """
    model, weights = name_of(forecaster.config.backbone), format_of(forecaster)
    # Files of the first format carry no model's name: they are KSSM.
    named = {} if model == "kssm" else {"model": model}
    named |= {} if weights == "float32" else {"weights": weights}
    config = {"architecture": ARCHITECTURE, "format": 1, **named, **asdict(forecaster.config)}
    save_model(folder, config, forecaster, dtype=torch.float16 if half else None)


def _shipped() -> Path:
    return Path(str(resources.files("kssm"))) / "pretrained"


def _parse(config: dict[str, Any], folder: Path) -> ForecasterConfig:
    fields = dict(config)
    if fields.pop("architecture", None) != ARCHITECTURE or fields.pop("format", None) != 1:
        raise CheckpointError(f"{folder} is not a format 1 {ARCHITECTURE}")
    model = fields.pop("model", "kssm")
    try:
        backbone = config_from_mapping(model, fields.pop("backbone"))
        thinning = tuple(fields.pop("thinning", ()))
        return ForecasterConfig(backbone=backbone, thinning=thinning, **fields)
    except (KeyError, TypeError, AttributeError, InvalidInputError) as error:
        raise CheckpointError(f"{folder}: malformed configuration: {error}") from error
