"""SignalForecaster: causal scaler -> embedding -> backbone -> quantile head, all streaming.

A row is one univariate stream. Its state holds the scaler's statistics, the backbone's state and
the last forecast; everything a forecast needs is in it, and it never grows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor

from kssm.checkpoint.files import fingerprint
from kssm.errors import InvalidInputError
from kssm.forecast import scaler
from kssm.forecast.distribution import check_levels, interpolate
from kssm.forecast.fused import FusedModel
from kssm.forecast.native import NativeModel
from kssm.forecast.native.reading import Contest, Sources, can_read, read_quantiles
from kssm.forecast.network import MAX_NORMALISED, ForecasterConfig, ForecastNetwork
from kssm.models import State, StateSpec
from kssm.models.base import PrefillOutput, StepOutput, fresh_state
from kssm.models.registry import name_of


class SignalForecaster(ForecastNetwork):
    """Probabilistic forecasts of many independent rows, one sample at a time or many at once."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__(config)
        self.native = NativeModel()
        self.fused = FusedModel()

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
        self._forget()
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``nn.Module.load_state_dict``; the compiled step takes the new weights.

        In inference mode torch does not count what is written to a weight.
        """
        self._forget()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _forget(self) -> None:
        self.native.forget()
        self.fused.forget()

    def state_spec(self) -> StateSpec:
        """Shapes and dtypes of one row's state."""
        return self.row_spec()

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
        blocks = self.ahead(state, horizon)
        read = self._answer([(blocks, state["scaler"])], horizon, wanted)
        if read is not None:
            return read
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
        if horizon > self.config.head_horizon:
            return None
        sources = self._sources(arena, horizon)
        return self._answer(sources, horizon, levels, self._contest(arena), slots)

    def _answer(
        self,
        sources: Sources,
        horizon: int,
        levels: tuple[float, ...],
        contest: Contest | None = None,
        slots: Tensor | None = None,
    ) -> Tensor | None:
        """``read_quantiles``, on a GPU as a kernel; None where neither can do it."""
        question = sources, horizon, levels, self.config.head_horizon, contest, slots
        read = self.fused.read(*question)
        return read_quantiles(*question) if read is None else read

    def _can_read(self, state: State) -> bool:
        """Whether there may be compiled code that reads such states."""
        return can_read(state["forecast"]) or self.fused.can_read(state["forecast"])

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

    def _check(self, values: Tensor, state: State, dt: Tensor | None) -> None:
        if values.dim() != 2 or values.shape[1] == 0:
            raise InvalidInputError("values must be [B, T] with T > 0", code="wrong_shape")
        if state["scaler"].shape[0] != values.shape[0]:
            raise InvalidInputError("state and values differ in rows", code="wrong_shape")
        if dt is not None and dt.shape != values.shape:
            raise InvalidInputError("dt must be shaped like values", code="wrong_shape")
