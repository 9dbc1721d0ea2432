"""What the engine runs next: pure policy without clock, threads or tensors.

Every item with stepwise work gets one token a tick. Then items with long work get one chunk each,
in the order of their last turn, until the tick's budget of tokens is spent; the first chunk of a
tick always runs, so nothing starves however large it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Slice(NamedTuple, Generic[T]):
    """Tokens ``start`` ... ``stop`` - 1 of an item."""

    item: T
    start: int
    stop: int


class Tick(NamedTuple, Generic[T]):
    """One tick's work: the steps run first, as one batch."""

    steps: list[Slice[T]]
    chunks: list[Slice[T]]


class _Bulk(NamedTuple):
    start: int
    tokens: int
    rows: int


class Schedule(Generic[T]):
    """Cuts items, which are any hashable things, into steps and chunks.

    ``budget`` bounds rows times tokens of a tick's chunks, ``chunk`` the tokens of one chunk.
    Chunks are cut at places that depend on the item alone, so results do not depend on timing.
    """

    def __init__(self, budget: int, chunk: int) -> None:
        self._budget = budget
        self._chunk = chunk
        self._steps: dict[T, tuple[int, int]] = {}
        self._bulk: OrderedDict[T, _Bulk] = OrderedDict()

    def __len__(self) -> int:
        return len(self._steps) + len(self._bulk)

    def add_steps(self, item: T, tokens: int) -> None:
        """Queue an item of ``tokens`` tokens, one a tick."""
        self._steps[item] = (0, tokens)

    def add_bulk(self, item: T, tokens: int, rows: int = 1) -> None:
        """Queue an item of ``rows`` rows of ``tokens`` tokens each, run in chunks."""
        self._bulk[item] = _Bulk(0, tokens, rows)

    def discard(self, item: T) -> None:
        """Forget an item's remaining work, if there is any."""
        self._steps.pop(item, None)
        self._bulk.pop(item, None)

    def next(self) -> Tick[T]:
        """Take the next tick's work off the schedule."""
        return Tick(self._next_steps(), self._next_chunks())

    def _next_steps(self) -> list[Slice[T]]:
        taken = [Slice(item, at, at + 1) for item, (at, _) in self._steps.items()]
        self._steps = {
            item: (at + 1, tokens) for item, (at, tokens) in self._steps.items() if at + 1 < tokens
        }
        return taken

    def _next_chunks(self) -> list[Slice[T]]:
        taken: list[Slice[T]] = []
        again: list[tuple[T, _Bulk]] = []
        spent = 0
        while self._bulk:
            item, work = self._bulk.popitem(last=False)
            length = min(
                chunk_tokens(work.rows, self._chunk, self._budget), work.tokens - work.start
            )
            spent += length * work.rows
            if taken and spent > self._budget:
                self._bulk[item] = work
                self._bulk.move_to_end(item, last=False)
                break
            stop = work.start + length
            taken.append(Slice(item, work.start, stop))
            if stop < work.tokens:
                again.append((item, work._replace(start=stop)))
        self._bulk.update(again)
        return taken


def chunk_tokens(rows: int, chunk: int, budget: int) -> int:
    """Tokens of one chunk of an item with ``rows`` rows: a wide item's chunks are shorter."""
    return max(1, min(chunk, budget // rows))


def bucket(count: int) -> int:
    """The smallest power of two that is at least ``count``."""
    return 1 << max(count - 1, 0).bit_length()


def group_chunks(chunks: Sequence[Slice[T]]) -> list[list[Slice[T]]]:
    """Chunks to run together: padded to the longest, a group wastes less than half."""
    groups: dict[int, list[Slice[T]]] = {}
    for chunk in chunks:
        groups.setdefault(bucket(chunk.stop - chunk.start), []).append(chunk)
    return list(groups.values())


def plan_batches(lengths: Sequence[int], chunk: int, budget: int) -> list[list[int]]:
    """Pack series of the given lengths into batches, longest first in each.

    Returns indices into ``lengths``. Rows times tokens of a batch's chunk stay within ``budget``
    (one row always fits) and lengths in a batch differ by less than a factor of two.
    """
    batches: list[list[int]] = []
    size = room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if bucket(lengths[index]) != size or len(batches[-1]) >= room:
            size = bucket(lengths[index])
            room = max(1, budget // min(chunk, lengths[index]))
            batches.append([])
        batches[-1].append(index)
    return batches
