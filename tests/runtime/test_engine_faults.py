"""Whatever fails, fails alone and leaves the state as it was."""

from __future__ import annotations

import numpy as np
import pytest

from kssm.errors import KSSMError, NumericalError
from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine
from tests.runtime.fakes import POISON, SmoothingForecaster
from tests.runtime.support import CONFIG, assert_same, code_of, noise, state_of


@pytest.mark.parametrize("samples", [1, 5, 40], ids=["step", "steps", "chunks"])
def test_a_poisoned_job_leaves_the_state_as_it_was(running: Engine, samples: int) -> None:
    key = running.open(2).result()
    running.append(key, noise(6, 2)).result()
    before = state_of(running, key)
    values = noise(samples, 2)
    values[-1, 1] = POISON
    fault = running.append(key, values).exception()
    assert isinstance(fault, NumericalError)
    assert fault.code == "numerical_fault"
    assert_same(state_of(running, key), before)
    stats = running.stats()
    assert (stats.faults, stats.quarantined) == (1, 1)
    result = running.append(key, noise(samples, 2)).result()
    assert np.isfinite(result.quantiles).all()
    running.reset(key).result()
    assert running.stats().quarantined == 0


@pytest.mark.parametrize(
    ("compiled", "channels", "samples", "copies"),
    [(True, 1, 1, 0), (True, 3, 1, 0), (True, 30, 1, 1), (True, 1, 3, 1), (False, 1, 1, 1)],
)
def test_rows_are_kept_aside_where_the_model_would_not_keep_them(
    compiled: bool, channels: int, samples: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_forecaster(thinning=(4,)) if compiled else SmoothingForecaster()
    with Engine(model, CONFIG) as engine:
        key = engine.open(channels).result()
        arena, taken = engine._worker._arena, list[object]()
        keep = arena.keep
        monkeypatch.setattr(
            arena, "keep", lambda *what, **how: taken.append(what) or keep(*what, **how)
        )
        engine.append(key, noise(samples, channels)).result()
        assert len(taken) == copies


@pytest.mark.parametrize("call", ["step", "forecast", "prefill"])
def test_a_model_that_raises_fails_that_batch_only(
    running: Engine, model: SmoothingForecaster, call: str
) -> None:
    key, other = running.open(1).result(), running.open(1).result()
    running.append(key, noise(3)).result()
    before = state_of(running, key)
    model.fail_next.add(call)
    samples = 20 if call == "prefill" else 1
    failed = running.append(key, noise(samples)).exception()
    assert isinstance(failed, KSSMError)
    assert failed.code == "internal"
    assert "luck" not in failed.message
    assert isinstance(failed.__cause__, ZeroDivisionError)
    if call != "forecast":
        assert_same(state_of(running, key), before)
    assert np.isfinite(running.append(other, noise(samples)).result().quantiles).all()
    assert np.isfinite(running.append(key, noise(samples)).result().quantiles).all()


def test_a_forecast_that_is_not_finite_says_that_its_samples_were_applied(
    running: Engine, monkeypatch: pytest.MonkeyPatch, model: SmoothingForecaster
) -> None:
    key, reference = running.open(1).result(), running.open(1).result()
    forecast = model.forecast
    with monkeypatch.context() as patch:
        patch.setattr(model, "forecast", lambda *a: forecast(*a) / 0.0)
        fault = running.append(key, noise(1)).exception()
    assert isinstance(fault, NumericalError)
    assert fault.details == {"applied": True}
    running.append(reference, noise(1)).result()
    assert_same(state_of(running, key), state_of(running, reference))


def test_no_forecast_yet_is_not_a_fault(
    running: Engine, monkeypatch: pytest.MonkeyPatch, model: SmoothingForecaster
) -> None:
    key = running.open(1).result()
    forecast = model.forecast
    monkeypatch.setattr(model, "forecast", lambda *a: forecast(*a) * np.nan)
    assert np.isnan(running.append(key, np.array([[np.nan]])).result().quantiles).all()
    assert np.isnan(running.predict([np.array([np.nan])], 3, (0.5,)).result().quantiles).all()
    assert running.stats().faults == 0


def test_a_prediction_that_fails_names_its_series(
    running: Engine, model: SmoothingForecaster
) -> None:
    series = [np.zeros(4), np.array([1.0, POISON]), np.zeros(30)]
    fault = running.predict(series, 2, (0.5,)).exception()
    assert isinstance(fault, NumericalError)
    assert fault.details == {"series": 1}
    model.fail_next.add("prefill")
    assert code_of(running.predict(series[:1], 2, (0.5,))) == "internal"
    assert running.predict(series[:1], 2, (0.5,)).result().quantiles.shape == (1, 2, 1)
    assert running.stats().pending_tokens == 0
