"""The contract of every sequence model: tokens to tokens, with an explicit state.

``forward`` consumes many tokens at once, ``step_`` one token for each of many rows of an arena.
Both must agree: a sequence cut anywhere between the two gives the same outputs and the same state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kssm.errors import InvalidInputError

StateSpec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name of a state entry -> (shape of one row, dtype)."""

State = dict[str, Tensor]
"""State of some rows: every entry of the spec as a tensor [rows, ...]."""


def fresh_state(spec: StateSpec, rows: int, device: torch.device) -> State:
    """State of ``rows`` rows that have seen nothing: zeros."""
    return {
        name: torch.zeros(rows, *shape, dtype=dtype, device=device)
        for name, (shape, dtype) in spec.items()
    }


class PrefillOutput(NamedTuple):
    """What a prefill of the runtime's rows gives.

    state: after the last valid sample; tail: [B, T] two-sided tail probabilities or NaN.
    """

    state: State
    tail: Tensor


class StepOutput(NamedTuple):
    """What a step of the runtime's rows gives.

    tail: [N] two-sided tail probabilities or NaN; healthy: [N], False = state not advanced.
    """

    tail: Tensor
    healthy: Tensor


class SequenceModel(nn.Module, ABC):
    """Maps tokens [B, T, d_model] to tokens of the same shape, carrying a state for each row."""

    d_model: int

    @abstractmethod
    def state_spec(self) -> StateSpec:
        """Shapes and dtypes of what one row carries from a token to the next."""

    @abstractmethod
    def scan(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor | None
    ) -> tuple[Tensor, State]:
        """Advance all rows over tokens whose ``dt`` is positive (``forward`` sees to that).

        Arguments as in ``forward``; tokens at or after ``lengths`` may yield any finite output.
        """

    @abstractmethod
    def step_rows_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None) -> Tensor:
        """One token a row; ``slots`` [N] >= 0, where slot 0 of the arena is scratch space."""

    def initial_state(self, rows: int) -> State:
        """State of ``rows`` fresh rows, on the model's device."""
        return fresh_state(self.state_spec(), rows, next(self.parameters()).device)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Advance every row over its tokens in parallel; differentiable.

        Args:
            x: [B, T, d_model] tokens.
            state: state to continue from ([B, ...] an entry; never modified), None = fresh rows.
            lengths: [B] number of valid tokens of each row, None = all T.
            dt: [B, T] factors >= 0 on the step of each token (time since the previous one in
                nominal intervals), None = 1. Tokens with dt = 0 leave the state untouched.

        Returns:
            Outputs [B, T, d_model], zero at invalid tokens, and the state after the last valid
            token of each row.

        Raises:
            InvalidInputError: shapes that do not fit (``wrong_shape``).
        """
        self._check(x, lengths, dt)
        if dt is None or bool((dt > 0).all()):
            y, new_state = self.scan(x, state, lengths, dt)
            return _zero_after(y, lengths), new_state
        return self._forward_compacted(x, state, lengths, dt)

    def step_(self, x: Tensor, arena: State, slots: Tensor, dt: Tensor | None = None) -> Tensor:
        """Advance the arena rows ``slots`` by one token each, in place.

        Args:
            x: [N, d_model] one token a row.
            arena: state entries [slots + 1, ...]; row 0 is scratch space.
            slots: [N] int64 arena rows, all different; -1 = padding.
            dt: [N] factors >= 0, None = 1. Rows with dt = 0 are left untouched.

        Returns:
            Outputs [N, d_model], zero for padding and for rows with dt = 0.
        """
        idle = slots < 0 if dt is None else (slots < 0) | (dt <= 0)
        y = self.step_rows_(x, arena, slots.masked_fill(idle, 0), dt)
        return y.masked_fill(idle.unsqueeze(-1), 0.0)

    def _check(self, x: Tensor, lengths: Tensor | None, dt: Tensor | None) -> None:
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise InvalidInputError(
                f"expected tokens [B, T, {self.d_model}], got {list(x.shape)}", code="wrong_shape"
            )
        if lengths is not None and lengths.shape != x.shape[:1]:
            raise InvalidInputError("lengths must be [B]", code="wrong_shape")
        if dt is not None and dt.shape != x.shape[:2]:
            raise InvalidInputError("dt must be [B, T]", code="wrong_shape")

    def _forward_compacted(
        self, x: Tensor, state: State | None, lengths: Tensor | None, dt: Tensor
    ) -> tuple[Tensor, State]:
        """Move the tokens with dt > 0 to the front, run, and put the outputs back in place."""
        steps = torch.arange(x.shape[1], device=x.device)
        valid = dt > 0
        if lengths is not None:
            valid = valid & (steps < lengths.unsqueeze(1))
        order = torch.argsort((~valid).to(torch.int8), dim=1, stable=True)
        spread = order.unsqueeze(-1).expand_as(x)
        y, new_state = self.scan(
            x.gather(1, spread), state, valid.sum(1), dt.gather(1, order).clamp_min(1e-6)
        )
        y = torch.zeros_like(y).scatter(1, spread, y)
        return y * valid.unsqueeze(-1), new_state


def _zero_after(y: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return y
    steps = torch.arange(y.shape[1], device=y.device)
    return y.masked_fill((steps >= lengths.unsqueeze(1)).unsqueeze(-1), 0.0)
