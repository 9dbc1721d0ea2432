"""AudioStream: live sound in the library, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kssm.audio import pretrained
from kssm.audio.forecaster import AudioForecaster
from kssm.device import resolve_device
from kssm.errors import InvalidInputError
from kssm.forecast.batch import as_numbers, check_range

Floats = NDArray[np.float64]


class AudioStream:
    """Some channels of one live sound; its state does not grow, however long it runs.

    ``push`` what arrived, read a ``forecast`` at any time, and ``conceal`` what did not arrive.
    Samples have the model's rate (``sample_rate``) and any scale.
    """

    def __init__(self, model: AudioForecaster, channels: int = 1) -> None:
        if channels < 1:
            raise InvalidInputError("a stream needs at least one channel", code="wrong_shape")
        self._model = model
        self._state = model.initial_state(channels)
        self.channels = channels

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = pretrained.DEFAULT,
        device: str | torch.device = "cpu",
        *,
        channels: int = 1,
    ) -> AudioStream:
        """A stream of a shipped checkpoint, or of a folder's.

        Raises as ``pretrained.load`` does, and ``invalid_device``.
        """
        where = resolve_device(device) if isinstance(device, str) else device
        return cls(pretrained.load(name_or_path, where), channels)

    @property
    def sample_rate(self) -> int:
        """Samples a second that the model was trained for."""
        return self._model.config.sample_rate

    def push(self, samples: ArrayLike) -> Floats:
        """Take in samples; returns how surprising each was, in the shape given.

        Args:
            samples: [channels, n], or [n] for a single channel; NaN = missing (concealed from
                within: the stream goes on as if the forecast had arrived).

        Returns:
            Two-sided tail probabilities under the forecast made from all samples before; NaN for
            missing samples and the first one.

        Raises:
            InvalidInputError: ``wrong_dtype``, ``wrong_shape``, ``non_finite_value``,
                ``value_out_of_range``; the stream is as it was.
        """
        block = as_numbers(samples)
        rows = block[None] if block.ndim == 1 else block
        if rows.ndim != 2 or rows.shape[0] != self.channels:
            raise InvalidInputError(f"expected [{self.channels}, n] samples", code="wrong_shape")
        check_range(rows)
        if rows.shape[1] == 0:
            return np.empty_like(block)
        values = torch.from_numpy(np.ascontiguousarray(rows)).to(self._model.device)
        output = self._model.prefill(values, self._state)
        self._state = output.state
        return output.tail.cpu().numpy().reshape(block.shape)

    def forecast(self, count: int = 160, levels: Sequence[float] = (0.1, 0.5, 0.9)) -> Floats:
        """Quantiles of the next samples [channels, count, len(levels)].

        NaN before the first sample. Raises ``invalid_horizon``, ``invalid_quantiles``.
        """
        return self._model.forecast(self._state, count, levels).cpu().numpy()

    def conceal(self, count: int) -> Floats:
        """What to play for ``count`` lost samples [channels, count]; the stream goes on after them.

        These are the means of the forecast, which fade where nothing can be foreseen; silence
        before the first sample. Later samples are pushed as they come.
        """
        if count < 1:
            raise InvalidInputError("count must be at least 1", code="invalid_horizon")
        filling = np.nan_to_num(self.forecast(count, (0.5,))[:, :, 0])
        self.push(np.full((self.channels, count), np.nan).reshape(self.channels, count))
        return filling
