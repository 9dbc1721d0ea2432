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
from kssm.training.examples import Examples
from kssm.training.finetune import FinetuneConfig, finetune, split
from kssm.training.head_fit import FitConfig, blend, crps, fit_head
from kssm.training.recipes import Material, choose

QUICK = FinetuneConfig(horizon=6, minutes=5.0, fit=FitConfig(1e-2, steps=60, batch=64))


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
    backbone = copy.deepcopy(model.backbone.state_dict())
    calls: list[tuple[str, float]] = []
    result = finetune(model, waves(), QUICK, lambda stage, share: calls.append((stage, share)))
    assert result.share > 0
    assert result.validation[1] < 0.8 * result.validation[0]
    assert result.holdout[1] < 0.8 * result.holdout[0]
    assert (result.series, result.samples) == (3, 3 * (300 - 30))
    assert all(torch.equal(backbone[k], v) for k, v in model.backbone.state_dict().items())
    assert calls[0] == ("reading", 0.0)
    assert calls[-1] == ("fitting", 1.0)
    again = finetune(model, waves(), QUICK)
    assert again.validation[0] < 1.02 * result.validation[1]


def test_without_gain_nothing_changes() -> None:
    model = tiny_forecaster()
    before = model.fingerprint
    wild = replace(QUICK, fit=FitConfig(learning_rate=30.0, steps=5, clip=1e9))
    result = finetune(model, waves(), wild)
    assert result.share == 0.0
    assert result.validation[0] == result.validation[1]
    assert result.holdout[0] == result.holdout[1]
    assert model.fingerprint == before


def test_the_holdout_is_never_looked_at() -> None:
    series = waves()
    changed = [np.concatenate([x[:270], x[270:] * 3]) for x in series]
    models = [tiny_forecaster(), tiny_forecaster()]
    results = [finetune(m, s, QUICK) for m, s in zip(models, (series, changed), strict=True)]
    assert models[0].fingerprint == models[1].fingerprint
    assert results[0].holdout != results[1].holdout


def test_horizons_beyond_the_head() -> None:
    model = tiny_forecaster()
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
    assert parts.validation[0].tolist() == [120, 130, 140, 150]
    assert [len(x) for x in parts.fitted()] == [120, 600]
    assert len(parts.holdout[1]) == len(parts.validation[1]) == 20


def test_series_without_room() -> None:
    with pytest.raises(InvalidInputError) as error:
        split([np.zeros(50)], FinetuneConfig(horizon=24))
    assert error.value.code == "series_too_short"


@pytest.mark.parametrize("change", [{"horizon": 0}, {"holdout": 1.0}, {"minutes": 0.0}])
def test_impossible_settings(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        FinetuneConfig(**change)


def random_examples(seed: int, rows: int = 64) -> Examples:
    g = torch.Generator().manual_seed(seed)
    future = torch.randn(rows, 16, generator=g, dtype=torch.float64) + 5.0
    future[::3, 9:] = torch.nan
    return Examples(
        hidden=torch.randn(rows, 32, generator=g),
        last=torch.randn(rows, generator=g),
        location=torch.full((rows,), 5.0, dtype=torch.float64),
        scale=torch.full((rows,), 2.0, dtype=torch.float64),
        future=future,
        row=torch.arange(rows) % 4,
        position=torch.arange(rows),
    )


def test_crps_is_the_weighted_quantile_loss() -> None:
    head, examples = tiny_forecaster().head, random_examples(0)
    with torch.no_grad():
        quantiles = 5.0 + 2.0 * torch.sinh(head(examples.hidden, examples.last).double())
    error = examples.future.unsqueeze(-1) - quantiles
    levels = torch.arange(1, 10, dtype=torch.float64) / 10
    pinball = torch.where(error > 0, levels * error, (levels - 1) * error)
    expected = 2 * pinball.nansum() / 9 / examples.future.abs().nansum()
    assert crps(head, examples) == pytest.approx(float(expected))


def test_blending_goes_from_one_head_to_the_other() -> None:
    start, end = tiny_forecaster(0).head, tiny_forecaster(1).head
    half = blend(start, end, 0.5)
    assert torch.allclose(half.out.weight, (start.out.weight + end.out.weight) / 2)
    assert torch.equal(blend(start, end, 0.0).bias, start.bias)
    assert torch.equal(blend(start, end, 1.0).out.weight, end.out.weight)


def material(everywhere: Examples, recent: Examples | None, validation: Examples) -> Material:
    return Material(everywhere, torch.full((4,), 1000), recent, validation)


def test_the_recipe_that_helps_is_repeated_on_what_decided() -> None:
    start, same = tiny_forecaster().head, random_examples(1)
    other = replace(random_examples(2), future=random_examples(2).future * -30.0)
    config = FitConfig(3e-3, steps=60, batch=64)
    recent = choose(start, material(other, same, same), config, math.inf, lambda _: None)
    assert recent.recipe == "recent"
    assert recent.validation[1] < recent.validation[0]
    expected = blend(start, fit_head(start, same, config, math.inf, lambda _: None), recent.share)
    assert torch.equal(recent.head.out.weight, expected.out.weight)
    everywhere = choose(start, material(same, other, same), config, math.inf, lambda _: None)
    assert everywhere.recipe == "everywhere"
    neither = choose(start, material(other, None, same), config, math.inf, lambda _: None)
    assert (neither.recipe, neither.share) == ("nothing", 0.0)
    assert neither.head is start


def test_examples_end_where_a_series_is_cut() -> None:
    examples = random_examples(3)
    cut = examples.until(torch.tensor([30, 30, 0, 5]))
    assert set(cut.row.tolist()) == {0, 1, 3}
    assert cut.position[cut.row != 3].max() == 29
    last = cut[cut.position == 29]
    assert torch.equal(last.future[0, 0], examples.future[29, 0])
    assert last.future[0, 1:].isnan().all()
    assert torch.equal(cut.hidden[0], examples.hidden[0])


def test_a_deadline_shortens_the_fit() -> None:
    seen: list[float] = []
    head = tiny_forecaster().head
    fitted = fit_head(head, random_examples(2), FitConfig(steps=10**6), 0.0, seen.append)
    assert seen == [1.0]
    assert not torch.equal(fitted.out.weight, head.out.weight)


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
        main([*arguments, "--minutes", "0.2", "--column", "b"])
    assert ended.value.code == 0
    record = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert record["validation"]["finetuned"] <= record["validation"]["zero_shot"]
    assert record["series"] == 1
    loaded = pretrained.load(tmp_path / "out")
    assert loaded.config == tiny_forecaster().config
    assert f"kssm serve --model {tmp_path / 'out'}" in capsys.readouterr().out.replace("\n", "")
