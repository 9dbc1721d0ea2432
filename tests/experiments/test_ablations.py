"""Ablations: every lever fits the base, runs are kept and not repeated, the table is right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.ablations import __main__ as ablations
from experiments.ablations.table import deviation, markdown
from kssm.training.config import load_config, read_tables
from tests.training.runs import tiny_run

PRETRAINING = Path(ablations.__file__).parents[1] / "pretraining"


@pytest.mark.parametrize("name", ["base", "base-continued", "small"])
def test_shipped_configurations_are_valid(name: str) -> None:
    config = load_config(PRETRAINING / f"{name}.toml")
    assert config.run.seconds >= 840


def test_every_lever_changes_the_base_and_fits_it() -> None:
    base = read_tables(PRETRAINING / "small.toml")
    levers = ablations.read_levers(PRETRAINING.parent / "ablations" / "levers.toml")
    configs = {name: ablations.changed(base, change) for name, change in levers.items()}
    same = {"base", "season"}  # which has a trainer of its own
    assert len(set(map(repr, configs.values()))) == len(configs) - 1 > 10
    assert {name for name, config in configs.items() if config == configs["base"]} == same
    assert configs["real_0"].data.real_share == 0.0
    assert configs["context_4096"].data.length == 4096


def task_folder(folder: Path) -> Path:
    folder.mkdir()
    values = np.sin(np.arange(90, dtype=np.float32))
    offsets = np.array([0, 90])
    np.savez(
        folder / "toy.npz", values=values, offsets=offsets, prediction_length=6, windows=2, season=6
    )
    return folder


def test_runs_are_recorded_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(tiny_run(steps=4))
    levers = tmp_path / "levers.toml"
    levers.write_text(
        "[wider.model]\nhead_hidden = 24\n[season]\ntrainer = 'season'\n"
        "[broken.model.backbone]\nd_inner = 17\n"
    )
    arguments = ["--config", config, "--file", levers, "--tasks", task_folder(tmp_path / "tasks")]
    arguments += ["--output", tmp_path / "out", "--device", "cpu", "--commit", "abc"]
    for _ in range(2):
        ablations.main([*map(str, arguments), "--seeds", "0", "--seconds", "1e6"])
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["lever"] for row in rows] == ["base", "wider", "season"]
    assert rows[2]["untold_CRPS"] > 0
    assert all(row["CRPS"] > 0 and row["direct_coverage"] > 0 for row in rows)
    assert rows[0]["commit"] == "abc"
    assert rows[0]["samples"] == 4 * 4 * 64
    assert "broken 0: InvalidInputError" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*/resume.pt"))
    assert "| wider | 1 |" in (tmp_path / "out" / "table.md").read_text()


def test_unknown_levers_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no lever nothing"):
        ablations.main(["--tasks", str(tmp_path), "--levers", "nothing"])


def row(lever: str, seed: int, crps: float) -> dict[str, object]:
    metrics = {"MASE": crps, "CRPS": crps}
    return {"lever": lever, "seed": seed, "samples": 1_000_000, "loss": 0.3, **metrics}


def test_table_shows_differences_with_their_standard_error() -> None:
    rows = [row("base", 0, 0.40), row("base", 1, 0.41), row("x", 0, 0.38), row("x", 1, 0.39)]
    expected = math.sqrt(sum(math.log(a / b) ** 2 / 2 for a, b in ((0.41, 0.40), (0.39, 0.38))) / 2)
    assert deviation(rows, "CRPS") == pytest.approx(expected)
    change = 100 * (math.sqrt(0.38 * 0.39 / (0.40 * 0.41)) - 1)
    assert f"| {change:+.1f}% ± {100 * expected:.1f} |" in markdown(rows)
    assert math.isnan(deviation(rows[:1], "CRPS"))
