"""The image's entrypoint, as a script with a stand-in for ``kssm``: no engine is needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[2] / "docker" / "entrypoint"


def run(folder: Path, *words: str, store: str) -> subprocess.CompletedProcess[str]:
    """``entrypoint WORDS``, where ``kssm`` repeats what it was given."""
    stand_in = folder / "kssm"
    stand_in.write_text('#!/bin/sh\necho "kssm $*, store $KSSM_STORE"\n')
    stand_in.chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "KSSM_STORE": store, "OMP_NUM_THREADS": "1"}
    command = ["sh", str(ENTRYPOINT), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize("store", ["memory", "", "{folder}", "{folder}/sessions.sqlite3"])
def test_every_store_that_the_settings_know_is_let_through(tmp_path: Path, store: str) -> None:
    named = store.format(folder=tmp_path)
    done = run(tmp_path, "serve", "--port", "1", store=named)
    assert (done.returncode, done.stdout) == (0, f"kssm serve --port 1, store {named}\n")


def test_other_commands_do_not_ask_for_the_store(tmp_path: Path) -> None:
    done = run(tmp_path, "inspect", "model", store="/nowhere")
    assert (done.returncode, done.stdout) == (0, "kssm inspect model, store /nowhere\n")
