"""Time on the device alone: the host queues ahead of it, so that launching is not what is timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.models import cuda_ms, median_ms

_COVER_BYTES = 2**30
_COVER_MS = 0.2
"""What writing the cover takes at the very least."""

_MOST_COVERS = 64


def queued_ms(
    run: Callable[[], object], device: torch.device, repeats: int, queued: int = 3
) -> float:
    """Median over ``repeats`` of the mean of ``queued`` runs, after two to warm up.

    On a GPU the runs wait behind writes to memory that take longer than the host needs to queue
    them. On a CPU this is ``median_ms``.
    """
    if device.type != "cuda":
        return median_ms(run, device, repeats, queued)
    host_ms = _host_ms(run, queued)
    cover = torch.empty(_COVER_BYTES, dtype=torch.uint8, device=device)
    covers = min(_MOST_COVERS, 2 + math.ceil(host_ms / _COVER_MS))
    return statistics.median(_covered_ms(run, queued, cover, covers) for _ in range(repeats))


def _host_ms(run: Callable[[], object], queued: int) -> float:
    """How long the host takes to queue the runs, the device being idle at first."""
    run()
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(queued):
        run()
    spent = 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    return spent


def _covered_ms(run: Callable[[], object], queued: int, cover: torch.Tensor, covers: int) -> float:
    for _ in range(covers):
        cover.zero_()
    return cuda_ms(run, queued)
