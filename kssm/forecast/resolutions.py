"""A forecaster that reads each row at several resolutions, and weighs them by their past.

Beside the row itself the same model runs over thinned copies of it, every k-th sample, for a
1/k-th of the cost each: where a day is 288 samples, every 16th leaves 18, and the head that sees
64 samples ahead sees 1,024 of the row's. A contest over the row's own past (``contest``) weighs
the resolutions; a forecast is the weighted mean of their quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.forecast import contest, scaler
from kssm.forecast.distribution import check_levels
from kssm.forecast.forecaster import (
    MAX_NORMALISED,
    ForecasterConfig,
    PrefillOutput,
    SignalForecaster,
    StepOutput,
)
from kssm.forecast.native.reading import Contest, can_read, read_quantiles
from kssm.forecast.thinning import (
    ABSENT,
    coarse_length,
    joined,
    last_visible,
    on_own_grid,
    shifted,
)
from kssm.models import State, StateSpec

Reading = tuple[Tensor, Tensor]
"""The forecast [..., K, 9] of a resolution at some moment, and its statistics [..., 7]."""


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
    clock is another, because its step failed, is left alone.
    """

    period: int
    run: Callable[[State, Tensor, Tensor], None]


class _Cut(NamedTuple):
    """New samples cut into blocks: samples and steps [B, n, M]; phase, full (blocks) [B]."""

    samples: Tensor
    steps: Tensor
    phase: Tensor
    ends: Tensor
    full: Tensor


class MultiResolutionForecaster(SignalForecaster):
    """``SignalForecaster`` over a row and its thinned copies (``config.thinning``).

    The state of a row holds, beside the single resolution's entries, the same entries for each
    copy (``every4.scaler``, ...), the unfinished block of samples, and the contest. Anomaly scores
    are the row's own.
    """

    def __init__(self, config: ForecasterConfig) -> None:
        if any(factor < 2 or config.head_horizon % factor for factor in config.thinning):
            raise InvalidInputError(
                f"thinning factors must divide the head's horizon of {config.head_horizon}",
                code="invalid_config",
            )
        super().__init__(config)
        self._block = config.head_horizon
        self._mature = [contest.mature_blocks(f, config.head_horizon) for f in config.thinning]

    def state_spec(self) -> StateSpec:
        """Shapes and dtypes of one row's state."""
        single = self.row_spec()
        copies = len(self.config.thinning)
        return {
            **single,
            **{
                _entry(factor, name): entry
                for factor in self.config.thinning
                for name, entry in single.items()
            },
            "clock": ((1,), torch.float64),
            "block": ((2, self._block), torch.float64),
            "rivals": ((copies + 1, self._block, len(contest.JUDGED)), torch.float32),
            "rivals_scale": ((2,), torch.float64),
            "contest": ((copies, 2, 3), torch.float64),
        }

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
    def prefill_apart(
        self,
        values: Tensor,
        state: State,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> PrefillOutput:
        """``prefill``, one resolution after the other: the reference and the fallback."""
        rows, tokens = values.shape
        ends = torch.full((rows,), tokens, device=values.device) if lengths is None else lengths
        steps = torch.ones_like(values) if dt is None else dt.double()
        cut = self._cut(values, steps, state, ends.long())
        readings: list[Reading] = []
        new: State = {}
        tail = torch.empty(0)
        for factor, part in self._parts(state):
            x, d, own_ends, picks = self._thinned(cut, factor, values, dt)
            own_tail, own, reading = self._read_along(x, part, own_ends, d, picks)
            readings.append(reading)
            new |= own if factor == 1 else {_entry(factor, n): t for n, t in own.items()}
            tail = own_tail if factor == 1 else tail
        return PrefillOutput({**new, **self._judge_blocks(cut, readings, state)}, tail)

    @torch.inference_mode()
    def step_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """As ``SignalForecaster.step_``."""
        done = self.native.step_(self, values, arena, slots, dt, whole=True)
        if done is None:
            return self.step_apart_(values, arena, slots, dt)
        return StepOutput(*done)

    @torch.inference_mode()
    def step_apart_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """``step_``, one resolution after the other: the reference and the fallback."""
        output = super().step_(values, arena, slots, dt)
        rows = slots.clamp_min(0)
        ended: list[int] = self._take(values, dt, arena, rows, output.healthy).tolist()
        for factor in self.config.thinning:
            due = [i for i, position in enumerate(ended) if position and position % factor == 0]
            if due:
                run = torch.tensor([ended[i] // factor - 1 for i in due], device=rows.device)
                self._step_copy(arena, slots[due], factor, run)
        full = [i for i, position in enumerate(ended) if position == self._block]
        if full:
            self._end_block(arena, rows[full])
        return output

    def _take(
        self, values: Tensor, dt: Tensor | None, arena: State, rows: Tensor, healthy: Tensor
    ) -> Tensor:
        """Put the samples of healthy rows into their blocks; how many each block holds now.

        Rows that are not healthy hold what they held: 0 here.
        """
        clock = arena["clock"]
        before = clock[rows, 0]
        position = before.long() % self._block
        kept = torch.where(scaler.is_visible(values), values, ABSENT)
        block = arena["block"]
        block[rows, 0, position] = torch.where(healthy, kept, 0.0)
        block[rows, 1, position] = healthy.double() if dt is None else dt.double() * healthy
        clock[rows, 0] = before + healthy
        return torch.where(healthy, position + 1, 0)

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
        copies = (FollowUp(k, partial(self._follow_copy, k)) for k in self.config.thinning)
        return (*copies, FollowUp(self._block, self._follow_block))

    @torch.inference_mode()
    def _follow_copy(self, factor: int, arena: State, slots: Tensor, clock: Tensor) -> None:
        ended = self.fused.ended_run(arena, slots, clock, factor)
        if ended is not None:
            values, steps, own = ended
            super().step_(values, _part(arena, factor), own, steps)
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
            names += [_entry(factor, name) for name in own]
        return names

    @torch.inference_mode()
    def forecast(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        """As ``SignalForecaster.forecast``."""
        if horizon < 1:
            raise InvalidInputError("horizon must be at least 1", code="invalid_horizon")
        asked, done = check_levels(levels), None
        if can_read(state["forecast"]):
            sources = self._sources(state, horizon)
            done = read_quantiles(sources, horizon, asked, self._block, self._contest(state))
        return self.forecast_apart(state, horizon, asked) if done is None else done

    def _sources(self, state: State, horizon: int) -> list[tuple[Tensor, Tensor]]:
        sources = super()._sources(state, horizon)
        for factor in self.config.thinning:
            reach = coarse_length(horizon, factor)
            names = super().forecast_entries(reach)
            part = {name: state[_entry(factor, name)] for name in names}
            sources += super()._sources(part, reach)
        return sources

    def _contest(self, state: State) -> Contest:
        return Contest(self.config.thinning, state["clock"], state["contest"])

    @torch.inference_mode()
    def forecast_apart(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        """``forecast``, one resolution after the other: the reference and the fallback."""
        wanted = (*levels, 0.5)
        factors = self.config.thinning
        shares = contest.weights(state["contest"], factors, horizon, self._block)
        clock, last = _clock(state), state["scaler"][:, 5]
        mixed = super().forecast(state, horizon, wanted) * shares[:, 0, :, None]
        for i, factor in enumerate(factors, start=1):
            reach = coarse_length(horizon, factor)
            coarse = super().forecast(_part(state, factor), reach, wanted)
            own = on_own_grid(coarse, factor, clock % factor, last, horizon)
            share = shares[:, i, :, None]
            mixed = mixed + torch.where(share > 0, own, 0.0) * share
        median = mixed[..., -1:]
        return median + (mixed[..., :-1] - median) * contest.narrowing(shares).unsqueeze(-1)

    def _parts(self, state: State) -> Iterator[tuple[int, State]]:
        yield 1, {name: state[name] for name in self.row_spec()}
        for factor in self.config.thinning:
            yield factor, _part(state, factor)

    def _cut(self, values: Tensor, steps: Tensor, state: State, ends: Tensor) -> _Cut:
        phase = _clock(state) % self._block
        total = phase + ends
        blocks = -(-int(total.max()) // self._block) + 1
        kept = torch.where(scaler.is_visible(values), values, ABSENT)
        samples = joined(state["block"][:, 0], phase, kept, ends, blocks)
        spaced = joined(state["block"][:, 1], phase, steps, ends, blocks)
        return _Cut(samples, spaced, phase, ends, total // self._block)

    def _thinned(
        self, cut: _Cut, factor: int, values: Tensor, steps: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """A copy's new samples, steps and lengths, and where its blocks end: [B, full.max()]."""
        size = self._block // factor
        block = torch.arange(1, int(cut.full.max()) + 1, device=values.device)
        picks = block * size - cut.phase.unsqueeze(1) // factor - 1
        if factor == 1:
            return values, steps, cut.ends, picks
        start = cut.phase // factor
        ends = (cut.phase + cut.ends) // factor - start
        width = int(ends.max())
        runs = last_visible(cut.samples.unflatten(2, (size, factor))).flatten(1)
        means = _mean(cut.steps.unflatten(2, (size, factor))).flatten(1)
        spaced = None if steps is None else shifted(means, start, width)
        return shifted(runs, start, width), spaced, ends, picks

    def _read_along(
        self, values: Tensor, state: State, ends: Tensor, dt: Tensor | None, picks: Tensor
    ) -> tuple[Tensor, State, Reading]:
        """Prefill, and the forecasts after the tokens ``picks`` [B, n] (past a row's end: any).

        Compiled code gives the state at the end alone, so on the CPU rows are read in turns.
        """
        if not values.is_cpu and values.shape[1]:
            return self.prefill_reading(values, state, ends, dt, picks)
        tail = torch.full_like(values, torch.nan)
        stops = torch.cat([torch.minimum(picks + 1, ends.unsqueeze(1)), ends.unsqueeze(1)], dim=1)
        start = torch.zeros_like(ends)
        seen: list[Reading] = []
        for stop in stops.unbind(1):
            if bool((stop > start).any()):
                state = self._read_on(values, state, start, stop, dt, tail)
            seen.append((state["forecast"], state["scaler"]))
            start = stop
        blocks, stats = (torch.stack(parts, dim=1)[:, :-1] for parts in zip(*seen, strict=True))
        return tail, state, (blocks, stats)

    def _read_on(
        self,
        values: Tensor,
        state: State,
        start: Tensor,
        stop: Tensor,
        dt: Tensor | None,
        tail: Tensor,
    ) -> State:
        """The state after the samples from ``start`` to ``stop`` [B]; their tails into ``tail``."""
        count = stop - start
        width = int(count.max())
        spaced = None if dt is None else shifted(dt, start, width)
        output = super().prefill(shifted(values, start, width), state, count, spaced)
        row, offset = (torch.arange(width) < count.unsqueeze(1)).nonzero(as_tuple=True)
        tail[row, start[row] + offset] = output.tail[row, offset]
        return output.state

    def _judge_blocks(self, cut: _Cut, readings: Sequence[Reading], state: State) -> State:
        """The contest after the full blocks of ``cut``, and the block that is not yet full."""
        units, scales = self._rivals(readings)
        units = torch.cat([state["rivals"].unsqueeze(1), units], dim=1)
        scales = torch.cat([state["rivals_scale"].unsqueeze(1), scales], dim=1)
        seen = _clock(state) // self._block
        sums = state["contest"]
        for i in range(units.shape[1] - 1):
            folded = self._fold(sums, cut.samples[:, i], units[:, i], scales[:, i], seen + i)
            sums = torch.where((i < cut.full)[:, None, None, None], folded, sums)
        row = torch.arange(len(sums), device=sums.device)
        rest = torch.stack([cut.samples[row, cut.full], cut.steps[row, cut.full]], dim=1)
        return {
            "clock": state["clock"] + cut.ends.unsqueeze(1).double(),
            "block": rest,
            "rivals": units[row, cut.full],
            "rivals_scale": scales[row, cut.full],
            "contest": sums,
        }

    def _step_copy(self, arena: State, slots: Tensor, factor: int, run: Tensor) -> None:
        """Give the copies of some rows the run of samples that has just ended."""
        block = arena["block"][slots.clamp_min(0)].unflatten(2, (-1, factor))
        samples = block[torch.arange(len(run), device=run.device), :, run]
        super().step_(
            last_visible(samples[:, 0]), _part(arena, factor), slots, _mean(samples[:, 1])
        )

    def _end_block(self, arena: State, rows: Tensor) -> None:
        """Judge the rows' full blocks, keep the forecasts of the next ones."""
        readings: list[Reading] = []
        for _, part in self._parts(arena):
            readings.append((part["forecast"][rows], part["scaler"][rows]))
        seen = _clock(arena)[rows] // self._block - 1
        kept = arena["rivals"][rows], arena["rivals_scale"][rows]
        samples = arena["block"][rows, 0]
        arena["contest"][rows] = self._fold(arena["contest"][rows], samples, *kept, seen)
        arena["rivals"][rows], arena["rivals_scale"][rows] = self._rivals(readings)
        arena["block"][rows] = 0.0

    def _rivals(self, readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
        """What is kept of every resolution's forecast of the next block."""
        own_stats = readings[0][1]
        forecasts = [_judged(*readings[0])]
        now = torch.zeros_like(own_stats[..., 0], dtype=torch.int64)
        for factor, reading in zip(self.config.thinning, readings[1:], strict=True):
            coarse = _judged(*reading)
            forecasts.append(on_own_grid(coarse, factor, now, own_stats[..., 5], self._block))
        return contest.rivals(torch.stack(forecasts, dim=-3), own_stats)

    def _fold(
        self, sums: Tensor, samples: Tensor, forecasts: Tensor, scales: Tensor, seen: Tensor
    ) -> Tensor:
        mature = contest.constant(tuple(self._mature), torch.float64, sums.device)
        return contest.fold(sums, *contest.judge(samples, forecasts, scales), seen, mature)


def _arrived(arena: State, slots: Tensor, clock: Tensor) -> Tensor:
    """``slots`` [N] of rows that have consumed ``clock`` [N] samples, -1 for the others."""
    return torch.where(arena["clock"][slots.clamp_min(0), 0] == clock, slots, -1)


def _entry(factor: int, name: str) -> str:
    """What a copy's entry is called in the row's state."""
    return f"every{factor}.{name}"


def _part(state: State, factor: int) -> State:
    """The entries of one copy, under the names of a single resolution."""
    prefix = _entry(factor, "")
    return {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}


def _clock(state: State) -> Tensor:
    """Samples of each row so far [B], int64 (kept in float64, which is exact)."""
    return state["clock"][:, 0].long()


def _judged(blocks: Tensor, stats: Tensor) -> Tensor:
    """The judged quantiles of forecasts, in the row's units: [..., K, 3] float64."""
    quantiles = torch.stack([blocks[..., i] for i in contest.JUDGED], dim=-1).double()
    return scaler.denormalise(quantiles.clamp(-MAX_NORMALISED, MAX_NORMALISED), stats)


def _mean(steps: Tensor) -> Tensor:
    """Mean over the last dimension, added up in order: the same bits whatever the shape."""
    return reduce(torch.add, steps.unbind(-1)) / steps.shape[-1]
