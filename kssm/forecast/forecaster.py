"""SignalForecaster: causal scaler -> embedding -> backbone -> quantile head, all streaming.

A row is one univariate stream. Its state holds the scaler's statistics, the backbone's state and
the last forecast; everything a forecast needs is in it, and it never grows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from kssm.checkpoint.files import fingerprint
from kssm.errors import InvalidInputError
from kssm.forecast import scaler
from kssm.forecast.distribution import (
    LEVELS,
    SCORED_HORIZONS,
    check_levels,
    interpolate,
    tail_probability,
)
from kssm.forecast.fused import FusedModel
from kssm.forecast.head import QuantileHead
from kssm.forecast.native import NativeModel
from kssm.forecast.native.reading import Contest, can_read, read_quantiles
from kssm.models import KSSMConfig, State, StateSpec, build
from kssm.models.base import fresh_state
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


class PrefillOutput(NamedTuple):
    """state: after the last valid sample; tail: [B, T] two-sided tail probabilities or NaN."""

    state: State
    tail: Tensor


class StepOutput(NamedTuple):
    """tail: [N] two-sided tail probabilities or NaN; healthy: [N], False = state not advanced."""

    tail: Tensor
    healthy: Tensor


class SignalForecaster(nn.Module):
    """Probabilistic forecasts of many independent rows, one sample at a time or many at once."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = init_linear(scaler.FEATURES, config.backbone.d_model, std=0.3, bias=True)
        self.backbone = build(name_of(config.backbone), config.backbone)
        self.head = QuantileHead(config.backbone.d_model, config.head_hidden, config.head_horizon)
        self.native = NativeModel()
        self.fused = FusedModel()

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def step_weights(self) -> object | None:
        """What a step reads if it never waits for the device, so that CUDA graphs can hold it.

        Whoever captures a step keeps this alive. None: a step cannot be captured.
        """
        plain = type(self).step_ is SignalForecaster.step_
        return self.fused.current(self) if plain else None

    @property
    def rows_together(self) -> int:
        """The most rows that ``step_together_`` takes as a group; 0 where there is no such step."""
        return self.native.rows_together(self)

    @property
    def fingerprint(self) -> str:
        """Hex digest of configuration and weights: states fit exactly the same fingerprint."""
        described = repr(sorted(asdict(self.config).items()))
        kind = name_of(self.config.backbone)
        return fingerprint(described if kind == "kssm" else f"{kind} {described}", self)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; the compiled step looks at the weights afresh afterwards."""
        self.native.forget()
        self.fused.forget()
        return super().train(mode)

    def state_spec(self) -> StateSpec:
        """Shapes and dtypes of one row's state."""
        return self.row_spec()

    def row_spec(self) -> StateSpec:
        """Shapes and dtypes of what one resolution of a row carries."""
        return {
            "scaler": ((len(scaler.FIELDS),), torch.float64),
            "forecast": ((self.config.head_horizon, len(LEVELS)), torch.float32),
            **self.backbone.state_spec(),
        }

    def initial_state(self, rows: int) -> State:
        """State of ``rows`` rows that have seen nothing, on the model's device."""
        return fresh_state(self.state_spec(), rows, self.device)

    @torch.inference_mode()
    def prefill(
        self,
        values: Tensor,
        state: State,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> PrefillOutput:
        """Consume many samples of each row.

        Args:
            values: [B, T] float64 samples, NaN = missing.
            state: rows to continue from, never modified.
            lengths: [B] number of valid samples of each row (0 leaves a row as it is), None = T.
            dt: [B, T] time since the previous sample in nominal intervals (> 0), None = 1.

        Returns:
            The state after each row's last valid sample, and for every sample its two-sided
            tail probability under the forecast made before it (NaN past the row's length).
            A row whose numbers left the finite range shows it in its state.

        On the CPU compiled code does this where it can (``kssm.forecast.native``), bit for bit
        as ``step_`` would sample by sample.
        """
        self._check(values, state, dt)
        done = self.native.prefill(self, values, state, lengths, dt)
        if done is None:
            return self.prefill_torch(values, state, lengths, dt)
        return PrefillOutput(*done)

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

    def step_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """Consume one sample for each of many arena rows, in place.

        Args:
            values: [N] float64 samples, NaN = missing.
            arena: state entries [slots + 1, ...]; row 0 is scratch space.
            slots: [N] int64 arena rows, all different; -1 = padding.
            dt: [N] time since the previous sample in nominal intervals (> 0), None = 1.

        On the CPU compiled code does this where it can (``kssm.forecast.native``), on a GPU fused
        kernels (``kssm.forecast.fused``).
        """
        done = self.native.step_(self, values, arena, slots, dt)
        if done is None:
            done = self.fused.step_(self, values, arena, slots, dt)
        return self.step_torch_(values, arena, slots, dt) if done is None else StepOutput(*done)

    def step_together_(
        self,
        values: Tensor,
        arena: State,
        slots: Tensor,
        dt: Tensor,
        groups: Tensor,
    ) -> StepOutput | None:
        """``step_`` of groups that go on together or not at all, whatever fails.

        ``groups`` [N] int64: equal for neighbours of a group, of at most ``rows_together`` rows.
        None, and nothing has changed, where there is only ``step_``.
        """
        whole = bool(self.config.thinning)
        done = self.native.step_(self, values, arena, slots, dt, whole=whole, groups=groups)
        return None if done is None else StepOutput(*done)

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

    def forecast_entries(self, horizon: int) -> Collection[str]:
        """The state entries that ``forecast`` reads: few, unless the horizon needs a roll-out."""
        rolls_out = horizon > self.config.head_horizon
        return self.row_spec() if rolls_out else ("scaler", "forecast")

    @torch.inference_mode()
    def forecast(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles of the next ``horizon`` samples [B, horizon, len(levels)], float64.

        Past the head's own horizon a copy of the state is fed missing samples and read again.
        Rows that have seen no value yet give NaN. ``state`` is never modified, and needs only
        the ``forecast_entries``.
        """
        if horizon < 1:
            raise InvalidInputError("horizon must be at least 1", code="invalid_horizon")
        wanted = check_levels(levels)
        read = self.fused.forecast(state, horizon, wanted, MAX_NORMALISED)
        if read is not None:
            return read
        blocks = self.ahead(state, horizon)
        done = read_quantiles(
            [(blocks, state["scaler"])], horizon, wanted, self.config.head_horizon
        )
        if done is not None:
            return done
        quantiles = interpolate(blocks[:, :horizon].double(), wanted)
        values = scaler.denormalise(
            quantiles.clamp(-MAX_NORMALISED, MAX_NORMALISED), state["scaler"]
        )
        unseen = state["scaler"][:, 0] == 0
        return values.masked_fill(unseen[:, None, None], torch.nan)

    @torch.inference_mode()
    def forecast_rows(
        self, arena: State, slots: Tensor, horizon: int, levels: tuple[float, ...]
    ) -> Tensor | None:
        """``forecast`` of the arena's rows ``slots`` [N] where they lie: [N, horizon, levels].

        None where it takes a copy of them, as for roll-outs.
        """
        direct = self.config.head_horizon
        if horizon > direct or not can_read(arena["forecast"]):
            return None
        sources = self._sources(arena, horizon)
        return read_quantiles(sources, horizon, levels, direct, self._contest(arena), slots)

    def _sources(self, state: State, horizon: int) -> list[tuple[Tensor, Tensor]]:
        """Forecasts that reach the horizon, and their statistics, of every resolution."""
        return [(self.ahead(state, horizon), state["scaler"])]

    def _contest(self, state: State) -> Contest | None:  # noqa: ARG002
        """What joins the resolutions, where there are several."""
        return None

    def ahead(self, state: State, horizon: int) -> Tensor:
        """Normalised quantiles of at least the next ``horizon`` samples, [B, points, 9]."""
        direct = state["forecast"]
        if horizon <= self.config.head_horizon:
            return direct
        reads = -(-horizon // self.config.head_horizon) - 1
        rolled = self.native.roll_out(self, state, reads)
        if rolled is None:
            rolled = self._roll_out(state, reads)
        return torch.cat([direct, rolled], dim=1)

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

    def _check(self, values: Tensor, state: State, dt: Tensor | None) -> None:
        if values.dim() != 2 or values.shape[1] == 0:
            raise InvalidInputError("values must be [B, T] with T > 0", code="wrong_shape")
        if state["scaler"].shape[0] != values.shape[0]:
            raise InvalidInputError("state and values differ in rows", code="wrong_shape")
        if dt is not None and dt.shape != values.shape:
            raise InvalidInputError("dt must be shaped like values", code="wrong_shape")


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
