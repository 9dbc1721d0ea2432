"""A forecaster that reads each row at several resolutions, and weighs them by their past.

Beside the row itself the same model runs over thinned copies of it, every k-th sample, for a
1/k-th of the cost each: where a day is 288 samples, every 16th leaves 18, and the head that sees
64 samples ahead sees 1,024 of the row's. A contest over the row's own past (``contest``) weighs
the resolutions; a forecast is the weighted mean of their quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.forecast.apart import ApartForecaster, entry_of, part_of
from kssm.forecast.distribution import check_levels
from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
from kssm.forecast.native.reading import Contest
from kssm.forecast.thinning import coarse_length
from kssm.models import State
from kssm.models.base import PrefillOutput, StepOutput


def build_forecaster(config: ForecasterConfig) -> SignalForecaster:
    """The forecaster that ``config`` describes, with fresh weights."""
    return MultiResolutionForecaster(config) if config.thinning else SignalForecaster(config)


def at_one_resolution(forecaster: SignalForecaster) -> SignalForecaster:
    """A forecaster with the same weights (shared) that reads no thinned copies."""
    with torch.random.fork_rng(devices=[]):
        single = SignalForecaster(replace(forecaster.config, thinning=()))
    single.embed, single.head = forecaster.embed, forecaster.head
    single.backbone = forecaster.backbone
    return single.train(forecaster.training)


class FollowUp(NamedTuple):
    """What a step leaves to be done for rows whose clock is a multiple of ``period`` after it.

    ``run`` takes the arena, slots [N] (-1 = padding) and those clocks [N] (float64); a row whose
    clock is another, because its step failed, is left alone. ``entries`` of the state change at no
    other time.
    """

    period: int
    run: Callable[[State, Tensor, Tensor], None]
    entries: tuple[str, ...] = ()


class MultiResolutionForecaster(ApartForecaster):
    """``SignalForecaster`` over a row and its thinned copies (``config.thinning``).

    The state of a row holds, beside the single resolution's entries, the same entries for each
    copy (``every4.scaler``, ...), the unfinished block of samples, and the contest. Anomaly scores
    are the row's own.
    """

    @torch.inference_mode()
    def prefill(
        self,
        values: Tensor,
        state: State,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> PrefillOutput:
        """As ``SignalForecaster.prefill``."""
        self._check(values, state, dt)
        done = self.native.prefill(self, values, state, lengths, dt, whole=True)
        if done is None:
            return self.prefill_apart(values, state, lengths, dt)
        return PrefillOutput(*done)

    @torch.inference_mode()
    def step_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """As ``SignalForecaster.step_``."""
        done = self.native.step_(self, values, arena, slots, dt, whole=True)
        if done is None:
            return self.step_apart_(values, arena, slots, dt)
        return StepOutput(*done)

    @property
    def step_weights(self) -> object | None:
        """What ``step_row_`` and the ``follow_ups`` read; as ``SignalForecaster.step_weights``."""
        plain = type(self).step_ is MultiResolutionForecaster.step_
        return self.fused.current(self) if plain else None

    @torch.inference_mode()
    def step_row_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """``step_`` without what only some samples bring, the ``follow_ups``.

        A caller who knows the rows' clocks runs those too, in their order, and nothing waits for
        the device.
        """
        output = super().step_(values, arena, slots, dt)
        if not self.fused.keep_(values, dt, arena, slots, output.healthy):
            self._take(values, dt, arena, slots.clamp_min(0), output.healthy)
        return output

    @property
    def follow_ups(self) -> tuple[FollowUp, ...]:
        """The rest of ``step_``: a thinned copy's step at every k-th sample, the end of a block."""
        single = self.row_spec()
        copies = (
            FollowUp(k, partial(self._follow_copy, k), tuple(entry_of(k, name) for name in single))
            for k in self.config.thinning
        )
        return (*copies, FollowUp(self._block, self._follow_block))

    @torch.inference_mode()
    def _follow_copy(self, factor: int, arena: State, slots: Tensor, clock: Tensor) -> None:
        ended = self.fused.ended_run(arena, slots, clock, factor)
        if ended is not None:
            values, steps, own = ended
            super().step_(values, part_of(arena, factor), own, steps)
            return
        run = (clock.long() - 1).clamp_min(0) % self._block // factor
        self._step_copy(arena, _arrived(arena, slots, clock), factor, run)

    @torch.inference_mode()
    def _follow_block(self, arena: State, slots: Tensor, clock: Tensor) -> None:
        self._end_block(arena, _arrived(arena, slots, clock).clamp_min(0))

    def forecast_entries(self, horizon: int) -> Collection[str]:
        """The state entries that ``forecast`` reads."""
        names = [*super().forecast_entries(horizon), "clock", "contest"]
        for factor in self.config.thinning:
            own = super().forecast_entries(coarse_length(horizon, factor))
            names += [entry_of(factor, name) for name in own]
        return names

    @torch.inference_mode()
    def forecast(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        """As ``SignalForecaster.forecast``."""
        if horizon < 1:
            raise InvalidInputError("horizon must be at least 1", code="invalid_horizon")
        asked, done = check_levels(levels), None
        if self._can_read(state):
            done = self._answer(self._sources(state, horizon), horizon, asked, self._contest(state))
        return self.forecast_apart(state, horizon, asked) if done is None else done

    def _sources(self, state: State, horizon: int) -> list[tuple[Tensor, Tensor]]:
        sources = super()._sources(state, horizon)
        for factor in self.config.thinning:
            reach = coarse_length(horizon, factor)
            names = super().forecast_entries(reach)
            part = {name: state[entry_of(factor, name)] for name in names}
            sources += super()._sources(part, reach)
        return sources

    def _contest(self, state: State) -> Contest:
        return Contest(self.config.thinning, state["clock"], state["contest"])


def _arrived(arena: State, slots: Tensor, clock: Tensor) -> Tensor:
    """``slots`` [N] of rows that have consumed ``clock`` [N] samples, -1 for the others."""
    return torch.where(arena["clock"][slots.clamp_min(0), 0] == clock, slots, -1)
