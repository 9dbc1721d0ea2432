"""A model that keeps its rows' states itself, for callers who do not want to carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kssm.errors import InvalidInputError, StateError
from kssm.models.base import SequenceModel, State


class StatefulModel:
    """A sequence model and the states of ``rows`` independent streams.

    Inference only: no gradients are kept. The model's device and dtype must not change afterwards.
    Methods take ``rows``, the streams they are about, in the order of their inputs and outputs;
    None = all. They raise InvalidInputError (``unknown_row``) for rows that do not exist or occur
    twice. A row whose new state would not be finite keeps its old one.
    """

    def __init__(self, model: SequenceModel, rows: int) -> None:
        if rows < 1:
            raise InvalidInputError("need at least one row", code="unknown_row")
        self.model = model
        self.rows = rows
        self._arena = model.initial_state(rows + 1)
        self._device = next(iter(self._arena.values())).device

    @torch.no_grad()
    def step(
        self, x: Tensor, dt: Tensor | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """One token for each row, [N, d_model] -> [N, d_model]; ``dt`` [N] as in the model."""
        slots = self._slots(rows)
        wrong_dt = dt is not None and dt.shape != slots.shape
        if x.shape != (len(slots), self.model.d_model) or wrong_dt:
            raise InvalidInputError(
                f"expected tokens [{len(slots)}, {self.model.d_model}] and dt [{len(slots)}]",
                code="wrong_shape",
            )
        return self.model.step_(x, self._arena, slots, dt)

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        dt: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Many tokens for each row, [N, T, d_model] -> the same; arguments as in the model."""
        slots = self._slots(rows)
        if x.shape[:1] != slots.shape:
            raise InvalidInputError(f"expected tokens of {len(slots)} rows", code="wrong_shape")
        old = self._gather(slots)
        y, new = self.model(x, old, lengths, dt)
        finite = [torch.isfinite(entry).flatten(1).all(1) for entry in new.values()]
        healthy = torch.stack(finite).all(0)
        for name, entry in new.items():
            kept = healthy.view(-1, *[1] * (entry.dim() - 1))
            self._arena[name][slots] = torch.where(kept, entry, old[name])
        return y

    def get_states(self, rows: Sequence[int] | None = None) -> State:
        """A copy of the rows' states, [N, ...] an entry."""
        return self._gather(self._slots(rows))

    def set_states(self, states: Mapping[str, Tensor], rows: Sequence[int] | None = None) -> None:
        """Overwrite the rows' states with what ``get_states`` gave.

        Everything is checked first: StateError ``state_malformed`` (names, shapes, dtypes, values
        that are not finite) leaves all rows as they were.
        """
        slots = self._slots(rows)
        self._check(states, len(slots))
        for name, entry in states.items():
            self._arena[name][slots] = entry.to(self._device)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Make the rows fresh again."""
        slots = self._slots(rows)
        for name, entry in self.model.initial_state(len(slots)).items():
            self._arena[name][slots] = entry

    def _gather(self, slots: Tensor) -> State:
        return {name: entry[slots] for name, entry in self._arena.items()}

    def _slots(self, rows: Sequence[int] | None) -> Tensor:
        """Rows -> rows of the arena, whose first is scratch space."""
        chosen = range(self.rows) if rows is None else rows
        if len(set(chosen)) != len(chosen) or not all(0 <= row < self.rows for row in chosen):
            raise InvalidInputError(
                f"rows must differ and lie in 0 ... {self.rows - 1}", code="unknown_row"
            )
        return torch.tensor([row + 1 for row in chosen], dtype=torch.long, device=self._device)

    def _check(self, states: Mapping[str, Tensor], rows: int) -> None:
        spec = self.model.state_spec()
        if states.keys() != spec.keys():
            names = ", ".join(sorted(states.keys() ^ spec.keys()))
            raise StateError(f"missing or unexpected entries: {names}")
        for name, (shape, dtype) in spec.items():
            entry = states[name]
            if entry.shape != (rows, *shape) or entry.dtype != dtype:
                raise StateError(f"{name} must be {dtype} {[rows, *shape]}")
            if not bool(torch.isfinite(entry).all()):
                raise StateError(f"{name} holds values that are not finite")
