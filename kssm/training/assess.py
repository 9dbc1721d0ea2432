"""How well a forecaster does on chosen windows of given series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kssm.evaluation.scores import quantile_loss
from kssm.forecast.batch import batches, consume
from kssm.forecast.distribution import LEVELS
from kssm.forecast.forecaster import SignalForecaster
from kssm.models import State

Floats = NDArray[np.float64]
Origins = NDArray[np.int64]

_BATCH_TOKENS = 65_536


@dataclass(frozen=True)
class Windows:
    """Forecasting situations of given series.

    Attributes:
        series: float64, NaN = missing.
        origins: for each the increasing numbers of samples after which to forecast.
        horizon: samples ahead.
    """

    series: Sequence[Floats]
    origins: Sequence[Origins]
    horizon: int

    def __len__(self) -> int:
        return sum(map(len, self.origins))

    @property
    def samples(self) -> int:
        """What has to be read for all of them."""
        return sum(int(cuts[-1]) for cuts in self.origins if len(cuts))

    def truth(self) -> Floats:
        """[windows, horizon], NaN past the series' end."""
        found = np.full((len(self), self.horizon), np.nan)
        places = (
            (x, cut) for x, cuts in zip(self.series, self.origins, strict=True) for cut in cuts
        )
        for row, (values, cut) in enumerate(places):
            known = values[cut : cut + self.horizon]
            found[row, : len(known)] = known
        return found


def crps(model: SignalForecaster, windows: Windows) -> float:
    """Mean weighted quantile loss of the model's forecasts: pinball loss (times 2, mean over the
    levels) summed over all windows, by the sum of the magnitudes forecast. NaN if all are 0."""
    truth = windows.truth()
    size = float(np.abs(truth[np.isfinite(truth)]).sum())
    loss = float(quantile_loss(truth, forecasts(model, windows)).sum())
    return loss / size if size else float("nan")


def forecasts(model: SignalForecaster, windows: Windows) -> NDArray[np.float32]:
    """Quantiles [windows, 9, horizon], series by series, each window after its whole past."""
    out = np.zeros((len(windows), len(LEVELS), windows.horizon), dtype=np.float32)
    starts = np.cumsum([0, *map(len, windows.origins)])
    rows = [row for row, cuts in enumerate(windows.origins) if len(cuts)]
    for group in batches([int(windows.origins[row][-1]) for row in rows], _BATCH_TOKENS):
        chosen = [rows[place] for place in group]
        for number, (live, quantiles) in enumerate(_along(model, windows, chosen)):
            places = [starts[chosen[i]] + number for i in live]
            out[places] = np.nan_to_num(quantiles).transpose(0, 2, 1)
    return out


def _along(
    model: SignalForecaster, windows: Windows, rows: Sequence[int]
) -> Iterator[tuple[list[int], Floats]]:
    """Read series side by side; for their first, second, ... windows those that have one (as
    places in ``rows``) and the quantiles [those, horizon, 9]."""
    state: State | None = None
    edges = [np.concatenate([[0], windows.origins[row]]) for row in rows]
    for number in range(max(map(len, edges)) - 1):
        live = [i for i, edge in enumerate(edges) if number + 1 < len(edge)]
        new = [
            windows.series[row][edge[number] : edge[number + 1]] if i in live else np.empty(0)
            for i, (row, edge) in enumerate(zip(rows, edges, strict=True))
        ]
        state = consume(model, new, _BATCH_TOKENS, state)
        here = {name: entry[live] for name, entry in state.items()}
        yield live, model.forecast(here, windows.horizon, LEVELS).numpy()
