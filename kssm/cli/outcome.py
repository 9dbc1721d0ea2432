"""A forecast as the command line shows it: a table, a CSV file or a picture."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from kssm.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from kssm.cli.table import Signal

SHOWN_ROWS = 48  # of a table on a terminal
DRAWN_HISTORY = 4  # horizons of history in a picture, and at least:
LEAST_HISTORY = 128


@dataclass(frozen=True)
class Outcome:
    """One label a step, ``mean`` [H] and ``quantiles`` [H, Q] at the increasing ``levels``."""

    heading: str
    labels: list[str]
    levels: tuple[float, ...]
    mean: NDArray[np.float64]
    quantiles: NDArray[np.float64]

    def header(self) -> list[str]:
        """The names of the cells of ``rows``."""
        return [self.heading, "mean", *(f"{level:g}" for level in self.levels)]

    def rows(self, style: str) -> list[list[str]]:
        """One row a step, its numbers formatted by ``style``."""
        numbers = np.column_stack([self.mean, self.quantiles]).tolist()
        return [
            [label, *(format(number, style) for number in row)]
            for label, row in zip(self.labels, numbers, strict=True)
        ]

    def write_csv(self, path: Path) -> None:
        """Write ``header`` and ``rows``; raises ``InvalidInputError`` (``cannot_write``)."""
        try:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([self.header(), *self.rows(".9g")])
        except OSError as error:
            raise _unwritable(path, error) from error

    def show(self, title: str) -> None:
        """Print a table on a terminal, CSV into a pipe."""
        if not sys.stdout.isatty():
            csv.writer(sys.stdout).writerows([self.header(), *self.rows(".9g")])
            return
        table = Table(title=title, title_justify="left")
        for name in self.header():
            table.add_column(name, justify="right")
        rows = self.rows(".5g")
        for row in rows[:SHOWN_ROWS]:
            table.add_row(*row)
        hidden = len(rows) - SHOWN_ROWS
        table.caption = f"{hidden} more: use --output" if hidden > 0 else None
        Console().print(table)

    def draw(self, figure: Figure, path: Path, signal: Signal) -> None:
        """Draw the end of the history and the forecast's bands into ``path``.

        Raises ``InvalidInputError`` (``cannot_write``).
        """
        self._draw_on(figure.add_subplot(), signal)
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:
            raise _unwritable(path, error) from error

    def _draw_on(self, axes: Axes, signal: Signal) -> None:
        history = np.asarray(signal.values)[-max(LEAST_HISTORY, DRAWN_HISTORY * len(self.mean)) :]
        ahead = np.arange(1, len(self.mean) + 1)
        axes.plot(np.arange(1 - len(history), 1), history, color="0.3", lw=1, label=signal.name)
        for low in range(len(self.levels) // 2):
            high = len(self.levels) - 1 - low
            name = f"{self.levels[low]:g} to {self.levels[high]:g}"
            bounds = self.quantiles[:, low], self.quantiles[:, high]
            axes.fill_between(ahead, *bounds, color="C0", alpha=0.25, lw=0, label=name)
        axes.plot(ahead, self.mean, color="C0", lw=1.5, label="mean")
        axes.axvline(0, color="0.7", lw=0.8)
        axes.set_xlabel("samples from now")
        axes.legend(loc="upper left", edgecolor="none", framealpha=0.8)


def new_figure() -> Figure:
    """An empty picture; raises ``InvalidInputError`` (``missing_dependency``)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "--plot needs matplotlib: pip install 'kssm[plot]'"
        raise InvalidInputError(message, code="missing_dependency") from error
    return Figure(figsize=(10, 4), layout="constrained")


def _unwritable(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"cannot write {path}: {error}", code="cannot_write")
