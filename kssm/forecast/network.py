"""The forecaster's network in plain PyTorch, on any device: the reference of everything faster.

Causal scaler -> embedding -> backbone -> quantile head, a whole series at once or step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kssm.forecast import scaler
from kssm.forecast.distribution import LEVELS, SCORED_HORIZONS, tail_probability
from kssm.forecast.head import QuantileHead
from kssm.models import KSSMConfig, State, StateSpec, build
from kssm.models.base import PrefillOutput, StepOutput
from kssm.models.layers import init_linear
from kssm.models.registry import name_of
from kssm.models.stack import StackConfig

MAX_NORMALISED = 12.0
"""Bound on normalised quantiles: sinh(12) is 81,000 scales from the location."""


@dataclass(frozen=True)
class ForecasterConfig:
    """Shape of a forecaster.

    Attributes:
        backbone: sizes of the stack; their class says which model of the registry it is.
        head_horizon: samples ahead that the head forecasts at once (longer ones roll out).
        head_hidden: width of the head's hidden layer.
        thinning: factors k of the thinned copies (every k-th sample) that are read beside a row
            (``kssm.forecast.resolutions``); each divides ``head_horizon``.
    """

    backbone: StackConfig = field(default_factory=KSSMConfig)
    head_horizon: int = 64
    head_hidden: int = 512
    thinning: tuple[int, ...] = ()

    @property
    def levels(self) -> tuple[float, ...]:
        return LEVELS


class ForecastNetwork(nn.Module):
    """Embedding, backbone and head, and what one resolution of a row goes through."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = init_linear(scaler.FEATURES, config.backbone.d_model, std=0.3, bias=True)
        self.backbone = build(name_of(config.backbone), config.backbone)
        self.head = QuantileHead(config.backbone.d_model, config.head_hidden, config.head_horizon)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def row_spec(self) -> StateSpec:
        """Shapes and dtypes of what one resolution of a row carries."""
        return {
            "scaler": ((len(scaler.FIELDS),), torch.float64),
            "forecast": ((self.config.head_horizon, len(LEVELS)), torch.float32),
            **self.backbone.state_spec(),
        }

    @torch.inference_mode()
    def prefill_torch(
        self,
        values: Tensor,
        state: State,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> PrefillOutput:
        """``prefill`` in plain PyTorch, on any device: the reference and the fallback."""
        return self._prefill(values, state, lengths, dt)[0]

    @torch.inference_mode()
    def prefill_reading(
        self,
        values: Tensor,
        state: State,
        lengths: Tensor | None,
        dt: Tensor | None,
        picks: Tensor,
    ) -> tuple[Tensor, State, tuple[Tensor, Tensor]]:
        """``prefill_torch`` that also reads the forecasts after the tokens ``picks`` [B, n].

        Returns tail, state, and normalised quantiles [B, n, K, 9] with the statistics [B, n, 7]
        they belong to.
        """
        output, hidden, path = self._prefill(values, state, lengths, dt)
        rows = torch.arange(len(picks), device=picks.device).unsqueeze(1)
        index = picks.clamp(0, values.shape[1] - 1)
        stats = path[rows, index]
        return output.tail, output.state, (self._read(hidden[rows, index], stats), stats)

    def _prefill(
        self, values: Tensor, state: State, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[PrefillOutput, Tensor, Tensor]:
        """The output, hidden states [B, T, d_model] and statistics [B, T, 7] of every token."""
        steps = torch.ones_like(values) if dt is None else dt.double()
        before_first = state["scaler"]
        path, final = scaler.scan(before_first, values, steps, lengths)
        before = torch.cat([before_first.unsqueeze(1), path[:, :-1]], dim=1)
        hidden, backbone = self._encode(values, steps, before, path, state, lengths, dt)
        tail = self._score_path(values, steps, before, path, hidden, state["forecast"])
        forecast = self._forecast_at_end(hidden, path, lengths, state["forecast"])
        new = {"scaler": final, "forecast": forecast, **backbone}
        return PrefillOutput(new, tail), hidden, path

    @torch.inference_mode()
    def step_torch_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """``step_`` in plain PyTorch, on any device: the reference and the fallback."""
        rows = slots.clamp_min(0)
        steps = torch.ones_like(values) if dt is None else dt.double()
        before = arena["scaler"][rows]
        after = scaler.update(before, values, steps)
        features = scaler.features(values, steps, before, after)
        hidden = self.backbone.step_(
            self.embed(features), arena, slots, None if dt is None else steps.to(features.dtype)
        )
        old = arena["forecast"][rows]
        new = self._read(hidden, after)
        healthy = torch.isfinite(new).flatten(1).all(-1)
        tail = _score(values, steps, before, old[:, :SCORED_HORIZONS])
        arena["forecast"][rows] = torch.where(healthy[:, None, None], new, old)
        arena["scaler"][rows] = torch.where(healthy.unsqueeze(-1), after, before)
        return StepOutput(tail, healthy)

    def _roll_out(self, state: State, reads: int) -> Tensor:
        """Normalised quantiles past the head's horizon [B, reads K, 9]."""
        direct = self.config.head_horizon
        stats = state["scaler"]
        values = torch.full(
            (stats.shape[0], reads * direct), torch.nan, dtype=torch.float64, device=stats.device
        )
        steps = torch.ones_like(values)
        path, _ = scaler.scan(stats, values, steps)
        before = torch.cat([stats.unsqueeze(1), path[:, :-1]], dim=1)
        hidden, _ = self._encode(values, steps, before, path, state, None, None)
        picked = slice(direct - 1, None, direct)
        return self._read(hidden[:, picked], path[:, picked]).flatten(1, 2)

    def _encode(
        self,
        values: Tensor,
        steps: Tensor,
        before: Tensor,
        after: Tensor,
        state: State,
        lengths: Tensor | None,
        dt: Tensor | None,
    ) -> tuple[Tensor, State]:
        features = scaler.features(values, steps, before, after)
        own = {name: state[name] for name in self.backbone.state_spec()}
        token_dt = None if dt is None else steps.to(features.dtype)
        return self.backbone(self.embed(features), own, lengths, token_dt)

    def _read(self, hidden: Tensor, stats: Tensor, horizons: int | None = None) -> Tensor:
        """Normalised quantiles [..., horizons, 9] of hidden states [..., d_model]."""
        last = scaler.normalise(stats[..., 5], stats).float()
        return self.head(hidden, last, horizons)

    def _score_path(
        self,
        values: Tensor,
        steps: Tensor,
        before: Tensor,
        after: Tensor,
        hidden: Tensor,
        first: Tensor,
    ) -> Tensor:
        ahead = self._read(hidden[:, :-1], after[:, :-1], SCORED_HORIZONS)
        return _score(
            values, steps, before, torch.cat([first[:, None, :SCORED_HORIZONS], ahead], dim=1)
        )

    def _forecast_at_end(
        self, hidden: Tensor, path: Tensor, lengths: Tensor | None, old: Tensor
    ) -> Tensor:
        if lengths is None:
            return self._read(hidden[:, -1], path[:, -1])
        end = (lengths - 1).clamp_min(0)
        rows = torch.arange(len(end), device=end.device)
        new = self._read(hidden[rows, end], path[rows, end])
        return torch.where((lengths > 0)[:, None, None], new, old)


def _score(values: Tensor, steps: Tensor, before: Tensor, ahead: Tensor) -> Tensor:
    """Tail probabilities of values [...] under forecasts ahead [..., 4, 9]; NaN = no score.

    A row is scored once its scale rests on some samples: before that a forecast is a guess, and
    the first change of a signal would look impossible.
    """
    k = steps.round().clamp(1, SCORED_HORIZONS).long() - 1
    index = k[..., None, None].expand(*k.shape, 1, ahead.shape[-1])
    quantiles = ahead.gather(-2, index).squeeze(-2).double()
    tail = tail_probability(quantiles, scaler.normalise(values, before))
    scored = scaler.is_visible(values) & (before[..., 0] >= scaler.WARM_UP)
    return torch.where(scored, tail, torch.nan)
