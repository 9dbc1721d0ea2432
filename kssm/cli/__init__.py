"""The ``kssm`` command.

Only the sub-command named on the command line is imported, so ``kssm --help`` never waits for
torch. Every expected failure ends with exit code 1 and one line on standard error that carries
the error's stable code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NoReturn

import typer

from kssm import __version__
from kssm.errors import KSSMError


@dataclass(frozen=True)
class Command:
    """Where a sub-command lives (``module:attribute``) and what it does, in one line."""

    target: str
    summary: str


COMMANDS: dict[str, Command] = {
    "serve": Command("kssm.cli.serve:serve", "Serve a model over WebSocket and HTTP."),
    "forecast": Command("kssm.cli.forecast:forecast", "Forecast a column of a CSV file."),
    "evaluate": Command("kssm.cli.evaluate:evaluate", "Forecast a folder of evaluation tasks."),
    "pretrain": Command("kssm.cli.pretrain:pretrain", "Train a forecaster."),
    "finetune": Command("kssm.cli.finetune:finetune", "Adapt a forecaster to your own series."),
    "inspect": Command("kssm.cli.inspect:inspect", "Describe a checkpoint."),
    "export": Command("kssm.cli.export:export", "Write a checkpoint's step as ONNX."),
    "bench": Command("kssm.cli.bench:app", "Measure the service on this machine."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line ``arguments`` (default: the process's own)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        build_app(words)(args=words, prog_name="kssm")
    except KSSMError as error:
        fail(error)


def build_app(words: Sequence[str]) -> typer.Typer:
    """An application in which the sub-command that ``words`` names is real and the rest are
    listed by their summaries only.
    """
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_root)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        _register(app, name, command, real=name == chosen)
    return app


def fail(error: KSSMError) -> NoReturn:
    """Print ``error`` with its code and end the process with exit code 1."""
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("error ", "bold red"), f"[{error.code}] {error.message}")
    Console(stderr=True, soft_wrap=True).print(line)
    raise SystemExit(1)


def _register(app: typer.Typer, name: str, command: Command, *, real: bool) -> None:
    target = _load(command.target) if real else _unused
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name, help=command.summary)
    else:
        app.command(name, short_help=command.summary)(target)


def _load(target: str) -> typer.Typer | Callable[..., object]:
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def _unused() -> None:
    """Stand in for a command that this command line does not name."""


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"kssm {__version__}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Streaming signal forecasting: a calibrated forecast after every frame, at constant cost."""
