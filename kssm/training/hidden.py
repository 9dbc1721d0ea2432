"""Hidden states of a forecaster's backbone along series, at the speed of its compiled prefill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kssm.forecast.distribution import LEVELS, MEDIAN
from kssm.forecast.forecaster import SignalForecaster
from kssm.models import State

_SHUT = -60.0  # a gate's logit that lets nothing through


class HiddenReader:
    """Reads what the backbone hands to the head.

    The compiled code keeps hidden states to itself and gives forecasts. So the reader runs a copy
    of the model whose head passes its input on: ``silu(x) - silu(-x) = x`` makes it the identity,
    and the median of "horizon" i is the hidden state's element i.
    """

    def __init__(self, model: SignalForecaster) -> None:
        self._probe = _with_open_head(model)
        self._horizon = model.config.head_horizon

    def initial_state(self, rows: int) -> State:
        """State of rows that have seen nothing; only this reader's own states fit it."""
        return self._probe.initial_state(rows)

    def read(self, values: Tensor, state: State, lengths: Tensor | None = None) -> State:
        """The state after ``values`` [B, T] (NaN = missing), of which ``lengths`` [B] are valid."""
        return self._probe.prefill(values, state, lengths).state

    def hidden(self, state: State) -> Tensor:
        """[B, d_model], what the head sees after the last sample."""
        return state["forecast"][..., MEDIAN]

    def blind(self, state: State, reads: int) -> Iterator[Tensor]:
        """[B, d_model] as a forecast beyond the head's horizon K reads it: now, and after each of
        ``reads - 1`` times K missing samples."""
        yield self.hidden(state)
        missing = torch.full((len(state["scaler"]), self._horizon), torch.nan, dtype=torch.float64)
        for _ in range(reads - 1):
            state = self.read(missing, state)
            yield self.hidden(state)


def _with_open_head(model: SignalForecaster) -> SignalForecaster:
    width = model.config.backbone.d_model
    config = replace(model.config, head_horizon=width, head_hidden=2 * width)
    probe = SignalForecaster(config)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    probe.load_state_dict(weights, strict=False)
    one = torch.eye(width)
    outputs = torch.zeros(width, len(LEVELS) + 1, 2 * width)
    outputs[:, 0] = torch.cat([one, -one], dim=1)
    bias = torch.zeros(width, len(LEVELS) + 1)
    bias[:, 1] = _SHUT
    with torch.no_grad():
        probe.head.hidden.weight.copy_(torch.cat([one, -one]))
        probe.head.out.weight.copy_(outputs.flatten(0, 1))
        probe.head.bias.copy_(bias.flatten())
    return probe.eval().requires_grad_(False)
