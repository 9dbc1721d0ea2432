"""Which cut a scan gets: the autotuner's for its device and shape, else one by rule."""

from __future__ import annotations

from dataclasses import asdict

from kssm.ops.kssm_scan.cuda_scan import fits
from kssm.ops.kssm_scan.kernel_cut import RingTuning, TileTuning, Tuning, processors
from kssm.ops.kssm_scan.kernel_launch import Scan, exact
from kssm.ops.tuning import Choice, ShapeClass, tuned

FORWARD = Tuning(ahead=2)
BACKWARD = Tuning()
"""For devices that nothing was measured on, and scans that the CUDA kernels do not do.

Asking for twice as many tokens ahead takes the compiler half a minute a kernel instead of eight
seconds, which is what the first prompt in fp32 then waits for.
"""

FORWARD_NAME = "kssm_scan.forward"
BACKWARD_NAME = "kssm_scan.backward"
"""The passes in the tuning file."""

_ENOUGH = 4
"""Rows are walked in one go if there are so many programs a multiprocessor."""

AnyTuning = Tuning | RingTuning | TileTuning
Tunings = tuple[AnyTuning, Tuning | RingTuning]
"""Of the forward and of the backward pass."""


def choose(scan: Scan) -> Tunings:
    """The cuts of the forward and of the backward pass."""
    shape = shape_class(scan)
    forward = tuned(FORWARD_NAME, scan.x.device, shape)
    backward = tuned(BACKWARD_NAME, scan.x.device, shape)
    first = None if forward is None else decode(forward)
    if first is None or (isinstance(first, RingTuning) and not _fill(scan)):
        first = by_rule(scan)
    second = RingTuning() if backward is None else decode(backward)
    assert not isinstance(second, TileTuning)
    return first, second


def possible(scan: Scan, tunings: Tunings) -> Tunings:
    """The tunings, without the CUDA kernels where they cannot do a scan."""
    if fits(scan):
        return tunings
    first = tunings[0] if isinstance(tunings[0], Tuning) else FORWARD
    second = tunings[1] if isinstance(tunings[1], Tuning) else BACKWARD
    return first, second


def by_rule(scan: Scan) -> AnyTuning:
    """The forward pass where nothing was measured."""
    return RingTuning() if _fill(scan) else TileTuning(every=4)


def _fill(scan: Scan) -> bool:
    """Whether rows fill the device without being cut."""
    return scan.rows * scan.x.shape[-1] // 64 >= _ENOUGH * processors(scan.x.device)


def shape_class(scan: Scan) -> ShapeClass:
    """The class of a scan's shape; packed rows count with their mean length."""
    batch, tokens, channels = scan.x.shape
    kind = "32bit" if exact(scan.inputs) else "16bit"
    return ShapeClass.of(kind, scan.rows, batch * tokens // scan.rows, channels)


def encode(tuning: AnyTuning) -> Choice:
    """A tuning as the tuning file keeps it."""
    return asdict(tuning)


def decode(choice: Choice) -> AnyTuning:
    """The tuning of a file's entry."""
    kind = TileTuning if "run" in choice else RingTuning
    if "block_d" in choice:
        kind = Tuning
    return kind(**choice)  # pyright: ignore[reportArgumentType]
