"""A forecaster small enough to reason about: exponential smoothing, element-wise and exact."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kssm.runtime.contract import State, StateSpec

POISON = 666.0


class Output(NamedTuple):
    state: State
    tail: Tensor


class Stepped(NamedTuple):
    tail: Tensor
    healthy: Tensor


class SmoothingForecaster:
    """Level and variance follow the samples; the variance of a fresh row is 1, not 0.

    ``calls`` records (name, rows). A call named in ``fail_next`` raises once, a step only after it
    has spoiled the rows. A sample equal to ``POISON`` makes its row's state NaN.
    """

    fingerprint = "smoothing-1"

    def __init__(self) -> None:
        self.fail_next: set[str] = set()
        self.calls: list[tuple[str, int]] = []

    def state_spec(self) -> StateSpec:
        return {
            "level": ((), torch.float64),
            "moments": ((2,), torch.float32),
            "trail": ((3, 2), torch.float32),
        }

    def initial_state(self, rows: int) -> State:
        return {
            "level": torch.zeros(rows, dtype=torch.float64),
            "moments": torch.tensor([1.0, 0.0]).repeat(rows, 1),
            "trail": torch.zeros(rows, 3, 2),
        }

    def prefill(
        self, values: Tensor, state: State, lengths: Tensor | None = None, dt: Tensor | None = None
    ) -> Output:
        self._enter("prefill", len(values))
        tails: list[Tensor] = []
        for t in range(values.shape[1]):
            new, tail = _advance(state, values[:, t], None if dt is None else dt[:, t])
            inside = torch.ones(len(values), dtype=torch.bool) if lengths is None else t < lengths
            state = {k: torch.where(_like(inside, v), v, state[k]) for k, v in new.items()}
            tails.append(tail)
        return Output(state, torch.stack(tails, 1))

    def step_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> Stepped:
        index = slots.clamp_min(0)
        if "step" in self.fail_next:
            arena["level"][index] += 1
        self._enter("step", len(values))
        new, tail = _advance({k: v[index] for k, v in arena.items()}, values, dt)
        healthy = torch.stack([v.flatten(1).isfinite().all(1) for v in _tables(new)]).all(0)
        kept = healthy & (slots >= 0)
        for name, tensor in arena.items():
            tensor[index[kept]] = new[name][kept]
        return Stepped(tail, healthy)

    def forecast_entries(self, horizon: int) -> Collection[str]:
        return ("level", "moments")

    def forecast(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        self._enter("forecast", len(state["level"]))
        q = torch.tensor(levels, dtype=torch.float64)
        spread = state["moments"][:, 0].double().sqrt()[:, None] * torch.special.ndtri(q)
        ahead = torch.arange(1, horizon + 1, dtype=torch.float64).sqrt()
        return state["level"][:, None, None] + ahead[:, None] * spread[:, None, :]

    def _enter(self, name: str, rows: int) -> None:
        self.calls.append((name, rows))
        if name in self.fail_next:
            self.fail_next.discard(name)
            raise ZeroDivisionError(f"no luck in {name}")


def _tables(state: State) -> list[Tensor]:
    return [v.reshape(len(v), -1) for v in state.values()]


def _like(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (tensor.dim() - 1))


def _advance(state: State, values: Tensor, dt: Tensor | None) -> tuple[State, Tensor]:
    steps = torch.ones_like(values) if dt is None else dt.double()
    gain = 1 - torch.exp(-0.2 * steps)
    seen = ~values.isnan()
    error = torch.where(seen, values - state["level"], 0.0)
    variance, seen_before = state["moments"].unbind(-1)
    tail = torch.erfc(error.abs() / (2 * variance.double()).sqrt())
    scored = seen & (seen_before > 0)
    spread = variance.double() + gain * torch.where(seen, error.square() - variance, 0.1)
    moments = torch.stack([spread.float().clamp_max(1e30), (seen_before + seen).float()], -1)
    latest = torch.stack([error.float(), steps.float()], -1).unsqueeze(1)
    new = {
        "level": torch.where(values == POISON, torch.nan, state["level"] + gain * error),
        "moments": moments,
        "trail": torch.cat([state["trail"][:, 1:], latest], 1),
    }
    return new, torch.where(scored, tail, torch.nan)
