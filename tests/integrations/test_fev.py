"""The fev model inside fev's own harness, against our own scores."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fev")

from kssm.evaluation.scores import score
from kssm.evaluation.tasks import Task
from kssm.forecast import Forecaster
from kssm.forecast.testing import tiny_forecaster

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import datasets
    import fev

    from kssm.integrations.fev import KSSMModel

LEVELS = [level / 10 for level in range(1, 10)]


def task() -> Task:
    values = (10.0 + np.random.default_rng(1).normal(size=130).cumsum()).astype(np.float32)
    return Task("toy", 6, 3, 7, values, np.array([0, 60, 130]))


def write(path: Path, toy: Task, columns: tuple[str, ...] = ("target",)) -> str:
    first = np.datetime64("2024-01-01", "us")
    rows = [
        {"id": f"s{i}", "timestamp": first + np.arange(len(values)) * np.timedelta64(1, "D")}
        | {name: values * (k + 1) for k, name in enumerate(columns)}
        for i, values in enumerate(toy.series())
    ]
    datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up or kept outside the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)


@pytest.mark.filterwarnings("ignore")
def test_its_summary_gives_our_scores(tmp_path: Path) -> None:
    toy = task()
    problem = fev.Task(
        dataset_path=write(tmp_path / "data.parquet", toy),
        horizon=toy.prediction_length,
        num_windows=toy.windows,
        seasonality=toy.season,
        eval_metric="MASE",
        extra_metrics=["WQL"],
        quantile_levels=LEVELS,
    )
    forecaster = Forecaster(tiny_forecaster())
    model = KSSMModel(forecaster)
    predictions = model.fit_predict(problem)
    summary = problem.evaluation_summary(predictions, model_name=model.model_name)
    assert model.inference_time > 0.0
    ours = []
    for window in range(toy.windows):
        contexts = toy.contexts()[window :: toy.windows]
        quantiles, _ = forecaster.predict_quantiles(contexts, toy.prediction_length)
        series = [np.append(c, t) for c, t in zip(contexts, toy.targets()[window::3], strict=True)]
        single = Task(
            "w",
            6,
            1,
            7,
            np.concatenate(series).astype(np.float32),
            np.cumsum([0, *map(len, series)]),
        )
        ours.append(score(single, quantiles.transpose(0, 2, 1).astype(np.float32)))
    assert summary["MASE"] == pytest.approx(np.mean([s.mase for s in ours]), rel=1e-4)
    assert summary["WQL"] == pytest.approx(np.mean([s.crps for s in ours]), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_every_target_is_forecast_on_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", task(), ("a", "b"))
    problem = fev.Task(dataset_path=path, horizon=4, target=["a", "b"])
    (window,) = KSSMModel(Forecaster(tiny_forecaster())).fit_predict(problem)
    assert set(window) == {"a", "b"}
    assert window["a"].column_names == ["predictions"]
    assert np.allclose(
        np.array(window["b"]["predictions"]), 2 * np.array(window["a"]["predictions"]), rtol=1e-3
    )
