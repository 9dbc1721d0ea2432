"""Fine-tuning: it helps where it can, never harms, and sees nothing it must not see."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kssm.cli import main
from kssm.errors import InvalidInputError
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster
from kssm.training.adapt import AdaptConfig
from kssm.training.finetune import (
    CONTEXT,
    LEAST_GAIN,
    LEAST_SERIES,
    MOST_SAMPLES,
    FinetuneConfig,
    finetune,
    scored,
    split,
    widen,
)

SMALL = AdaptConfig(learning_rate=3e-3, steps=25, length=128, batch_tokens=512)
QUICK = FinetuneConfig(horizon=6, minutes=5.0, adapt=SMALL)


def waves(count: int = 3, length: int = 300) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    time = np.arange(length)
    return [
        np.where(rng.random(length) < 0.02, np.nan, 50 + 10 * np.sin(time / 2 + row))
        + rng.normal(size=length)
        for row in range(count)
    ]


def test_what_can_be_learned_is_learned() -> None:
    model = tiny_forecaster()
    calls: list[tuple[str, float]] = []
    result = finetune(model, waves(), QUICK, lambda stage, share: calls.append((stage, share)))
    assert result.share > 0
    assert result.validation[1] < 0.8 * result.validation[0]
    assert result.holdout[1] < 0.8 * result.holdout[0]
    assert (result.series, result.samples) == (3, 3 * (300 - 30))
    assert calls[0] == ("scoring", 0.0)
    assert calls[-1] == ("training", 1.0)
    again = finetune(model, waves(), replace(QUICK, adapt=replace(SMALL, steps=1)))
    assert again.holdout[0] == pytest.approx(result.holdout[1])


WILD = replace(QUICK, adapt=replace(SMALL, learning_rate=30.0, steps=2, clip=1e9))


def test_where_training_harms_nothing_changes() -> None:
    model = tiny_forecaster()
    before = model.fingerprint
    result = finetune(model, waves(), WILD)
    assert (result.share, result.width) == (0.0, 1.0)
    assert model.fingerprint == before
    assert result.validation[0] == result.validation[1]
    assert result.holdout[0] == result.holdout[1]


def test_many_series_may_decide_on_the_width_of_intervals() -> None:
    model = tiny_forecaster()
    backbone = copy.deepcopy(model.backbone.state_dict())
    result = finetune(model, waves(LEAST_SERIES, 100), WILD)
    assert result.share == 0.0
    assert result.width != 1.0
    assert result.validation[1] < (1.0 - LEAST_GAIN) * result.validation[0]
    assert result.holdout[1] < result.holdout[0]
    assert all(torch.equal(backbone[k], v) for k, v in model.backbone.state_dict().items())


def test_widening_moves_quantiles_apart() -> None:
    model = tiny_forecaster()
    hidden, last = torch.zeros(1, 32), torch.zeros(1)
    with torch.no_grad():
        before = model.head(hidden, last)
        after = widen(model, 1.1).head(hidden, last)
    ratio = (after - after[..., 4:5]) / (before - before[..., 4:5])
    outer = ratio[..., [0, 8]]
    assert bool(((outer > 1.06) & (outer < 1.1)).all())
    torch.testing.assert_close(after[..., 4], before[..., 4])


def test_the_holdout_is_never_looked_at() -> None:
    series = waves()
    changed = [np.concatenate([x[:270], x[270:] * 3]) for x in series]
    models = [tiny_forecaster(), tiny_forecaster()]
    results = [finetune(m, s, QUICK) for m, s in zip(models, (series, changed), strict=True)]
    assert models[0].fingerprint == models[1].fingerprint
    assert results[0].holdout != results[1].holdout


def test_without_a_holdout_and_beyond_the_head() -> None:
    model = tiny_forecaster(thinning=(4,))
    horizon = 2 * model.config.head_horizon + 3
    config = replace(QUICK, horizon=horizon, holdout=0.0)
    result = finetune(model, {"wave": waves(1, 500)[0]}, config)
    assert result.validation[1] < result.validation[0]
    assert math.isnan(result.holdout[0])
    assert result.as_dict()["holdout"] == {"zero_shot": None, "finetuned": None}


def test_splits_do_not_overlap() -> None:
    config = FinetuneConfig(horizon=10, holdout=0.2, validation=0.25)
    parts = split([np.zeros(200), np.zeros(40), np.zeros(1000)], config)
    assert [len(x) for x in parts.whole] == [200, 1000]
    assert parts.holdout[0].tolist() == [160, 170, 180, 190]
    assert len(parts.known[0]) == 160
    assert parts.validation[0][[0, -1]].tolist() == [120, 150]
    assert [len(x) for x in parts.fitted()] == [120, 600]
    assert len(parts.holdout[1]) == 20
    assert len(parts.validation[0]) == 16
    assert len(parts.validation[1]) == 80
    short = split([np.zeros(62)], replace(config, holdout=0.0))
    assert short.validation[0].tolist() == [47, 49, 51]


def test_series_without_room() -> None:
    with pytest.raises(InvalidInputError) as error:
        split([np.zeros(50)], FinetuneConfig(horizon=24))
    assert error.value.code == "series_too_short"


@pytest.mark.parametrize("change", [{"horizon": 0}, {"holdout": 1.0}, {"minutes": 0.0}])
def test_impossible_settings(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        FinetuneConfig(**change)


def test_only_so_much_is_read_for_a_score() -> None:
    long = [np.arange(50_000.0) for _ in range(200)]
    cuts = [np.array([40_000, 40_010])] * 200
    windows = scored(long, cuts, 10, seed=0)
    assert len(windows.series) == -(-MOST_SAMPLES // (CONTEXT + 10))
    assert windows.origins[0].tolist() == [CONTEXT, CONTEXT + 10]
    assert windows.truth()[0, 0] == 40_000
    few = scored(long[:3], [np.array([], dtype=np.int64), np.array([5]), np.array([9])], 2, seed=0)
    assert sorted(cuts.tolist() for cuts in few.origins) == [[5], [9]]


def test_command_line_to_a_model_that_can_be_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained.save(tiny_forecaster(), tmp_path / "start", half=False)
    rows = zip(*waves(2, 200), strict=True)
    lines = [",".join("" if math.isnan(x) else f"{x:.4f}" for x in row) for row in rows]
    (tmp_path / "data.csv").write_text("\n".join(["a,b", *lines]) + "\n")
    arguments = ["finetune", "--data", str(tmp_path / "data.csv"), "--horizon", "8"]
    arguments += ["--checkpoint", str(tmp_path / "start"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--minutes", "0.05", "--column", "b"])
    assert ended.value.code == 0
    record = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert record["validation"]["finetuned"] <= record["validation"]["zero_shot"]
    assert record["series"] == 1
    loaded = pretrained.load(tmp_path / "out")
    assert loaded.config == tiny_forecaster().config
    assert f"kssm serve --model {tmp_path / 'out'}" in capsys.readouterr().out.replace("\n", "")
