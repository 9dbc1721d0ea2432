"""``kssm forecast``: a column of a CSV file in, its next samples' quantiles out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kssm.cli.outcome import Outcome, new_figure
from kssm.cli.table import Signal, read_signal
from kssm.cli.timeline import future_labels
from kssm.errors import InvalidInputError

DEFAULT_MODEL = "kssm-signal-base"
STAGES = ("reading the file", "loading the model", "forecasting", "writing")


def forecast(
    file: Annotated[Path, typer.Argument(help="A CSV file; empty cells are missing samples.")],
    horizon: Annotated[int, typer.Option(help="How many samples ahead.")],
    column: Annotated[str | None, typer.Option(help="Column to forecast, by its name.")] = None,
    quantiles: Annotated[str, typer.Option(help="Levels, separated by commas.")] = "0.1,0.5,0.9",
    output: Annotated[Path | None, typer.Option(help="CSV file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw, .png or .svg.")] = None,
    model: Annotated[str, typer.Option(help="A shipped model, or a folder.")] = DEFAULT_MODEL,
) -> None:
    """Forecast a column of a CSV file.

    The result goes to --output, to the terminal as a table, or as CSV into a pipe.
    """
    levels = parse_levels(quantiles)
    if horizon < 1:
        raise InvalidInputError("the horizon must be at least 1", code="invalid_horizon")
    figure = None if plot is None else new_figure()
    notes = Console(stderr=True)
    with Stages(notes) as stages:
        stages.next()
        signal = read_signal(file, column)
        outcome = _predict(signal, horizon, levels, model, stages)
        stages.next()
        if output is not None:
            outcome.write_csv(output)
        if plot is not None and figure is not None:
            outcome.draw(figure, plot, signal)
    if column is None and signal.alternatives:
        notes.print(f"forecast {signal.name!r}; --column takes {', '.join(signal.alternatives)}")
    if output is None:
        outcome.show(signal.name)


def parse_levels(text: str) -> tuple[float, ...]:
    """``"0.1,0.5"`` as increasing levels; raises ``InvalidInputError`` (``invalid_quantiles``)."""
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        message = f"quantiles must be numbers separated by commas, not {text!r}"
        raise InvalidInputError(message, code="invalid_quantiles") from error
    inside = all(0 < level < 1 for level in levels)
    if not inside or list(levels) != sorted(set(levels)):
        message = f"quantiles must increase and lie between 0 and 1, not {text!r}"
        raise InvalidInputError(message, code="invalid_quantiles")
    return levels


class Stages(Progress):
    """A progress bar over ``STAGES`` that is gone when the command has ended; on terminals."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn())
        shown = console.is_terminal
        super().__init__(*columns, console=console, transient=True, disable=not shown)
        self._done = 0
        self._task = self.add_task("", total=len(STAGES))

    def next(self) -> None:
        """Show the next stage as the one at work."""
        self.update(self._task, completed=self._done, description=STAGES[self._done])
        self._done += 1


def _predict(
    signal: Signal, horizon: int, levels: tuple[float, ...], model: str, stages: Stages
) -> Outcome:
    from kssm.forecast import Forecaster

    stages.next()
    forecaster = Forecaster.from_pretrained(model)
    stages.next()
    values = np.asarray(signal.values, dtype=np.float64)
    quantiles, mean = forecaster.predict_quantiles([values], horizon, list(levels))
    heading, labels = future_labels(signal.times, horizon)
    return Outcome(heading, labels, levels, mean[0], quantiles[0])
