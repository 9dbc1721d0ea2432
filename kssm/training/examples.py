"""Forecasting situations of given series: what the backbone says there, and what came after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kssm.forecast import scaler
from kssm.forecast.batch import batches
from kssm.models import State
from kssm.training.hidden import HiddenReader

Floats = NDArray[np.float64]
Origins = NDArray[np.int64]

_BATCH_ROWS, _BATCH_TOKENS = 256, 65_536


@dataclass(frozen=True)
class Examples:
    """N readings of the head.

    hidden: [N, d_model] float32; last: [N] float32, the last visible value, normalised;
    location, scale: [N] float64 of the scaler; future: [N, K] float64, what the K samples after the
    reading were, NaN = unknown or not asked for; row, position: [N] int64, the series and the
    number of its samples before the first of those.
    """

    hidden: Tensor
    last: Tensor
    location: Tensor
    scale: Tensor
    future: Tensor
    row: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(*(getattr(self, item.name)[rows] for item in fields(self)))

    def until(self, ends: Tensor) -> Self:
        """What of it would be there had every series ended after ``ends`` [series] samples."""
        room = ends[self.row] - self.position
        ahead = torch.arange(self.future.shape[1])
        known = replace(self, future=self.future.masked_fill(ahead >= room[:, None], torch.nan))
        return known[room > 0]

    @classmethod
    def join(cls, parts: Sequence[Examples]) -> Examples:
        columns = ([getattr(part, item.name) for part in parts] for item in fields(cls))
        return cls(*(torch.cat(column) for column in columns))


def collect(
    reader: HiddenReader,
    series: Sequence[Floats],
    origins: Sequence[Origins],
    horizon: int,
    head_horizon: int,
) -> Examples:
    """Stream every series and read the head at its origins.

    Args:
        reader: of the model that is to be fine-tuned.
        series: float64, NaN = missing.
        origins: for each series the increasing numbers of samples after which to forecast.
        horizon: samples ahead that are asked for; beyond the head's own horizon each origin gives
            one example a block of that length, read after missing samples as in a roll-out.
        head_horizon: K.
    """
    wanted = [row for row, cuts in enumerate(origins) if len(cuts)]
    parts: list[Examples] = []
    for group in _groups([int(origins[row][-1]) for row in wanted]):
        rows = [wanted[place] for place in group]
        chosen = [series[row] for row in rows]
        found = _stream(reader, chosen, [origins[row] for row in rows], horizon, head_horizon)
        parts += [replace(part, row=torch.tensor(rows)[part.row]) for part in found]
    return Examples.join(parts)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    groups = batches(lengths, _BATCH_TOKENS)
    return [g[i : i + _BATCH_ROWS] for g in groups for i in range(0, len(g), _BATCH_ROWS)]


def _stream(
    reader: HiddenReader,
    series: Sequence[Floats],
    origins: Sequence[Origins],
    horizon: int,
    head_horizon: int,
) -> list[Examples]:
    """All examples of a few series that are read side by side."""
    state = reader.initial_state(len(series))
    parts: list[Examples] = []
    for number in range(max(map(len, origins))):
        edges = [cuts[max(0, number - 1) : number + 1] for cuts in origins]
        if number == 0:
            edges = [np.concatenate([[0], edge]) for edge in edges]
        new = [x[e[0] : e[1]] if len(e) == 2 else x[:0] for x, e in zip(series, edges, strict=True)]
        state = reader.read(*_padded(new, state))
        live = [row for row, cuts in enumerate(origins) if number < len(cuts)]
        cuts = [int(origins[row][number]) for row in live]
        future = _futures([series[row] for row in live], cuts, horizon, head_horizon)
        # Without a roll-out two small entries are all that is looked at.
        names = state if future.shape[1] > 1 else ("scaler", "forecast")
        here = {name: state[name][live] for name in names}
        parts += _read(reader, here, future, torch.tensor(live), torch.tensor(cuts))
    return parts


def _padded(parts: Sequence[Floats], state: State) -> tuple[Tensor, State, Tensor]:
    lengths = torch.tensor([len(part) for part in parts])
    values = torch.full((len(parts), int(lengths.max())), torch.nan, dtype=torch.float64)
    for row, part in enumerate(parts):
        values[row, : len(part)] = torch.from_numpy(part)
    return values, state, lengths


def _futures(
    series: Sequence[Floats], cuts: Sequence[int], horizon: int, head_horizon: int
) -> Tensor:
    """[rows, blocks, K] float64 of what follows each cut, NaN past the horizon and the end."""
    blocks = -(-horizon // head_horizon)
    future = torch.full((len(series), blocks * head_horizon), torch.nan, dtype=torch.float64)
    for row, (values, cut) in enumerate(zip(series, cuts, strict=True)):
        known = torch.from_numpy(values[cut : cut + horizon])
        future[row, : len(known)] = known
    return future.unflatten(1, (blocks, head_horizon))


def _read(
    reader: HiddenReader, state: State, future: Tensor, row: Tensor, cut: Tensor
) -> list[Examples]:
    """One example for each row and block."""
    stats = state["scaler"]
    location, scale = scaler.location_and_scale(stats)
    last = scaler.normalise(stats[:, 5], stats).float()
    readings = reader.blind(state, future.shape[1])
    return [
        Examples(
            hidden=hidden.clone(),
            last=last,
            location=location,
            scale=scale,
            future=future[:, block],
            row=row,
            position=cut + block * future.shape[-1],
        )
        for block, hidden in enumerate(readings)
    ]
