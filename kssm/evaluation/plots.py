"""An evaluation as a picture; needs matplotlib (``kssm[plot]``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kssm.errors import InvalidInputError
from kssm.forecast.distribution import LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = {"direct": "up to the head's horizon", "rolled_out": "rolled out"}


def draw_report(summary: Mapping[str, Any], path: Path) -> None:
    """Draw PIT histograms, coverage by level and skill by horizon of ``report.summarise``.

    Raises ``InvalidInputError`` (``missing_dependency``).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "--plot needs matplotlib: pip install 'kssm[plot]'"
        raise InvalidInputError(message, code="missing_dependency") from error
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    histogram, coverage, horizon = figure.subplots(1, 3)
    _draw_pit(histogram, summary["calibration"])
    _draw_coverage(coverage, summary["calibration"])
    _draw_horizons(horizon, summary["relative_CRPS_by_horizon"])
    figure.savefig(path, dpi=120)


def _draw_pit(axes: Axes, calibration: Mapping[str, Any]) -> None:
    edges = np.linspace(0.0, 1.0, len(LEVELS) + 2)
    for part, name in PARTS.items():
        if calibration[part] is not None:
            axes.stairs(calibration[part]["pit"], edges, label=name, lw=1.5)
    axes.axhline(0.1, color="0.6", lw=0.8, ls="--")
    axes.set(title="PIT histogram", xlabel="forecast probability", ylabel="share of samples")
    axes.set_ylim(bottom=0.0)
    axes.legend(fontsize="small")


def _draw_coverage(axes: Axes, calibration: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls="--")
    for part, name in PARTS.items():
        if calibration[part] is not None:
            axes.plot(LEVELS, calibration[part]["below"], "o-", ms=3, lw=1.2, label=name)
    axes.set(title="coverage", xlabel="level", ylabel="share of samples below")
    axes.legend(fontsize="small")


def _draw_horizons(axes: Axes, buckets: Mapping[str, Mapping[str, float]]) -> None:
    axes.bar(list(buckets), [bucket["CRPS"] for bucket in buckets.values()], color="C0")
    axes.axhline(1.0, color="0.6", lw=0.8, ls="--")
    axes.set(title="CRPS to seasonal naive", xlabel="samples ahead")
    axes.tick_params(axis="x", labelrotation=30)
