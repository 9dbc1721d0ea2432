"""Evaluation tasks: window order, scores against plain formulas, malformed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kssm.errors import InvalidInputError
from kssm.forecast import Forecaster
from kssm.forecast.testing import tiny_forecaster
from kssm.training.evaluation import Task, forecast_task, load_task, score


def task() -> Task:
    rng = np.random.default_rng(0)
    values = rng.normal(size=70).cumsum().astype(np.float32)
    values[33] = np.nan
    return Task("toy", 5, 2, 7, values, np.array([0, 40, 70]))


def write(path: Path, **changes: object) -> Path:
    toy = task()
    fields: dict[str, object] = {
        "values": toy.values,
        "offsets": toy.offsets,
        "prediction_length": 5,
        "windows": 2,
        "season": 7,
        "name": "toy",
    }
    np.savez(path, **{k: v for k, v in (fields | changes).items() if v is not None})  # pyright: ignore[reportArgumentType]
    return path


def test_windows_are_ordered_by_series_then_time() -> None:
    contexts = task().contexts()
    assert [len(c) for c in contexts] == [30, 35, 20, 25]
    assert np.array_equal(task().targets()[2], task().values[60:65].astype(np.float64))


def test_forecasts_have_the_promised_shape(tmp_path: Path) -> None:
    loaded = load_task(write(tmp_path / "toy.npz"))
    model = tiny_forecaster()
    quantiles = forecast_task(model, loaded, context_length=None, batch_tokens=64)
    assert quantiles.shape == (4, 9, 5)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    alone, _ = Forecaster(model).predict_quantiles(task().contexts(), 5)
    assert np.allclose(quantiles, alone.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)


def test_scores_match_their_definitions() -> None:
    toy = task()
    truth = toy.targets()
    known = np.isfinite(truth)
    quantiles = np.repeat(np.nan_to_num(truth)[:, None] + 0.5, 9, axis=1).astype(np.float32)
    quantiles[:, 0] -= 1.0
    scores = score(toy, quantiles)
    assert scores.coverage == 1.0
    levels = np.arange(1, 10) / 10
    expected = 0.5 * (2 * (1 - levels[1:])).sum() + 0.5 * 2 * levels[0]
    total = expected / 9 * known.sum() / np.abs(truth[known]).sum()
    assert scores.quantile_loss == pytest.approx(total, rel=1e-5)
    errors = [np.nanmean(np.abs(c[7:] - c[:-7])) for c in toy.contexts()]
    mase = (0.5 / np.repeat(errors, known.sum(1))).mean()
    assert scores.mase == pytest.approx(mase, rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{"offsets": np.array([0, 8, 70])}, {"windows": None}, {"offsets": np.array([0])}]
)
def test_malformed_tasks(tmp_path: Path, changes: dict[str, object]) -> None:
    path = write(tmp_path / "toy.npz", **changes)
    with pytest.raises(InvalidInputError) as error:
        load_task(path)
    assert error.value.code == "invalid_task"


def test_garbage_is_not_a_task(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(InvalidInputError):
        load_task(path)
