"""Rows at several resolutions, read one resolution after the other: the reference and the fallback.

``MultiResolutionForecaster`` does the same in one pass where there is compiled code for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kssm.errors import InvalidInputError
from kssm.forecast import contest, scaler
from kssm.forecast.forecaster import MAX_NORMALISED as MOST
from kssm.forecast.forecaster import ForecasterConfig, SignalForecaster
from kssm.forecast.thinning import (
    ABSENT,
    coarse_length,
    joined,
    last_visible,
    mean_step,
    on_own_grid,
    shifted,
)
from kssm.models import State, StateSpec
from kssm.models.base import PrefillOutput, StepOutput

Reading = tuple[Tensor, Tensor]
"""The forecast [..., K, 9] of a resolution at some moment, and its statistics [..., 7]."""


class _Cut(NamedTuple):
    """New samples cut into blocks: samples and steps [B, n, M]; phase, full (blocks) [B]."""

    samples: Tensor
    steps: Tensor
    phase: Tensor
    ends: Tensor
    full: Tensor


class ApartForecaster(SignalForecaster):
    """The state of rows with thinned copies, and what a step, a prompt and a forecast do to it."""

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
                entry_of(factor, name): entry
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
            new |= own if factor == 1 else {entry_of(factor, n): t for n, t in own.items()}
            tail = own_tail if factor == 1 else tail
        return PrefillOutput({**new, **self._judge_blocks(cut, readings, state)}, tail)

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

    @torch.inference_mode()
    def forecast_apart(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        """``forecast``, one resolution after the other: the reference and the fallback."""
        wanted = (*levels, 0.5)
        factors = self.config.thinning
        clock, last = _clock(state), state["scaler"][:, 5]
        ages = torch.stack([clock % factor for factor in factors], dim=1)
        shares = contest.weights(state["contest"], factors, horizon, self._block, ages)
        mixed = super().forecast(state, horizon, wanted) * shares[:, 0, :, None]
        for i, factor in enumerate(factors, start=1):
            reach = coarse_length(horizon, factor)
            coarse = super().forecast(part_of(state, factor), reach, wanted)
            own = on_own_grid(coarse, factor, clock % factor, last, horizon)
            share = shares[:, i, :, None]
            mixed = mixed + torch.where(share > 0, own, 0.0) * share
        median = mixed[..., -1:]
        return median + (mixed[..., :-1] - median) * contest.narrowing(shares).unsqueeze(-1)

    def _parts(self, state: State) -> Iterator[tuple[int, State]]:
        yield 1, {name: state[name] for name in self.row_spec()}
        for factor in self.config.thinning:
            yield factor, part_of(state, factor)

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
        means = mean_step(cut.steps.unflatten(2, (size, factor))).flatten(1)
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
            last_visible(samples[:, 0]), part_of(arena, factor), slots, mean_step(samples[:, 1])
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
        arena["block"].index_fill_(0, rows, 0.0)  # an assignment would bring the zero along

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


def entry_of(factor: int, name: str) -> str:
    """What a copy's entry is called in the row's state."""
    return f"every{factor}.{name}"


def part_of(state: State, factor: int) -> State:
    """The entries of one copy, under the names of a single resolution."""
    prefix = entry_of(factor, "")
    return {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}


def _clock(state: State) -> Tensor:
    """Samples of each row so far [B], int64 (kept in float64, which is exact)."""
    return state["clock"][:, 0].long()


def _judged(blocks: Tensor, stats: Tensor) -> Tensor:
    """The judged quantiles of forecasts, in the row's units: [..., K, 3] float64."""
    quantiles = torch.stack([blocks[..., i] for i in contest.JUDGED], dim=-1).double()
    return scaler.denormalise(quantiles.clamp(-MOST, MOST), stats)
