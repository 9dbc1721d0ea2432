"""The policy: pure, so every property is tested without time or threads."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from kssm.runtime.schedule import (
    Schedule,
    Slice,
    bucket,
    chunk_tokens,
    group_chunks,
    plan_batches,
)

STEPS = st.lists(st.integers(1, 20), max_size=8)
BULK = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), max_size=8)
SIZES = st.tuples(st.integers(1, 200), st.integers(1, 64))


def _filled(sizes: tuple[int, int], steps: list[int], bulk: list[tuple[int, int]]) -> Schedule:
    schedule = Schedule(*sizes)
    for item, tokens in enumerate(steps):
        schedule.add_steps(item, tokens)
    for item, (tokens, rows) in enumerate(bulk, start=len(steps)):
        schedule.add_bulk(item, tokens, rows)
    return schedule


def _run(schedule: Schedule) -> list[tuple[list[Slice], list[Slice]]]:
    ticks: list[tuple[list[Slice], list[Slice]]] = []
    while schedule:
        tick = schedule.next()
        assert tick.steps or tick.chunks
        ticks.append((tick.steps, tick.chunks))
    return ticks


@given(SIZES, STEPS, BULK)
def test_every_token_runs_once_and_in_order(
    sizes: tuple[int, int], steps: list[int], bulk: list[tuple[int, int]]
) -> None:
    seen: dict[int, list[int]] = defaultdict(list)
    for step_slices, chunk_slices in _run(_filled(sizes, steps, bulk)):
        for slice_ in [*step_slices, *chunk_slices]:
            seen[slice_.item] += range(slice_.start, slice_.stop)
    lengths = [*steps, *(tokens for tokens, _ in bulk)]
    assert dict(seen) == {item: list(range(tokens)) for item, tokens in enumerate(lengths)}


@given(SIZES, STEPS, BULK)
def test_every_stream_steps_in_every_tick(
    sizes: tuple[int, int], steps: list[int], bulk: list[tuple[int, int]]
) -> None:
    ticks = _run(_filled(sizes, steps, bulk))
    for number, (step_slices, _) in enumerate(ticks):
        waiting = [item for item, tokens in enumerate(steps) if tokens > number]
        assert step_slices == [Slice(item, number, number + 1) for item in waiting]


@given(SIZES, BULK)
def test_the_budget_holds_beyond_the_first_chunk(
    sizes: tuple[int, int], bulk: list[tuple[int, int]]
) -> None:
    budget, chunk = sizes
    for _, chunks in _run(_filled(sizes, [], bulk)):
        costs = [(c.stop - c.start) * bulk[c.item][1] for c in chunks]
        assert len(costs) == 1 or sum(costs) <= budget
        assert all(c.stop - c.start <= chunk for c in chunks)
        assert len({c.item for c in chunks}) == len(chunks)


@given(SIZES, BULK)
def test_chunks_are_cut_at_places_that_depend_on_the_item_alone(
    sizes: tuple[int, int], bulk: list[tuple[int, int]]
) -> None:
    together: dict[int, list[Slice]] = defaultdict(list)
    for _, chunks in _run(_filled(sizes, [], bulk)):
        for chunk in chunks:
            together[chunk.item].append(chunk)
    for item, (tokens, rows) in enumerate(bulk):
        alone = Schedule(*sizes)
        alone.add_bulk(item, tokens, rows)
        assert together[item] == [chunk for _, chunks in _run(alone) for chunk in chunks]


@given(SIZES, st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=2, max_size=8))
def test_nobody_gets_a_second_turn_before_all_had_one(
    sizes: tuple[int, int], bulk: list[tuple[int, int]]
) -> None:
    left = {item: tokens for item, (tokens, _) in enumerate(bulk)}
    turns = dict.fromkeys(left, 0)
    for _, chunks in _run(_filled(sizes, [], bulk)):
        for chunk in chunks:
            turns[chunk.item] += 1
            left[chunk.item] -= chunk.stop - chunk.start
        waiting = [turns[item] for item, tokens in left.items() if tokens]
        assert not waiting or max(waiting) - min(waiting) <= 1


def test_a_long_prompt_does_not_delay_a_stream_that_arrives_later() -> None:
    schedule = Schedule(budget=8, chunk=4)
    schedule.add_bulk(1, 1000, 2)
    assert schedule.next() == ([], [Slice(1, 0, 4)])
    schedule.add_steps(2, 1)
    assert schedule.next() == ([Slice(2, 0, 1)], [Slice(1, 4, 8)])


def test_a_discarded_item_does_not_run_again() -> None:
    schedule = _filled((8, 4), [5, 5], [(100, 1), (100, 1)])
    schedule.next()
    for item in (0, 2, 99):
        schedule.discard(item)
    tick = schedule.next()
    assert [s.item for s in tick.steps] == [1]
    assert [c.item for c in tick.chunks] == [3]


def test_wide_items_have_short_chunks() -> None:
    assert chunk_tokens(1, 512, 8192) == 512
    assert chunk_tokens(64, 512, 8192) == 128
    assert chunk_tokens(9000, 512, 8192) == 1


@given(st.integers(1, 10_000))
def test_bucket_is_the_next_power_of_two(count: int) -> None:
    size = bucket(count)
    assert size >= count
    assert size & (size - 1) == 0
    assert size < 2 * count


@given(st.lists(st.integers(1, 600), max_size=30))
def test_grouped_chunks_waste_less_than_half(lengths: list[int]) -> None:
    chunks = [Slice(item, 7, 7 + length) for item, length in enumerate(lengths)]
    groups = group_chunks(chunks)
    assert sorted(chunk for group in groups for chunk in group) == chunks
    for group in groups:
        sizes = [chunk.stop - chunk.start for chunk in group]
        assert sum(sizes) * 2 > len(sizes) * max(sizes)


@given(st.lists(st.integers(1, 3000), max_size=40), st.integers(1, 64), st.integers(1, 500))
def test_batches_hold_every_series_once_within_the_budget(
    lengths: list[int], chunk: int, budget: int
) -> None:
    batches = plan_batches(lengths, chunk, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] < 2 * sizes[-1]
        assert len(sizes) == 1 or len(sizes) * min(chunk, sizes[0]) <= budget
