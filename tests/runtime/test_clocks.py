"""What is due after a step, known without asking the device; the steps are those of ``step_``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.forecast.resolutions import MultiResolutionForecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.runtime.arena import Arena
from kssm.runtime.clocks import Clocks, clocked
from kssm.runtime.contract import Floats, Slots
from kssm.runtime.executor import Executor
from tests.runtime.fakes import SmoothingForecaster

PERIODS = (2, 8, 16)


def model_of() -> MultiResolutionForecaster:
    model = tiny_forecaster(thinning=(2, 8)).requires_grad_(False)
    assert isinstance(model, MultiResolutionForecaster)
    return model


class Rig:
    """An arena that is stepped in parts, and the rows of a twin that takes whole steps."""

    def __init__(self, rows: int) -> None:
        self.model = model_of()
        fresh = self.model.initial_state(1)
        self.arena = Arena(self.model.state_spec(), fresh, rows=rows, max_rows=rows)
        self.asked: list[int] = []
        self.clocks = Clocks(self.arena, PERIODS, self._fetch)
        self.slots = self.arena.allocate(rows).slots
        self.twin = {name: entry.clone() for name, entry in self.arena.tensors.items()}

    def _fetch(self, tensor: Tensor) -> NDArray[Any]:
        self.asked.append(len(tensor))
        return tensor.numpy()

    def step(self, slots: Slots, values: Floats) -> None:
        moved = torch.from_numpy(values), torch.from_numpy(slots)
        following = self.clocks.advance(slots)
        self.model.step_row_(moved[0], self.arena.tensors, moved[1])
        for due in following:
            follow_up = self.model.follow_ups[due.number]
            assert follow_up.period == PERIODS[due.number]
            places = torch.from_numpy(np.append(due.slots, -1))  # padding, as on a GPU
            clocks = torch.from_numpy(np.append(due.clocks, 0.0))
            follow_up.run(self.arena.tensors, places, clocks)
        self.model.step_apart_(moved[0], self.twin, moved[1])

    def check(self) -> None:
        for name, entry in self.twin.items():
            assert torch.equal(self.arena.tensors[name][1:], entry[1:]), name


def test_steps_in_parts_are_whole_steps() -> None:
    rig = Rig(3)
    generator = np.random.default_rng(0)
    for t in range(40):
        slots = rig.slots[: 1 + t % 3]  # the rows' clocks drift apart
        rig.step(slots, generator.normal(50.0, 3.0, len(slots)))
    rig.check()
    assert rig.asked == [1, 1, 1]  # each row once: it was fresh


def test_a_row_that_was_written_to_is_asked_again() -> None:
    rig = Rig(2)
    for _ in range(5):
        rig.step(rig.slots, np.ones(2))
    rig.arena.write(rig.slots[:1], rig.model.initial_state(1))
    for name, entry in rig.model.initial_state(1).items():
        rig.twin[name][rig.slots[:1]] = entry
    for t in range(20):
        rig.step(rig.slots, np.array([float(t), -float(t)]))
    rig.check()
    assert rig.asked == [2, 1]


def test_a_row_whose_step_failed_is_left_alone() -> None:
    rig = Rig(2)
    rig.step(rig.slots, np.ones(2))
    rig.arena.tensors["scaler"][rig.slots[1], 5] = torch.nan
    rig.arena.tensors["scaler"][rig.slots[1], 1] = torch.nan
    sick = {name: entry[rig.slots[1]].clone() for name, entry in rig.arena.tensors.items()}
    step, following = torch.from_numpy(rig.slots), rig.clocks.advance(rig.slots)
    output = rig.model.step_row_(torch.ones(2, dtype=torch.float64), rig.arena.tensors, step)
    assert output.healthy.tolist() == [True, False]
    for due in following:
        clocks = torch.from_numpy(due.clocks)
        rig.model.follow_ups[due.number].run(rig.arena.tensors, torch.from_numpy(due.slots), clocks)
    for name, entry in rig.arena.tensors.items():
        if name.startswith("every") or name in ("clock", "block"):
            assert torch.equal(entry[rig.slots[1]], sick[name]), name
    assert float(rig.arena.tensors["every2.scaler"][rig.slots[0], 0]) == 1.0


def test_entries_of_follow_ups_change_at_no_other_time() -> None:
    """What is kept aside for a step is all that it may change."""
    model = model_of()
    arena = Arena(model.state_spec(), model.initial_state(1), rows=40, max_rows=40)
    executor = Executor(model, arena, torch.device("cpu"), padded=False)
    slots, generator = arena.allocate(40).slots, np.random.default_rng(0)
    rested = 0
    for t in range(70):
        own = slots[:: 1 + (t // 3) % 2]  # some clocks lag behind
        before, kept = arena.whole(own), executor.keep(own, once=True)()
        executor.step(own, generator.normal(50.0, 3.0, len(own)), np.ones(len(own)))
        after = arena.whole(own)
        for name, entry in before.items():
            torch.testing.assert_close(kept.get(name, after[name]), entry, rtol=0, atol=0)
        rested += len(before) - len(kept)
    assert rested > 0
    assert executor.keep(slots, once=False)().keys() == before.keys()
    assert executor.keep(slots[:3], once=True)().keys() == before.keys()


def test_other_forecasters_have_no_follow_ups() -> None:
    assert clocked(SmoothingForecaster()) is None
    assert clocked(tiny_forecaster()) is None
