"""``kssm evaluate``: forecast and score every evaluation task of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kssm.evaluation.report import TaskReport
    from kssm.evaluation.tasks import Task
    from kssm.forecast.forecaster import SignalForecaster

    Forecast = Callable[[Task], NDArray[np.float32]]

COLUMNS = ("windows", "MASE", "CRPS", "rel. MASE", "rel. CRPS", "direct", "rolled out")


class Mode(StrEnum):
    """How histories are read."""

    PREFILL = "prefill"
    STREAM = "stream"


def evaluate(
    tasks: Annotated[Path, typer.Option(help="folder of task files NAME.npz")],
    output: Annotated[Path, typer.Option(help="folder for report.json and the forecasts")],
    model: Annotated[str, typer.Option(help="checkpoint name or folder")] = "kssm-signal-base",
    weights: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or int8 (default: as stored)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "cpu",
    mode: Annotated[
        Mode, typer.Option(help="read histories whole, or frame by frame through the engine")
    ] = Mode.PREFILL,
    context_length: Annotated[
        int, typer.Option(help="read so many samples before the first window, 0 = all")
    ] = 16_384,
    batch_tokens: Annotated[
        int, typer.Option(help="samples in one pass over the model (prefill)")
    ] = 65_536,
    max_series: Annotated[
        int, typer.Option(help="at most so many series of a task, drawn at random, 0 = all")
    ] = 0,
    plot: Annotated[bool, typer.Option(help="draw calibration.png too")] = False,
) -> None:
    """Write OUTPUT/NAME.npz with `quantiles` [windows, 9, horizon] for every task, and
    OUTPUT/report.json with scores relative to seasonal naive, coverage, PIT histograms and skill
    by horizon."""
    from kssm.device import resolve_device
    from kssm.evaluation.report import summarise
    from kssm.evaluation.tasks import task_files
    from kssm.forecast import pretrained
    from kssm.quantization import format_of, parse_format

    console = Console(highlight=False)
    files = task_files(tasks)
    chosen = None if weights is None else parse_format(weights)
    forecaster = pretrained.load(model, resolve_device(device), weights=chosen)
    output.mkdir(parents=True, exist_ok=True)
    with _forecasts(forecaster, mode, context_length or None, batch_tokens) as forecast:
        hidden = not console.is_terminal
        shown = track(files, f"forecasting ({mode})", console=console, disable=hidden)
        horizon = forecaster.config.head_horizon
        reports = [_run(file, forecast, output, horizon, max_series) for file in shown]
    setting = {
        "model": model,
        "fingerprint": forecaster.fingerprint,
        "weights": format_of(forecaster),
        "device": device,
        "mode": str(mode),
        "context_length": context_length,
        "max_series": max_series,
    }
    _write(setting | summarise(reports), output, console, plot)


def _run(
    file: Path, forecast: Forecast, output: Path, head_horizon: int, max_series: int
) -> TaskReport:
    """Forecast a task, keep the forecasts, and score them."""
    import numpy as np

    from kssm.evaluation.report import report_task
    from kssm.evaluation.tasks import load_task

    task = load_task(file)
    task = task.sample(max_series) if max_series else task
    quantiles = forecast(task)
    np.savez(output / file.name, quantiles=quantiles)
    return report_task(task, quantiles, head_horizon)


def _write(summary: dict[str, Any], output: Path, console: Console, plot: bool) -> None:
    (output / "report.json").write_text(json.dumps(summary, indent=1) + "\n")
    if plot:
        from kssm.evaluation.plots import draw_report

        draw_report(summary, output / "calibration.png")
    _show(console, summary)


@contextmanager
def _forecasts(
    model: SignalForecaster, mode: Mode, context_length: int | None, batch_tokens: int
) -> Generator[Forecast]:
    """The function that forecasts a task in this mode."""
    from kssm.evaluation.forecasts import forecast_task, stream_task
    from kssm.runtime import Engine

    if mode is Mode.PREFILL:
        yield lambda task: forecast_task(
            model, task, context_length=context_length, batch_tokens=batch_tokens
        )
        return
    with Engine(model, device=model.device) as engine:
        yield lambda task: stream_task(engine, task, context_length=context_length)


def _show(console: Console, summary: dict[str, Any]) -> None:
    """Scores of every task, their geometric mean, and the pooled coverage."""
    table = Table("task", *(Column(name, justify="right") for name in COLUMNS))
    for name, task in summary["tasks"].items():
        scores = [task[key] for key in ("MASE", "CRPS", "relative_MASE", "relative_CRPS")]
        coverage = [_coverage(task[part]) for part in ("direct", "rolled_out")]
        table.add_row(name, str(task["windows"]), *(f"{value:.3f}" for value in scores), *coverage)
    mean = summary["geometric_mean"]
    pooled = [_coverage(part) for part in summary["calibration"].values()]
    table.add_section()
    table.add_row("mean", "", "", "", f"{mean['MASE']:.3f}", f"{mean['CRPS']:.3f}", *pooled)
    table.caption = "relative to seasonal naive (geometric mean); share inside the 80% interval"
    console.print(table)


def _coverage(calibration: dict[str, Any] | None) -> str:
    return "–" if calibration is None else f"{calibration['coverage_80']:.3f}"
