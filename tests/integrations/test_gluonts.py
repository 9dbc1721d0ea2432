"""The GluonTS predictor inside GluonTS' own evaluation, against our own scores."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

pytest.importorskip("gluonts")

import pandas as pd

from kssm.errors import InvalidInputError
from kssm.evaluation.scores import score
from kssm.evaluation.tasks import Task
from kssm.forecast import Forecaster
from kssm.forecast.testing import tiny_forecaster

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
    from gluonts.model import evaluate_model

    from kssm.integrations.gluonts import KSSMPredictor

LEVELS = [level / 10 for level in range(1, 10)]
START = pd.period_range("2024-01-01", periods=1, freq="D")[0]


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return Forecaster(tiny_forecaster())


def task() -> Task:
    rng = np.random.default_rng(1)
    values = (10.0 + rng.normal(size=130).cumsum()).astype(np.float32)
    return Task("toy", 6, 3, 7, values, np.array([0, 60, 130]))


def entries(toy: Task) -> list[dict[str, object]]:
    return [
        {"start": START, "target": values, "item_id": str(i)}
        for i, values in enumerate(toy.series())
    ]


@pytest.mark.filterwarnings("ignore")
def test_its_evaluation_gives_our_scores(forecaster: Forecaster) -> None:
    toy = task()
    _, template = split(entries(toy), offset=-toy.windows * toy.prediction_length)
    data = template.generate_instances(toy.prediction_length, windows=toy.windows)
    predictor = KSSMPredictor(forecaster, toy.prediction_length, batch_size=4)
    metrics = [MeanWeightedSumQuantileLoss(quantile_levels=LEVELS), MASE()]
    table = evaluate_model(predictor, test_data=data, metrics=metrics, axis=None, seasonality=7)
    quantiles, _ = forecaster.predict_quantiles(toy.contexts(), toy.prediction_length)
    ours = score(toy, quantiles.transpose(0, 2, 1).astype(np.float32))
    assert table["mean_weighted_sum_quantile_loss"].item() == pytest.approx(ours.crps, rel=1e-5)
    assert table["MASE[0.5]"].item() == pytest.approx(ours.mase, rel=1e-5)


def test_forecasts_say_what_they_are_of(forecaster: Forecaster) -> None:
    toy = task()
    predictor = KSSMPredictor(forecaster, 6, quantile_levels=(0.1, 0.5, 0.9), context_length=20)
    forecasts = list(predictor.predict(entries(toy), num_samples=100))
    assert [forecast.item_id for forecast in forecasts] == ["0", "1"]
    assert [forecast.start_date for forecast in forecasts] == [START + 60, START + 70]
    last = [values[-20:] for values in toy.series()]
    quantiles, mean = forecaster.predict_quantiles(last, 6, (0.1, 0.5, 0.9))
    np.testing.assert_allclose(forecasts[1].quantile("0.9"), quantiles[1, :, 2], rtol=1e-4)
    np.testing.assert_allclose(forecasts[1].mean, mean[1], rtol=1e-4)


def test_unseen_and_multivariate_targets(forecaster: Forecaster) -> None:
    predictor = KSSMPredictor(forecaster, 4)
    blank = {"start": START, "target": np.full(12, np.nan)}
    (forecast,) = predictor.predict([blank])
    assert (forecast.quantile(0.5) == 0.0).all()
    assert forecast.item_id is None
    with pytest.raises(InvalidInputError, match="univariate"):
        list(predictor.predict([{"start": START, "target": np.zeros((2, 12))}]))
