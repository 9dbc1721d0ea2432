"""How the Triton kernels cut their work: sizes, builds, and segments of rows."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Build(NamedTuple):
    """How a kernel is compiled."""

    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"STAGES": self.stages, "num_warps": self.warps, "maxnreg": self.registers}


class Walk(NamedTuple):
    """A build of the kernel that computes outputs.

    Attributes:
        fit: programs of it that a multiprocessor holds at the same time.
    """

    build: Build
    fit: int


@dataclass(frozen=True)
class Tuning:
    """How the kernels cut their work.

    Attributes:
        walks: builds of the kernel that computes outputs, of which the quickest is taken.
        starts: of the one that finds where segments start.
        states: of those that walk along states and their adjoints for gradients.
        back: of the one that computes gradients.
        chunk: tokens of a chunk.
        tiles: as walks, for builds whose tiles a GPU's memory unit fetches on its own (TMA);
            empty = no such build.
    """

    walks: tuple[Walk, ...]
    starts: Build
    states: Build
    back: Build
    chunk: int = 64
    tiles: tuple[Walk, ...] = ()


def tuned(dtype: torch.dtype, values: int, width: int) -> Tuning:
    """The cut for inputs of ``dtype`` and states [width, values] of a head, measured on an H200.

    Products in fp32 take three times the work and twice the memory of 16-bit ones.
    """
    if dtype == torch.float32:
        # Without a number ptxas compiles the last one for 32 registers and spills all others.
        walk = Build(4, 1)
        return Tuning((Walk(walk, 2),), walk, walk, Build(8, 1, 255), chunk=32)
    if width * values > 128 * 64:
        return Tuning((Walk(Build(8, 2), 1),), Build(8, 1), Build(8, 1), Build(8, 1))
    if width * values > 64 * 64:
        return Tuning((Walk(Build(4, 2), 2),), Build(4, 2, 168), Build(8, 1), Build(8, 2))
    tiles = (Walk(Build(4, 3), 2),) if width == values == 64 else ()
    walks, states = (Walk(Build(4, 3, 168), 3),), Build(4, 3)
    return Tuning(walks, states, states, Build(4, 2), tiles=tiles)


class Plan(NamedTuple):
    """Segments of a row, the chunks of each, and the build of the walk."""

    segments: int
    span: int
    build: Build


_SEGMENT = 2
"""Chunks in whose time a segment begins and ends."""


@functools.lru_cache(maxsize=4096)
def best_plan(rows: int, chunks: int, processors: int, walks: tuple[Walk, ...]) -> Plan:
    """The quickest way to walk along ``rows`` (rows times heads) of ``chunks`` each.

    The time is that of the rounds one after another, each as long as a segment; a round that is
    not full runs a little faster. More than one segment costs a walk along the states before, and
    each of them some chunks' time to begin and to end.
    """

    def time(choice: tuple[int, Walk]) -> float:
        segments, walk = choice
        rounds = rows * segments / (processors * walk.fit)
        count = math.ceil(rounds) if rounds > 1 else 0.6 + 0.4 * rounds
        span = math.ceil(chunks / segments)
        return count * (span if segments == 1 else 1.4 * (span + _SEGMENT))

    most = max(1, min(chunks // 4, 256))
    segments, walk = min(itertools.product(range(1, most + 1), walks), key=time)
    span = math.ceil(chunks / segments)
    return Plan(math.ceil(chunks / span), span, walk.build)


def head_parts(programs: int, heads: int, device: torch.device) -> int:
    """Programs that share the heads of a group, when there are too few chunks."""
    parts = 1
    while programs * parts < 2 * processors(device) and heads % (2 * parts) == 0:
        parts *= 2
    return parts


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def fetches_tiles(device: torch.device) -> bool:
    """Whether a GPU has tensor descriptors (Hopper and later); the interpreter has."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 9
