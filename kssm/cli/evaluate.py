"""``kssm evaluate``: forecast every evaluation task of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def evaluate(
    tasks: Annotated[Path, typer.Option(help="folder of task files NAME.npz")],
    output: Annotated[Path, typer.Option(help="folder for the forecasts NAME.npz")],
    model: Annotated[str, typer.Option(help="checkpoint name or folder")] = "kssm-signal-base",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "cpu",
    context_length: Annotated[
        int, typer.Option(help="read so many samples before the first window, 0 = all")
    ] = 4096,
    batch_tokens: Annotated[int, typer.Option(help="samples in one pass over the model")] = 65_536,
) -> None:
    """Write OUTPUT/NAME.npz with `quantiles` [windows, 9, horizon] for every task, and score it."""
    import numpy as np
    from rich.progress import track
    from rich.table import Table

    from kssm.device import resolve_device
    from kssm.errors import InvalidInputError
    from kssm.forecast import pretrained
    from kssm.training.evaluation import forecast_task, load_task, score

    console = Console(highlight=False)
    files = sorted(tasks.glob("*.npz"))
    if not files:
        raise InvalidInputError(f"{tasks} holds no task files (*.npz)", code="invalid_task")
    forecaster = pretrained.load(model, resolve_device(device))
    output.mkdir(parents=True, exist_ok=True)
    table = Table("task", "windows", "MASE", "weighted quantile loss", "80% coverage")
    for file in track(files, "forecasting", console=console):
        task = load_task(file)
        quantiles = forecast_task(
            forecaster, task, context_length=context_length or None, batch_tokens=batch_tokens
        )
        np.savez(output / file.name, quantiles=quantiles)
        scores = score(task, quantiles)
        table.add_row(
            task.name,
            str(len(quantiles)),
            f"{scores.mase:.4f}",
            f"{scores.quantile_loss:.4f}",
            f"{scores.coverage:.3f}",
        )
    console.print(table)
