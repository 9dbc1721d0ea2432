"""The CPU path: ``SignalForecaster``'s step, prefill and roll-out as compiled functions.

They read a packed copy of the weights, and are used wherever they can be; the torch code of the
forecaster stays the reference and the fallback. See docs/cpu.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.compiler import is_compiling

from kssm.forecast.native.calls import (
    TILE,
    KnownArena,
    PrefillCall,
    checked,
    copied,
    is_sample_batch,
    is_series_batch,
    pointers,
    step_rows,
)
from kssm.forecast.native.library import Library, load
from kssm.forecast.native.weights import Layout, Weights
from kssm.models.kssm import KSSMConfig

if TYPE_CHECKING:
    from kssm.forecast.forecaster import SignalForecaster
    from kssm.models import State

__all__ = ["NativeModel"]


class NativeModel:
    """Runs the compiled code for one forecaster and owns the packed copy of its weights.

    The copy is made on the first call and again whenever a weight was written to, or the model
    loaded or moved. What torch does not count is not seen: ``parameter.data.add_``, numpy views,
    a single weight or layer inside the backbone replaced by another object. Call ``forget`` after
    such a change; ``train`` and ``eval`` do so too. To look at every weight costs up to 50 us a
    step: after ``hold`` only a model loaded or moved as a whole is seen.

    A row is computed alike, bit for bit, whatever the batch it is in and however its samples are
    cut into steps and prefills. Every method returns None where torch must do the work.
    """

    def __init__(self, find: Callable[[], Library | None] = load) -> None:
        self._find = find
        self._found: tuple[Library, Weights] | None = None
        self._arena: KnownArena | None = None
        self._held = False

    def __reduce__(self) -> tuple[type[NativeModel], tuple[()]]:
        """Copies and pickles start empty: they belong to another model."""
        return NativeModel, ()

    def forget(self) -> None:
        """Drop the packed copy of the weights, and look for changes again."""
        self._found = self._arena = None
        self._held = False

    def hold(self) -> None:
        """Do not look for writes to single weights any more, until ``forget``."""
        self._held = True

    def step_(
        self,
        model: SignalForecaster,
        values: Tensor,
        arena: State,
        slots: Tensor,
        dt: Tensor | None,
        *,
        whole: bool = False,
        groups: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """``SignalForecaster.step_``: (tail [N], healthy [N]).

        ``whole``: rows are stepped with their thinned copies. ``groups`` [N] int64: neighbours of
        equal numbers, up to ``rows_together``, go on together or not at all. Raises
        ``IndexError`` for a slot outside the arena.
        """
        found = self.usable(model) if is_sample_batch(values, slots, dt) else None
        if found is None:
            return None
        layout = found[1].whole if whole else found[1].single
        if layout is None:
            return None
        known = self._arena
        if known is None or not known.is_still(found[1], layout, arena):
            known = self._arena = checked(found[1], layout, arena)
        if known is None:
            return None
        tail, healthy = known.outputs(values)
        step_rows(*found, known.pointers, values, dt, slots, groups, tail, healthy)
        return tail, healthy

    def rows_together(self, model: SignalForecaster) -> int:
        """The most rows of a group; 0 where torch must do the work."""
        found = self.usable(model)
        layout = _layout(found, True)
        return 0 if layout is None else TILE // (1 + len(layout.factors))

    def prefill(
        self,
        model: SignalForecaster,
        values: Tensor,
        state: State,
        lengths: Tensor | None,
        dt: Tensor | None,
        *,
        whole: bool = False,
    ) -> tuple[State, Tensor] | None:
        """``SignalForecaster.prefill``: (state, tail [B, T]); ``whole`` as for ``step_``."""
        found = self.usable(model) if is_series_batch(values, lengths, dt) else None
        layout = _layout(found, whole)
        new = copied(layout, state) if layout else None
        if found is None or layout is None or new is None:
            return None
        rows, tokens = values.shape
        ends = torch.full((rows,), tokens) if lengths is None else lengths.long().contiguous()
        steps = None if dt is None else dt.contiguous()
        tail = torch.full((rows, tokens), torch.nan, dtype=torch.float64)
        arena = pointers(list(new.values()), layout)
        PrefillCall(*found, arena, values.contiguous(), steps, ends, tail, 0, None).run()
        return new, tail

    def roll_out(self, model: SignalForecaster, state: State, reads: int) -> Tensor | None:
        """Normalised quantiles [B, reads K, 9], read after each K missing samples."""
        found = self.usable(model)
        layout = _layout(found, False)
        new = copied(layout, state) if layout else None
        if found is None or layout is None or new is None:
            return None
        rows, every = len(new["scaler"]), model.config.head_horizon
        values = torch.full((rows, reads * every), torch.nan, dtype=torch.float64)
        ends = torch.full((rows,), reads * every)
        forecasts = torch.empty(rows, reads, *new["forecast"].shape[1:])
        arena = pointers(list(new.values()), layout)
        PrefillCall(
            *found, arena, values, None, ends, torch.empty_like(values), every, forecasts
        ).run()
        return forecasts.flatten(1, 2)

    def usable(self, model: SignalForecaster) -> tuple[Library, Weights] | None:
        """The library and the current weights; None if torch must do the work."""
        if model.training or is_compiling():
            return None
        found = self._found
        if found is None or not (
            found[1].seem_current() if self._held else found[1].are_current(model)
        ):
            found = self._found = self._look(model)
        return None if found is None or found[1].address is None else found

    def _look(self, model: SignalForecaster) -> tuple[Library, Weights] | None:
        if not isinstance(model.config.backbone, KSSMConfig):
            return None
        library = self._find()
        return None if library is None else (library, Weights(model, library))


def _layout(found: tuple[Library, Weights] | None, whole: bool) -> Layout | None:
    if found is None:
        return None
    return found[1].whole if whole else found[1].single
