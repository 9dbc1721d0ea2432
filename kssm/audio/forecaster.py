"""AudioForecaster: many independent channels of sound, one sample at a time or many at once.

It satisfies the runtime's contract (``kssm.runtime.contract``), so streams, sessions and the
service take it as they take the forecaster of sensor signals. A row's state never grows: its last
samples, the unfinished patch, the recurrence, and the outlook read after the last patch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kssm.audio.laplace import quantiles, tail
from kssm.audio.model import AudioNetwork, Encoded
from kssm.audio.next_sample import Guess
from kssm.checkpoint.files import fingerprint
from kssm.errors import InvalidInputError
from kssm.forecast.distribution import check_levels
from kssm.models.base import PrefillOutput, State, StateSpec, StepOutput, fresh_state

LOUDEST: Final = 1e15
"""Samples beyond this magnitude count as missing."""
_MOST: Final = 1 << 14


class AudioForecaster(AudioNetwork):
    """Probabilistic forecasts of sound; missing samples are concealed by the forecasts."""

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def fingerprint(self) -> str:
        """Hex digest of configuration and weights: states fit exactly the same fingerprint."""
        return fingerprint(f"audio {sorted(asdict(self.config).items())!r}", self)

    def state_spec(self) -> StateSpec:
        """Shapes and dtypes of one row's state.

        "clock" holds the samples of the unfinished patch, how many of them were missing, how many
        samples the row has heard (two patches at most), and how many were missing since the
        outlook.
        """
        config = self.config
        return {
            "clock": ((4,), torch.float64),
            "history": ((config.history,), torch.float32),
            "patch": ((config.patch,), torch.float32),
            "context": ((config.backbone.d_model,), torch.float32),
            "outlook": ((2, config.horizon), torch.float32),
            **self.backbone.state_spec(),
        }

    def initial_state(self, rows: int) -> State:
        """State of ``rows`` rows that have heard nothing, on the model's device."""
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
            values: [B, T] samples, NaN = missing.
            state: rows to continue from, never modified.
            lengths: [B] number of valid samples of each row, None = T.
            dt: not used: sound comes at a fixed rate, and gaps as missing samples.

        Returns:
            The state after each row's last valid sample, and for every sample its two-sided tail
            probability under the forecast made from all before it (NaN: missing, or past the
            row's length).
        """
        if values.dim() != 2 or values.shape[1] == 0:
            raise InvalidInputError("values must be [B, T] with T > 0", code="wrong_shape")
        if state["clock"].shape[0] != values.shape[0]:
            raise InvalidInputError("state and values differ in rows", code="wrong_shape")
        del dt
        ends = lengths
        if ends is None:
            ends = torch.full((len(values),), values.shape[1], device=values.device)
        steps = torch.arange(values.shape[1], device=values.device)
        missing = ~(values.abs() <= LOUDEST) & (steps < ends.unsqueeze(1))
        if values.shape[1] > _MOST or bool(missing.any()):
            return self._in_turns(values, missing, ends, state)
        return self._advance(values, missing, ends, state)

    @torch.inference_mode()
    def step_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """Consume one sample for each of many arena rows, in place; slot -1 = padding.

        As ``prefill`` of one sample. Sound comes in frames: ``prefill`` is the fast way.
        """
        rows = slots.clamp_min(0)
        old = {name: arena[name][rows] for name in self.state_spec()}
        output = self.prefill(values.unsqueeze(1), old, None, dt)
        checks = [entry.isfinite().flatten(1).all(1) for entry in output.state.values()]
        healthy = torch.stack(checks).all(0)
        for name, entry in output.state.items():
            kept = healthy.view(-1, *[1] * (entry.dim() - 1))
            arena[name][rows] = torch.where(kept, entry, old[name])
        return StepOutput(output.tail.squeeze(1), healthy)

    def forecast_entries(self, horizon: int) -> Collection[str]:
        """The state entries that ``forecast`` reads: few, unless the horizon needs a roll-out."""
        if horizon > self.config.horizon - self.config.patch:
            return self.state_spec()
        return ("clock", "history", "patch", "context", "outlook")

    @torch.inference_mode()
    def forecast(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles of the next ``horizon`` samples [B, horizon, len(levels)], float64.

        The first sample is predicted as every sample is; the others come from the outlook, and
        past its end from a copy that misses samples. Rows that have heard nothing yet give NaN.
        ``state`` is never modified.
        """
        if horizon < 1:
            raise InvalidInputError("horizon must be at least 1", code="invalid_horizon")
        wanted = check_levels(levels)
        path = self.path(state, horizon)
        first = self._next(state)
        path[:, :, 0] = torch.stack([first.mean, first.scale], dim=1)
        mean, scale = path.double().unbind(1)
        out = quantiles(mean, scale, wanted)
        return out.masked_fill((state["clock"][:, 2] == 0)[:, None, None], torch.nan)

    @torch.inference_mode()
    def path(self, state: State, horizon: int) -> Tensor:
        """Means and scales [B, 2, horizon] by the outlook alone: what fills missing samples."""
        parts: list[Tensor] = []
        patch, direct = self.config.patch, self.config.horizon - self.config.patch
        blank = torch.full_like(state["patch"], torch.nan, dtype=torch.float64)
        for _ in range(-(-max(0, horizon - direct) // patch)):
            parts.append(self._filling(state, patch))
            state = self.prefill(blank, state).state
        left = horizon - patch * len(parts)
        return torch.cat([*parts, self._filling(state, left)], -1)

    def _filling(self, state: State, count: int) -> Tensor:
        """Means and scales [B, 2, count] of the next samples, as far as the outlook reaches."""
        place = state["clock"][:, 3:].long() + torch.arange(count, device=self.device)
        return state["outlook"].gather(-1, place.unsqueeze(1).expand(-1, 2, -1))

    def _next(self, state: State) -> Guess:
        """The very next sample of each row [B]."""
        survey = self.survey(state["patch"], state["history"])
        context = state["context"].unsqueeze(1).expand(-1, 2, -1)
        guess = self.guess_next(Encoded(*survey, context), state["patch"])
        place = state["clock"][:, :1].long()
        return Guess(*(part.gather(1, place).squeeze(1) for part in guess))

    def _in_turns(
        self, values: Tensor, missing: Tensor, ends: Tensor, state: State
    ) -> PrefillOutput:
        """Stretch by stretch: what is missing in one is filled by the outlook before it."""
        tails: list[Tensor] = []
        for first, last in self._stretches(missing):
            count = (ends - first).clamp(0, last - first)
            gone, heard = missing[:, first:last], values[:, first:last]
            taken = heard
            if bool(gone.any()):
                filling = self._filling(state, last - first)[:, 0]
                taken = torch.where(gone, filling.to(values.dtype), heard)
            output = self._advance(taken, gone, count, state)
            state = output.state
            tails.append(output.tail)
        return PrefillOutput(state, torch.cat(tails, 1))

    def _stretches(self, missing: Tensor) -> list[tuple[int, int]]:
        """Where to cut so that each row misses all or nothing of a stretch.

        Stretches that a row misses are no longer than a patch, others bounded for the memory's
        sake.
        """
        width = missing.shape[1]
        changes = (missing[:, 1:] != missing[:, :-1]).any(0).nonzero().squeeze(1) + 1
        cuts = [0, *changes.tolist(), width]
        holes = missing.any(0).tolist()
        parts: list[tuple[int, int]] = []
        for first, last in pairwise(cuts):
            size = self.config.patch if holes[first] else _MOST
            parts += [(at, min(at + size, last)) for at in range(first, last, size)]
        return parts

    def _advance(
        self, values: Tensor, missing: Tensor, ends: Tensor, state: State
    ) -> PrefillOutput:
        """Consume samples [B, T] that are all there; ``missing`` says which are filled in."""
        patch = self.config.patch
        steps = torch.arange(values.shape[1], device=values.device)
        place = state["clock"][:, :1].long() + steps
        valid = steps < ends.unsqueeze(1)
        samples, lost = self._lay_out(values.masked_fill(~valid, 0.0), missing, place, state)
        whole = (place[:, 0] + ends) // patch
        own = {name: state[name] for name in self.backbone.state_spec()}
        encoded, new = self.encode(samples, state["history"], state["context"], lost, own, whole)
        guess = self.guess_next(encoded, samples)
        heard = valid & ~missing
        mean, scale = (part.gather(1, place) for part in guess)
        probability = tail(mean, scale, samples.gather(1, place))
        known = heard.cumsum(1) + state["clock"][:, 2:3]
        scored = heard & (known > 2 * patch)
        left = place[:, 0] + ends - whole * patch
        new |= self._remember(samples, state["history"], whole, left)
        rows = torch.arange(len(whole), device=whole.device)
        new["context"] = encoded.context[rows, whole]
        gap = missing.any(1) | (ends == 0)
        new["outlook"] = self._outlook_after(new, left, gap, ends, state)
        gone = F.pad(lost, (0, 1)).gather(1, whole.unsqueeze(1)).squeeze(1) * patch
        count = known[:, -1].clamp(max=2 * patch)
        age = torch.where(whole > 0, left, state["clock"][:, 3] + ends) * gap
        new["clock"] = torch.stack([left.double(), gone.double(), count.double(), age.double()], 1)
        return PrefillOutput(new, probability.masked_fill(~scored, torch.nan))

    def _lay_out(
        self, values: Tensor, missing: Tensor, place: Tensor, state: State
    ) -> tuple[Tensor, Tensor]:
        """The unfinished patch and what follows, to whole patches, and each patch's lost share."""
        patch = self.config.patch
        room = (0, -(-(values.shape[1] - 1) // patch) * patch)
        samples = F.pad(state["patch"], room).scatter_add(1, place, values.float())
        gone = torch.zeros_like(samples).scatter_add(1, place, missing.float())
        lost = gone.unflatten(1, (-1, patch)).sum(-1)
        lost[:, 0] += state["clock"][:, 1]
        return samples, lost / patch

    def _remember(self, samples: Tensor, history: Tensor, whole: Tensor, left: Tensor) -> State:
        """History and unfinished patch after ``whole`` [B] patches and ``left`` [B] samples."""
        config = self.config
        at = (whole * config.patch).unsqueeze(1)
        before = torch.arange(config.history, device=at.device)
        begun = torch.arange(config.patch, device=at.device)
        unfinished = F.pad(samples, (0, config.patch)).gather(1, at + begun)
        return {
            "history": torch.cat([history, samples], 1).gather(1, at + before),
            "patch": unfinished * (begun < left.unsqueeze(1)),
        }

    def _outlook_after(
        self, new: State, left: Tensor, gap: Tensor, ends: Tensor, old: State
    ) -> Tensor:
        """[B, 2, horizon] from now on; through a gap the outlook from before it stays in force.

        A gap's outlook is extended when a patch ends, and counts from there.
        """
        config = self.config
        steps = torch.arange(config.history, device=left.device)
        now = torch.cat([new["history"], new["patch"]], 1).gather(1, left.unsqueeze(1) + steps)
        window = torch.where(gap.unsqueeze(1), new["history"], now)
        fresh = torch.stack(self.look_ahead(window, new["context"]), 1)
        passed = (old["clock"][:, 3].long() + ends - left).unsqueeze(1)
        place = passed + torch.arange(config.horizon, device=left.device)
        known = (place < config.horizon).unsqueeze(1)
        index = place.clamp(0, config.horizon - 1).unsqueeze(1).expand_as(fresh)
        extended = torch.where(known, old["outlook"].gather(-1, index), fresh)
        ended = old["clock"][:, 0] + ends >= config.patch
        kept = torch.where(ended[:, None, None], extended, old["outlook"])
        return torch.where(gap[:, None, None], kept, fresh)
