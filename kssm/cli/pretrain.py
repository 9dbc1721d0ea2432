"""``kssm pretrain``: train a forecaster from a TOML configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    import torch

    from kssm.evaluation.tasks import Task


def pretrain(
    config: Annotated[Path, typer.Argument(help="TOML file with the run's configuration")],
    output: Annotated[Path, typer.Option(help="folder for checkpoint, curve and resume state")],
    corpus: Annotated[Path | None, typer.Option(help="folder of real series to mix in")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "cuda",
    devices: Annotated[int, typer.Option(help="ranks to train on with DDP", min=1)] = 1,
    seconds: Annotated[
        float, typer.Option(help="length of the run instead of the configuration's")
    ] = 0.0,
    slice_seconds: Annotated[
        float, typer.Option(help="stop resumably after this many seconds, 0 = run to the end")
    ] = 0.0,
    init: Annotated[
        str | None, typer.Option(help="start from a checkpoint's weights (name or folder)")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="write TensorBoard events too")] = False,
    tasks: Annotated[
        Path | None, typer.Option(help="evaluation tasks, scored when the run is complete")
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="recorded in run.json, by default the working tree's")
    ] = None,
) -> None:
    """Train (or go on training) a forecaster; a second call with the same output resumes."""
    from dataclasses import replace

    from kssm.device import resolve_device
    from kssm.training.config import load_config
    from kssm.training.fabric import make_fabric
    from kssm.training.pretrain import Trainer
    from kssm.training.scoring import load_tasks

    console = Console(highlight=False)
    settings = load_config(config)
    scored = None if tasks is None else load_tasks(tasks)
    run = replace(
        settings.run,
        seconds=seconds or settings.run.seconds,
        slice_seconds=slice_seconds or settings.run.slice_seconds,
        init=settings.run.init if init is None else init,
        tensorboard=tensorboard or settings.run.tensorboard,
    )
    fabric = make_fabric(run, output, resolve_device(device), devices)
    fabric.launch()
    trainer = Trainer(replace(settings, run=run), output, fabric, corpus, commit)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    resumed = trainer.resume()
    warm = trainer.warm_up()
    console.quiet = not fabric.is_global_zero
    origin = "resumed" if resumed else f"weights of {run.init}" if run.init else "new weights"
    console.print(f"{parameters / 1e6:.2f}M parameters, {origin}, {devices} x {fabric.device.type}")
    console.print(f"compiled in {warm:.0f} s")
    complete = trainer.run(console.print)
    trainer.save()
    if scored is not None and complete and fabric.is_global_zero:
        _score(console, output, scored, fabric.device)
    console.print(f"{'complete' if complete else 'to be continued'}: {output}")


def _score(console: Console, output: Path, tasks: Sequence[Task], device: torch.device) -> None:
    """Score the complete run, and add that to its record."""
    from kssm.training.record import write_record
    from kssm.training.scoring import score_run

    scores = score_run(output, tasks, device)
    write_record(output, {"scores": scores})
    for name, summary in scores.items():
        mean = summary["geometric_mean"]
        console.print(f"{name}: MASE {mean['MASE']:.4f} CRPS {mean['CRPS']:.4f}")
