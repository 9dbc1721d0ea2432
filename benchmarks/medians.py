"""Times of actions that are compared with each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

LEAST_TURNS = 5


def medians(actions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Microseconds of each action, run in turns so that all see the same machine.

    Each runs three times a turn and the last one counts: its caches are its own by then. On one
    thread the processor's time counts, so that others on the machine disturb less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in actions}
    end = time.perf_counter() + seconds
    turns = 0
    while time.perf_counter() < end or turns < LEAST_TURNS:
        turns += 1
        for name, action in actions.items():
            action()
            action()
            start = clock()
            action()
            times[name].append(1e6 * (clock() - start))
    return {name: statistics.median(found) for name, found in times.items()}
