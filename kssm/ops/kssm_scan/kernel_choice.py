"""Which cut a scan gets: the autotuner's for its device and shape, else one by rule."""

from __future__ import annotations

from dataclasses import asdict

from kssm.ops.kssm_scan.kernel_cut import TileTuning, Tuning
from kssm.ops.kssm_scan.kernel_launch import Scan, exact
from kssm.ops.tuning import Choice, ShapeClass, tuned

FORWARD = Tuning(ahead=4)
BACKWARD = Tuning()
"""The rule, for devices that nothing was measured on."""

FORWARD_NAME = "kssm_scan.forward"
BACKWARD_NAME = "kssm_scan.backward"
"""The passes in the tuning file."""


def choose(scan: Scan) -> tuple[Tuning | TileTuning, Tuning]:
    """The cuts of the forward and of the backward pass."""
    shape = shape_class(scan)
    forward = tuned(FORWARD_NAME, scan.x.device, shape)
    backward = tuned(BACKWARD_NAME, scan.x.device, shape)
    first = FORWARD if forward is None else decode(forward)
    second = BACKWARD if backward is None else decode(backward)
    assert isinstance(second, Tuning)
    return first, second


def shape_class(scan: Scan) -> ShapeClass:
    """The class of a scan's shape; packed rows count with their mean length."""
    batch, tokens, channels = scan.x.shape
    kind = "32bit" if exact(scan.inputs) else "16bit"
    return ShapeClass.of(kind, scan.rows, batch * tokens // scan.rows, channels)


def encode(tuning: Tuning | TileTuning) -> Choice:
    """A tuning as the tuning file keeps it."""
    return asdict(tuning)


def decode(choice: Choice) -> Tuning | TileTuning:
    """The tuning of a file's entry."""
    kind = TileTuning if "rows" in choice else Tuning
    return kind(**choice)  # pyright: ignore[reportArgumentType]
