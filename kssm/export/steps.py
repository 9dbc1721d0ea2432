"""The step as a function: explicit state in, explicit state out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kssm.export.packing import Layout
from kssm.forecast import SignalForecaster, scaler
from kssm.forecast.forecaster import MAX_NORMALISED
from kssm.forecast.resolutions import at_one_resolution
from kssm.language import LanguageModel
from kssm.models import SequenceModel


class ModelStep(nn.Module):
    """One token for each of N rows of a bare model."""

    inputs = ("x", "dt")
    outputs = ("y",)

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model
        self.layout = Layout.of(model.state_spec())

    def forward(self, x: Tensor, dt: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Advance all rows.

        Args:
            x: [N, d_model] tokens.
            dt: [N] factors of the step; rows with dt = 0 stay as they are and yield 0.
            state: packed tensors [N, size] (see ``layout``); zeros are fresh rows.

        Returns:
            y [N, d_model] and the packed tensors after the token.
        """
        arena = self.layout.unpack(state)
        rows = torch.arange(x.shape[0], device=x.device)
        moving = (dt > 0).unsqueeze(1)
        y = self.model.step_rows_(x, arena, rows, torch.where(dt > 0, dt, 1.0))
        new = zip(self.layout.pack(arena), state, strict=True)
        kept = (torch.where(moving, after, before) for after, before in new)
        return torch.where(moving, y, 0.0), *kept


class LanguageStep(nn.Module):
    """One token for each of N rows of a language model."""

    inputs = ("tokens",)
    outputs = ("logits",)

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.layout = Layout.of(model.state_spec())

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """tokens [N] int64 and packed states -> logits [N, vocabulary] and the states after."""
        arena = self.layout.unpack(state)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        logits = self.model.step_(tokens, arena, rows)
        return logits, *self.layout.pack(arena)


class ForecasterStep(nn.Module):
    """One sample for each of N rows of a forecaster, scaler and head included.

    Thinned copies stay behind: the step is that of the row itself.
    """

    inputs = ("values", "dt")
    outputs = ("quantiles", "tail", "healthy")

    def __init__(self, forecaster: SignalForecaster) -> None:
        super().__init__()
        self.forecaster = at_one_resolution(forecaster)
        self.layout = Layout.of(self.forecaster.state_spec())

    def forward(self, values: Tensor, dt: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Advance all rows.

        Args:
            values: [N] float64 samples, NaN = missing.
            dt: [N] float64 time since the previous sample in sample intervals, > 0.
            state: packed tensors [N, size] (see ``layout``); zeros are fresh rows.

        Returns:
            quantiles [N, K, 9] float64 of the next K samples at the levels 0.1 ... 0.9 (NaN before
            the first value), tail [N] as ``StepOutput``, healthy [N], and the packed
            tensors after the sample.
        """
        arena = self.layout.unpack(state)
        rows = torch.arange(values.shape[0], device=values.device)
        tail, healthy = self.forecaster.step_torch_(values, arena, rows, dt)
        bounded = arena["forecast"].double().clamp(-MAX_NORMALISED, MAX_NORMALISED)
        quantiles = scaler.denormalise(bounded, arena["scaler"])
        unseen = (arena["scaler"][:, 0] == 0)[:, None, None]
        quantiles = quantiles.masked_fill(unseen, torch.nan)
        return quantiles, tail, healthy, *self.layout.pack(arena)
