"""What the runtime needs of a forecaster, and nothing else of it.

``kssm.forecast.SignalForecaster`` satisfies these protocols; so does any other object with the
same four methods, which is how the runtime is tested without a model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.language.sampling import Sampling

StateSpec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
State = dict[str, Tensor]
Floats = NDArray[np.float64]
Slots = NDArray[np.int64]


class StepOutput(Protocol):
    """One step's result for N rows."""

    @property
    def tail(self) -> Tensor:
        """[N] float64: tail probability of each sample, NaN where there is no score."""
        ...

    @property
    def healthy(self) -> Tensor:
        """[N] bool: the row's new state is finite."""
        ...


class PrefillOutput(Protocol):
    """The result of B rows' T tokens."""

    @property
    def state(self) -> State:
        """New tensors [B, ...], the state after each row's last valid token."""
        ...

    @property
    def tail(self) -> Tensor:
        """[B, T] float64: tail probability of each sample, NaN where there is no score."""
        ...


class Forecaster(Protocol):
    """A recurrent forecaster whose rows are independent of one another."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of configuration and weights."""
        ...

    def state_spec(self) -> StateSpec:
        """Name -> (shape of one row, dtype) of every state entry."""
        ...

    def initial_state(self, rows: int) -> State:
        """The state of ``rows`` rows that have seen nothing."""
        ...

    def prefill(
        self,
        values: Tensor,
        state: State,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> PrefillOutput:
        """Consume values [B, T] float64 (NaN = missing) from ``state``."""
        ...

    def step_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None
    ) -> StepOutput:
        """Advance the arena's rows ``slots`` [N] (-1 = padding) by values [N] in place."""
        ...

    def forecast_entries(self, horizon: int) -> Collection[str]:
        """The state entries that ``forecast`` reads for such a horizon."""
        ...

    def forecast(self, state: State, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles [B, horizon, len(levels)] float64; ``state`` is not modified.

        A row that has seen no value yet has no forecast: NaN throughout.
        """
        ...


class KeepingModel(Forecaster, Protocol):
    """A forecaster whose step leaves a group of rows as it was when one of them fails."""

    @property
    def rows_together(self) -> int:
        """The most rows of a group; 0 where there is no such step now."""
        ...

    def step_together_(
        self, values: Tensor, arena: State, slots: Tensor, dt: Tensor, groups: Tensor
    ) -> StepOutput | None:
        """``step_`` of rows whose neighbours of equal ``groups`` [N] go on together or not."""
        ...


class TokenModel(Forecaster, Protocol):
    """A language model: values are token ids, and instead of forecasts it draws tokens."""

    @property
    def vocab_size(self) -> int:
        """Tokens there are: 0 ... vocab_size - 1."""
        ...

    def draw(
        self,
        arena: State,
        slots: Tensor,
        rules: Sequence[Sampling],
        uniform: Tensor,
        drawn: Sequence[Sequence[int]],
    ) -> Tensor:
        """The next token [N] of arena rows ``slots`` [N], by rules and random numbers a row.

        ``drawn`` are the tokens of each row that its penalties count.
        """
        ...


def vocabulary(model: Forecaster) -> int | None:
    """Tokens a language model knows; None for a forecaster."""
    return getattr(model, "vocab_size", None)
