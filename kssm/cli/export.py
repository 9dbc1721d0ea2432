"""``kssm export``: a checkpoint for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    checkpoint: Annotated[str, typer.Argument(help="A shipped model's name, or a folder.")],
    output: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
) -> None:
    """Write a checkpoint's step as ONNX, with its state as inputs and outputs."""
    from kssm.audio import AudioForecaster
    from kssm.errors import InvalidInputError
    from kssm.export import export_onnx
    from kssm.loading import load_any

    model = load_any(checkpoint)
    if isinstance(model, AudioForecaster):
        raise InvalidInputError("models of sound have no ONNX form", "export_unsupported")
    with Console(stderr=True).status("exporting: a minute or two"):
        layout = export_onnx(model, output)
    console = Console(markup=False)
    console.print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, state of a row:")
    for packed in layout.tensors:
        console.print(f"  {packed.name} [rows, {packed.size}], {len(packed.entries)} entries")
