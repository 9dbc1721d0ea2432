"""Any checkpoint by name or path, whatever it holds."""

from __future__ import annotations

from pathlib import Path

import torch

from kssm import audio, language
from kssm.audio import AudioForecaster
from kssm.audio.pretrained import is_audio
from kssm.checkpoint import read_config
from kssm.forecast import SignalForecaster, pretrained
from kssm.language import LanguageModel
from kssm.language.pretrained import is_language_model
from kssm.quantization import WeightFormat, format_of, quantize

Model = SignalForecaster | AudioForecaster | LanguageModel


def load_any(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    *,
    window: int | None = None,
    weights: WeightFormat | None = None,
    check_values: bool = True,
) -> Model:
    """A forecaster (of signals or sound) or a language model in evaluation mode, by name or folder.

    Args:
        name_or_path: a shipped model's name, or a folder of ours or of ``transformers``.
        device: where the model is to live.
        window: tokens that a language model's attention sees, where its own are more.
        weights: the format its weights get (``kssm.quantization``), None = as they are stored; a
            language model's vocabulary stays as it is.
        check_values: refuse weights that are not finite.

    Raises:
        InvalidInputError: ``invalid_weights``.
        NotFoundError: ``model_not_found``.
        CheckpointError: ``invalid_checkpoint``, ``unsupported_checkpoint``.
    """
    folder = pretrained.locate(name_or_path)
    config = read_config(folder)
    if is_audio(config):
        return audio.load(folder, device, weights=weights, check_values=check_values)
    if is_language_model(config):
        model = language.load(folder, device, window=window, check_values=check_values)
        quantize(model, weights or format_of(model), keep={"head"})
        return model
    return pretrained.load(folder, device, weights=weights, check_values=check_values)
