"""``kssm serve``: start the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (0: any free one).")] = None,
    model: Annotated[str | None, typer.Option(help="A shipped model's name, or a folder.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or int8 (default: as stored).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="File or folder that keeps the sessions.")
    ] = None,
) -> None:
    """Serve a forecaster or a language model over WebSocket and HTTP.

    Every setting can also be given as an environment variable named KSSM_ and the setting in
    capitals (KSSM_PORT=8000); a flag wins over the environment.
    """
    from service.server import run
    from service.settings import load_settings

    given = {"model": model, "weights": weights, "device": device, "store": store}
    run(load_settings(host=host, port=port, **given))
