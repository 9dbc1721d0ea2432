"""The benchmark of the models at toy sizes."""

from __future__ import annotations

import json

import pytest

from benchmarks import models
from benchmarks.models import main


def test_it_ends_with_a_table_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.torch.cuda, "is_available", lambda: False)
    sizes = ["--size", "tiny", "--rows", "1", "3", "--lengths", "16", "--batch", "2", "8"]
    main(["--models", "mamba2", "kssm", *sizes, "--repeats", "1"])
    *table, last = capsys.readouterr().out.splitlines()
    line = json.loads(last)
    assert line["benchmark"] == "models"
    first, second = line["results"]
    assert (first["model"], second["model"]) == ("mamba2", "kssm")
    assert (first["claimed_step_us"], second["claimed_step_us"]) == (100.0, None)
    assert first["state_bytes"] == 37376
    measured = ["step_us_1", "step_us_3", "prefill_ms_16", "training_tokens_per_s"]
    assert all(row[name] > 0 for row in (first, second) for name in measured)
    assert len(table) == 4
    assert all(row.count("|") == table[0].count("|") for row in table)
