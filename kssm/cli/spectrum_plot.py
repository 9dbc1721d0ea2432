"""The picture of ``kssm inspect --plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kssm.cli.outcome import new_figure
from kssm.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kssm.models.spectrum import Spectrum

LONGEST = 1e7
"""Time constants beyond this many tokens are drawn here."""


def draw(spectra: Sequence[Spectrum], title: str, path: Path) -> None:
    """Draw every mode's time constant and frequency, layer by layer, into ``path``.

    Raises ``InvalidInputError`` (``missing_dependency``, ``cannot_write``).
    """
    figure = new_figure()
    constants, frequencies = figure.subplots(1, 2)
    for index, layer in enumerate(spectra):
        # Modes side by side in a layer's column; which is where means nothing.
        places = index + np.linspace(-0.35, 0.35, max(len(layer.angle), 1))[: len(layer.angle)]
        lasting = layer.time_constants.clamp(max=LONGEST).numpy()
        constants.plot(places, lasting, ".", ms=2, alpha=0.6, color="C0")
        frequencies.plot(places, layer.angle.numpy(), ".", ms=2, alpha=0.6, color="C1")
        if layer.window is not None:
            constants.plot([index - 0.35, index + 0.35], [layer.window] * 2, lw=2, color="C2")
    _label(constants, "time constant (tokens; green: window)")
    constants.set_yscale("log")
    _label(frequencies, "frequency (cycles a token)")
    frequencies.set_yscale("symlog", linthresh=1e-4)
    frequencies.set_ylim(-1e-5, 0.6)
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"cannot write {path}: {error}", code="cannot_write") from error


def _label(axes: Axes, name: str) -> None:
    axes.set_xlabel("layer")
    axes.set_ylabel(name)
