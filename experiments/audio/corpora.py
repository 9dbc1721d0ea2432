"""The recordings: Free Spoken Digit Dataset by speaker, and voices of a speech synthesiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SPEAKERS: Final = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
HELD_OUT: Final = ("lucas", "theo")
"""Speakers that training never hears."""
_TAKES: Final = 6


def spoken_digits(file: Path, speakers: Sequence[str]) -> list[Floats]:
    """Recordings at 8 kHz of some speakers.

    ``file`` holds ``values`` and ``offsets`` of ten digits in order, of each the six speakers in
    order, and of each six takes.
    """
    with np.load(file, allow_pickle=False) as archive:
        series = np.split(archive["values"].astype(np.float32), archive["offsets"][1:-1])
    return [x for i, x in enumerate(series) if SPEAKERS[i // _TAKES % len(SPEAKERS)] in speakers]


def synthesised(file: Path) -> list[Floats]:
    """Utterances that ``python -m experiments.audio.synthesise`` wrote: mu-law, 8 kHz."""
    with np.load(file, allow_pickle=False) as archive:
        return np.split(from_mu_law(archive["codes"]), archive["offsets"][1:-1])


def to_mu_law(x: Floats) -> NDArray[np.uint8]:
    """Samples within -1 ... 1 in eight bits, fine near zero and coarse far from it (mu = 255)."""
    curved = np.sign(x) * np.log1p(255.0 * np.abs(x).clip(max=1.0)) / np.log(256.0)
    return np.round((curved + 1.0) * 127.5).astype(np.uint8)


def from_mu_law(codes: NDArray[np.uint8]) -> Floats:
    """Inverse of ``to_mu_law``."""
    curved = codes.astype(np.float64) / 127.5 - 1.0
    return (np.sign(curved) * np.expm1(np.abs(curved) * np.log(256.0)) / 255.0).astype(np.float32)
