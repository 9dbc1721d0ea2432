"""Rows: allocation, growth, generations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kssm.errors import CapacityError, StateError
from kssm.runtime.arena import Arena, Rows
from kssm.runtime.contract import State
from tests.runtime.fakes import SmoothingForecaster


def _arena(rows: int = 2, max_rows: int = 16) -> Arena:
    model = SmoothingForecaster()
    return Arena(model.state_spec(), model.initial_state(1), rows=rows, max_rows=max_rows)


def _random(count: int, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, *shape, dtype=dtype, generator=generator)
        for name, (shape, dtype) in SmoothingForecaster().state_spec().items()
    }


def _same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_shapes_and_dtypes_follow_the_specification() -> None:
    arena = _arena(rows=3)
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in arena.tensors.items()}
    assert shapes == {
        "level": ((4,), torch.float64),
        "moments": ((4, 2), torch.float32),
        "trail": ((4, 3, 2), torch.float32),
    }
    assert arena.nbytes == 4 * (8 + 8 + 24)


def test_allocated_rows_are_fresh_and_distinct() -> None:
    arena = _arena()
    first = arena.allocate(1)
    second = arena.allocate(1)
    assert {int(first.slots[0]), int(second.slots[0])} == {1, 2}
    assert _same(arena.gather(first.slots), SmoothingForecaster().initial_state(1))


def test_growth_keeps_contents_bit_for_bit() -> None:
    arena = _arena(rows=1, max_rows=11)
    held = [arena.allocate(1)]
    arena.write(held[0].slots, _random(1))
    kept = arena.gather(held[0].slots)
    versions = {arena.version}
    for _ in range(10):
        held.append(arena.allocate(1))
        versions.add(arena.version)
        assert _same(arena.gather(held[0].slots), kept)
    assert arena.capacity == arena.used == 11
    assert len(versions) == 5
    assert sorted(int(rows.slots[0]) for rows in held) == list(range(1, 12))


def test_a_full_arena_refuses_all_or_nothing() -> None:
    arena = _arena(rows=2, max_rows=4)
    arena.allocate(3)
    with pytest.raises(CapacityError) as refused:
        arena.allocate(2)
    assert refused.value.code == "rows_exhausted"
    assert arena.used == 3
    assert len(arena.allocate(1)) == 1


def test_no_memory_for_growth_is_a_capacity_error(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = _arena(rows=1, max_rows=1000)
    arena.allocate(1)
    before = arena.tensors

    def no_memory(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("kssm.runtime.arena._extended", no_memory)
    with pytest.raises(CapacityError) as refused:
        arena.allocate(1)
    assert refused.value.code == "rows_exhausted"
    assert arena.tensors is before
    assert arena.used == arena.capacity == 1


def test_freed_rows_are_zeroed_and_their_handles_stale() -> None:
    arena = _arena()
    rows = arena.allocate(2)
    arena.write(rows.slots, _random(2))
    arena.free(rows)
    assert all(not tensor[1:].any() for tensor in arena.tensors.values())
    for use in (arena.free, arena.reset, arena.check):
        with pytest.raises(StateError) as stale:
            use(rows)
        assert stale.value.code == "stale_handle"


def test_a_reused_slot_does_not_answer_to_its_old_handle() -> None:
    arena = _arena(rows=1, max_rows=1)
    old = arena.allocate(1)
    arena.free(old)
    new = arena.allocate(1)
    assert old.slots.tolist() == new.slots.tolist()
    arena.check(new)
    with pytest.raises(StateError):
        arena.free(old)
    assert arena.used == 1


def test_a_forged_handle_on_a_free_slot_is_refused() -> None:
    arena = _arena()
    with pytest.raises(StateError):
        arena.free(Rows(np.array([1]), np.array([0])))


@given(st.lists(st.integers(0, 5), max_size=40))
def test_any_order_of_allocating_and_freeing_keeps_every_row(actions: list[int]) -> None:
    arena = _arena(rows=1, max_rows=8)
    held: list[tuple[Rows, State]] = []
    for seed, action in enumerate(actions):
        if action < 3:
            try:
                rows = arena.allocate(action + 1)
            except CapacityError:
                continue
            state = _random(action + 1, seed)
            arena.write(rows.slots, state)
            held.append((rows, state))
        elif held:
            arena.free(held.pop(seed % len(held))[0])
        assert arena.used == sum(len(rows) for rows, _ in held)
        for rows, state in held:
            assert _same(arena.gather(arena.check(rows)), state)
