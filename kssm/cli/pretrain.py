"""``kssm pretrain``: train a forecaster from a TOML configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def pretrain(
    config: Annotated[Path, typer.Argument(help="TOML file with the run's configuration")],
    output: Annotated[Path, typer.Option(help="folder for checkpoint, curve and resume state")],
    corpus: Annotated[Path | None, typer.Option(help="folder of real series to mix in")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "cuda",
    slice_seconds: Annotated[
        float, typer.Option(help="stop resumably after this many seconds, 0 = run to the end")
    ] = 0.0,
) -> None:
    """Train (or go on training) a forecaster; a second call with the same output resumes."""
    from dataclasses import replace

    from kssm.device import resolve_device
    from kssm.training.pretrain import Trainer, load_config

    console = Console(highlight=False)
    settings = load_config(config)
    if slice_seconds:
        settings = replace(settings, run=replace(settings.run, slice_seconds=slice_seconds))
    trainer = Trainer(settings, output, str(resolve_device(device)), corpus)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    resumed = trainer.resume()
    console.print(f"{parameters / 1e6:.2f}M parameters" + (", resumed" if resumed else ""))
    console.print(f"compiled in {trainer.warm_up():.0f} s")
    complete = trainer.run(console.print)
    trainer.save()
    console.print(f"{'complete' if complete else 'to be continued'}: {output}")
