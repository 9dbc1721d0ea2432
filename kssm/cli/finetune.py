"""``kssm finetune``: adapt a forecaster to one's own series, on a CPU, in minutes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from kssm.training.finetune import FinetuneResult


def finetune(
    data: Annotated[Path, typer.Option(help="CSV or Parquet file, or a folder of them")],
    output: Annotated[Path, typer.Option(help="folder for the fine-tuned checkpoint")],
    checkpoint: Annotated[
        str, typer.Option(help="where to start: a shipped model, or a folder")
    ] = "kssm-signal-base",
    horizon: Annotated[int, typer.Option(help="samples ahead that will be asked for")] = 24,
    column: Annotated[
        str | None, typer.Option(help="column of values, by default every column of numbers")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="long format: column that tells the series apart")
    ] = None,
    timestamp_column: Annotated[
        str | None, typer.Option(help="column to put the rows in order by")
    ] = None,
    minutes: Annotated[float, typer.Option(help="to take at most")] = 4.0,
    holdout: Annotated[
        float, typer.Option(help="share of each series, at its end, kept for the comparison")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="of the pieces that are learned from")] = 0,
) -> None:
    """Train the forecaster on your series, and keep the result where it is better.

    The folder holds a checkpoint for `kssm serve --model` and `kssm forecast --model`, and
    finetune.json with the scores before and after.
    """
    import json

    from kssm.forecast import pretrained
    from kssm.training.adapt import AdaptConfig
    from kssm.training.finetune import FinetuneConfig
    from kssm.training.finetune import finetune as run
    from kssm.training.tables import TableFormat, read_series

    console = Console(highlight=False)
    adapt = AdaptConfig(seed=seed)
    config = FinetuneConfig(horizon=horizon, minutes=minutes, holdout=holdout, adapt=adapt)
    series = read_series(data, TableFormat(column, id_column, timestamp_column))
    model = pretrained.load(checkpoint)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), TimeElapsedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=1.0)
        result = run(
            model,
            series,
            config,
            lambda stage, share: progress.update(task, description=stage, completed=share),
        )
    pretrained.save(model, output)
    record = {"checkpoint": checkpoint, "horizon": horizon, **result.as_dict()}
    (output / "finetune.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _show(console, result, output)


def _show(console: Console, result: FinetuneResult, output: Path) -> None:
    samples = f"{result.samples:,} samples of {result.series} series"
    console.print(f"{samples}, {result.seconds:.0f} s")
    for name, (before, after) in (
        ("validation", result.validation),
        ("hold-out", result.holdout),
    ):
        if not math.isnan(before):
            console.print(f"CRPS on the {name}: {before:.4g} before, {after:.4g} after")
    if result.share:
        console.print(f"{result.share:.0%} of the way to the trained weights")
    elif result.width != 1.0:
        console.print(f"training did not help; intervals {result.width:g} times as wide")
    else:
        console.print("no gain on the validation part: the weights stay as they were")
    console.print(f"kssm serve --model {output}")
