"""Forecasting evaluation tasks: flat ``.npz`` files with rolling test windows.

A task file holds ``values`` (flat float32, NaN = missing), ``offsets`` (series i is
``values[offsets[i]:offsets[i + 1]]``), ``prediction_length``, ``windows`` and optionally ``season``
and ``name``. The last ``windows * prediction_length`` values of every series are its test windows,
oldest first; windows are ordered series by series.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kssm.errors import InvalidInputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """One evaluation task."""

    name: str
    prediction_length: int
    windows: int
    season: int
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def series(self) -> Iterator[NDArray[np.float32]]:
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.values[start:stop]

    def contexts(self) -> list[NDArray[np.float32]]:
        """What is known before each window, in window order."""
        return [series[:cut] for series in self.series() for cut in self.cuts(len(series))]

    def targets(self) -> Floats:
        """[n_windows, prediction_length], NaN = unknown."""
        horizon = self.prediction_length
        cut = [s[c : c + horizon] for s in self.series() for c in self.cuts(len(s))]
        return np.stack(cut).astype(np.float64)

    def cuts(self, length: int) -> list[int]:
        """Length of the history before each window of a series, oldest window first."""
        first = length - self.windows * self.prediction_length
        return [first + i * self.prediction_length for i in range(self.windows)]

    def parts(self, context_length: int | None) -> list[list[Floats]]:
        """What is newly known before each window of each series: history, then windows passed by.

        ``context_length`` bounds the history before the first window, None = all of it.
        """
        return [self._parts(values.astype(np.float64), context_length) for values in self.series()]

    def _parts(self, values: Floats, context_length: int | None) -> list[Floats]:
        cuts = self.cuts(len(values))
        edges = [max(0, cuts[0] - (context_length or cuts[0])), *cuts]
        return [values[a:b] for a, b in itertools.pairwise(edges)]

    def sample(self, series: int, seed: int = 0) -> Task:
        """This task with ``series`` of its series, drawn without replacement."""
        count = len(self.offsets) - 1
        if series >= count:
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(count, series, replace=False))
        kept = [self.values[self.offsets[i] : self.offsets[i + 1]] for i in chosen]
        offsets = np.cumsum([0, *map(len, kept)]).astype(np.int64)
        return replace(self, values=np.concatenate(kept), offsets=offsets)


def load_task(path: str | Path) -> Task:
    """Read a task file; raises ``invalid_task`` naming what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as data:
            task = Task(
                name=str(data["name"]) if "name" in data else Path(path).stem,
                prediction_length=int(data["prediction_length"]),
                windows=int(data["windows"]),
                season=int(data["season"]) if "season" in data else 1,
                values=np.asarray(data["values"], dtype=np.float32),
                offsets=np.asarray(data["offsets"], dtype=np.int64),
            )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{path}: not an evaluation task: {error}", "invalid_task"
        ) from error
    needed = task.windows * task.prediction_length
    if len(task.offsets) < 2 or int(np.diff(task.offsets).min()) <= needed:
        raise InvalidInputError(f"{path}: a series is shorter than its windows", "invalid_task")
    return task


def task_files(folder: str | Path) -> list[Path]:
    """The task files of a folder, by name; raises ``invalid_task`` when there are none."""
    files = sorted(Path(folder).glob("*.npz"))
    if not files:
        raise InvalidInputError(f"{folder} holds no task files (*.npz)", code="invalid_task")
    return files
