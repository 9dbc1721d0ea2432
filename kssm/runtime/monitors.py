"""Anomaly monitors of the arena's rows: they see each sample and its tail, and live on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from kssm.forecast.anomaly import FIELDS, Alarm, AnomalyMonitor, advance_numpy_, fresh_state
from kssm.forecast.native.monitor import advance_
from kssm.runtime.arena import Arena
from kssm.runtime.contract import Floats, Slots, State, StateSpec
from kssm.runtime.jobs import Append

ENTRY: Final = "monitor"
"""The monitors' entry in a session's state."""


def monitor_state(*, scored: bool) -> State:
    """The host's entries of one fresh row; none for models whose samples are not ``scored``."""
    return {ENTRY: torch.from_numpy(fresh_state(1))} if scored else {}


def monitor_spec(*, scored: bool) -> StateSpec:
    """The specification of ``monitor_state``."""
    return {ENTRY: ((len(FIELDS),), torch.float64)} if scored else {}


class Monitors:
    """Brings the monitors of an arena forward; without them nothing is ever scored."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def step(self, slots: Slots, values: Floats, tail: Floats) -> Alarm:
        """One sample of each of rows ``slots`` [N], all different; the monitors move on."""
        if ENTRY not in self._arena.host:
            return Alarm(tail, tail)
        table = self._arena.host[ENTRY].numpy()
        done = advance_(table, values[None], tail[None], slots)
        if done is not None:
            return Alarm(done[0][0], done[1][0])
        state = table[slots]
        alarm = advance_numpy_(state, values[None], tail[None])
        table[slots] = state
        return Alarm(alarm.probability[0], alarm.surprise[0])

    def read(self, slots: Slots) -> AnomalyMonitor | None:
        """A copy of the monitors of rows ``slots``, for samples that may yet be taken back."""
        table = self._arena.host.get(ENTRY)
        return None if table is None else AnomalyMonitor(len(slots), table.numpy()[slots])

    def write(self, slots: Slots, monitors: Sequence[AnomalyMonitor]) -> None:
        """Put the monitors of rows ``slots`` back, one part after the other."""
        if monitors:
            self._arena.host[ENTRY].numpy()[slots] = np.concatenate([m.state for m in monitors])


def note(job: Append, said: Floats) -> None:
    """Keep the most extreme of the job's samples: ``said`` of one more, or of some, [channels, 2].

    ``said`` itself is kept where it is the first, and never written to.
    """
    if job.said is not None:
        (tail, surprise), (lowest, highest) = said.T, job.said.T
        said = np.stack([np.fmin(lowest, tail), np.fmax(highest, surprise)], axis=1)
    job.said = said
