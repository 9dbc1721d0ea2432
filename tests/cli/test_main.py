"""The root command: fast help, one line for an expected failure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kssm import __version__
from kssm.cli import COMMANDS, build_app, fail, main
from kssm.errors import InvalidInputError

HELP_WITHOUT_TORCH = """
import sys
from kssm.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "numpy", "fastapi"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_lists_every_command_without_importing_torch():
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout


def test_only_the_named_command_is_imported():
    commands = {info.name: info.callback for info in build_app(["serve"]).registered_commands}
    assert commands["serve"].__module__ == "kssm.cli.serve"
    assert commands["forecast"].__module__ == "kssm.cli"


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"kssm {__version__}\n"


def test_unknown_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["frobnicate"])
    assert caught.value.code == 2
    assert "frobnicate" in capsys.readouterr().err


def test_failure_keeps_brackets_in_messages(capsys):
    with pytest.raises(SystemExit) as caught:
        fail(InvalidInputError("values[0] is [bad]", code="wrong_shape"))
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error [wrong_shape] values[0] is [bad]\n"
