"""Stream: the O(1) path of the library, for use without a server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kssm.errors import InvalidInputError
from kssm.forecast.anomaly import Alarm, AnomalyMonitor, score_from_tail
from kssm.forecast.batch import as_numbers, check_range
from kssm.forecast.forecaster import SignalForecaster
from kssm.forecast.gaps import bridge, thin


class Stream:
    """Some channels of one live signal; each ``push`` costs the same however long it has run."""

    def __init__(self, model: SignalForecaster, channels: int = 1) -> None:
        if channels < 1:
            raise InvalidInputError("a stream needs at least one channel", code="wrong_shape")
        self._model = model
        self._slots = torch.arange(1, channels + 1, device=model.device)
        self._arena = model.initial_state(channels + 1)
        self._elapsed = 0.0
        self._monitor = AnomalyMonitor(channels)
        self.channels = channels
        self.alarm = _no_alarm(channels)
        """Calibrated probability and sustained surprise of the last samples, each [channels]."""

    def push(self, values: ArrayLike, dt: float = 1.0) -> NDArray[np.float64]:
        """Take one sample a channel (NaN = missing); returns its anomaly scores [channels].

        A score is -log10 of the sample's calibrated tail probability (``alarm.probability``).

        Args:
            values: [channels], or a number for a single channel.
            dt: time since the previous sample in nominal intervals; longer gaps are bridged with
                missing samples, and of samples that come faster about one an interval is read
                (``gaps``): the others change nothing and have no scores.

        Raises:
            InvalidInputError: ``wrong_dtype``, ``wrong_shape``, ``non_finite_value``,
                ``value_out_of_range``, ``invalid_timestamps``; the stream is as it was.
        """
        sample = np.atleast_1d(as_numbers(values))
        if sample.shape != (self.channels,):
            raise InvalidInputError(f"expected {self.channels} values", code="wrong_shape")
        check_range(sample)
        if not 0 < dt < float("inf"):
            raise InvalidInputError("dt must be positive and finite", code="invalid_timestamps")
        self.alarm = _no_alarm(self.channels)
        read, steps, self._elapsed = thin(np.array([dt]), self._elapsed)
        for token, step in zip(*bridge(sample[None][read], steps), strict=True):
            self.alarm = self._step(token, step)
        return score_from_tail(self.alarm.probability)

    def _step(self, token: NDArray[np.float64], step: float) -> Alarm:
        device = self._model.device
        steps = torch.full((self.channels,), step, dtype=torch.float64, device=device)
        x = torch.from_numpy(token).to(device)
        tail = self._model.step_(x, self._arena, self._slots, steps).tail.cpu().numpy()
        return self._monitor.update(token, tail)

    def forecast(
        self, horizon: int = 24, levels: Sequence[float] = (0.1, 0.5, 0.9)
    ) -> NDArray[np.float64]:
        """Quantiles of the next samples [channels, horizon, len(levels)]."""
        names = self._model.forecast_entries(horizon)
        rows = {name: self._arena[name][self._slots] for name in names}
        return self._model.forecast(rows, horizon, levels).cpu().numpy()


def _no_alarm(channels: int) -> Alarm:
    return Alarm(np.full(channels, np.nan), np.full(channels, np.nan))
