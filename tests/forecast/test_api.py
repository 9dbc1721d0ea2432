"""The library's front door: batches of ragged series, frames, streams, and its errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from kssm.errors import InvalidInputError
from kssm.forecast import Forecaster
from kssm.forecast.testing import tiny_forecaster


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    return Forecaster(tiny_forecaster())


def ragged() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=n).cumsum() for n in (7, 120, 33, 1, 64)]


def test_batched_equals_alone_in_any_batch_size(forecaster: Forecaster) -> None:
    series = ragged()
    quantiles, mean = forecaster.predict_quantiles(series, 20, (0.1, 0.5, 0.9))
    assert quantiles.shape == (5, 20, 3)
    assert np.array_equal(mean, quantiles[..., 1])
    tight, _ = forecaster.predict_quantiles(series, 20, (0.1, 0.5, 0.9), batch_tokens=40)
    for i, values in enumerate(series):
        alone, _ = forecaster.predict_quantiles([values], 20, (0.1, 0.5, 0.9))
        assert np.allclose(quantiles[i], alone[0], rtol=1e-4, atol=1e-6)
        assert np.allclose(tight[i], alone[0], rtol=1e-4, atol=1e-6)


def test_stream_equals_batch(forecaster: Forecaster) -> None:
    values = np.stack(ragged()[1:3:1][:1] * 2)[:, :40] * [[1.0], [-3.0]]
    values[1, 11] = np.nan
    stream = forecaster.stream(channels=2)
    scores = [stream.push(column) for column in values.T]
    assert np.isnan(scores[0]).all()
    assert np.isnan(scores[11][1])
    assert (scores[-1] >= 0).all()
    batch, _ = forecaster.predict_quantiles(list(values), 20, (0.1, 0.5, 0.9))
    assert np.allclose(stream.forecast(20), batch, rtol=1e-4, atol=1e-6)


def test_context_length(forecaster: Forecaster) -> None:
    values = ragged()[1]
    cut, _ = forecaster.predict_quantiles([values], 5, context_length=30)
    expected, _ = forecaster.predict_quantiles([values[-30:]], 5)
    assert np.array_equal(cut, expected)


def test_data_frames(forecaster: Forecaster) -> None:
    times = pd.date_range("2024-01-01", periods=40, freq="h")
    frames = [
        pd.DataFrame({"item_id": name, "timestamp": times, "target": values[:40]})
        for name, values in zip("ba", [ragged()[1], ragged()[4]], strict=True)
    ]
    out = forecaster.predict_df(pd.concat(frames), 6)
    assert list(out.columns) == ["item_id", "timestamp", "predictions", "0.1", "0.5", "0.9"]
    assert out["timestamp"].iloc[0] == times[-1] + (times[1] - times[0])
    expected, _ = forecaster.predict_quantiles([ragged()[4][:40]], 6, (0.1, 0.5, 0.9))
    mine = out.loc[out["item_id"] == "a", ["0.1", "0.5", "0.9"]].to_numpy()
    assert np.allclose(mine, expected[0], rtol=1e-4, atol=1e-6)
    text = pd.concat(frames).astype({"timestamp": str})
    pd.testing.assert_frame_equal(forecaster.predict_df(text, 6), out, check_dtype=False)
    gaps = frames[0].astype({"target": "Float64"}).assign(timestamp=range(40))
    gaps.loc[3:5, "target"] = pd.NA
    some = forecaster.predict_df(gaps, 6)
    assert list(some["timestamp"]) == [40, 41, 42, 43, 44, 45]
    assert np.isfinite(some["predictions"]).all()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda df: df.rename(columns={"target": "y"}), "column_not_found"),
        (lambda df: df.iloc[:0], "empty_series"),
        (lambda df: df.assign(target="text"), "wrong_dtype"),
        (lambda df: df.assign(timestamp="no time"), "invalid_timestamps"),
    ],
)
def test_bad_data_frames(
    forecaster: Forecaster, change: Callable[[pd.DataFrame], pd.DataFrame], code: str
) -> None:
    frame = pd.DataFrame({"item_id": "a", "timestamp": range(9), "target": np.arange(9.0)})
    with pytest.raises(InvalidInputError) as error:
        forecaster.predict_df(change(frame), 6)
    assert error.value.code == code


@pytest.mark.parametrize("length", [0, -1])
def test_a_horizon_is_at_least_one(forecaster: Forecaster, length: int) -> None:
    with pytest.raises(InvalidInputError) as error:
        forecaster.predict_quantiles([[1.0, 2.0]], length)
    assert error.value.code == "invalid_horizon"


def test_devices_by_name() -> None:
    model = Forecaster.from_pretrained("kssm-signal-small", "auto").model
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InvalidInputError) as error:
        Forecaster.from_pretrained("kssm-signal-small", "cuda:77")
    assert error.value.code == "invalid_device"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([], "empty_series"),
        ([[1.0, 2.0]], "wrong_shape"),
        ([1.0, np.inf], "non_finite_value"),
        ([1.0, 1e38], "value_out_of_range"),
        (["a", "b"], "wrong_dtype"),
    ],
)
def test_bad_series(forecaster: Forecaster, values: list[object], code: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        forecaster.predict_quantiles([values], 5)  # pyright: ignore[reportArgumentType]
    assert error.value.code == code


def test_series_without_a_value_forecasts_nan(forecaster: Forecaster) -> None:
    quantiles, mean = forecaster.predict_quantiles([[np.nan, np.nan], [1.0, 2.0]], 3)
    assert np.isnan(quantiles[0]).all()
    assert np.isfinite(mean[1]).all()


def test_bad_pushes(forecaster: Forecaster) -> None:
    stream, twin = forecaster.stream(channels=2), forecaster.stream(channels=2)
    for samples in ([1.0, 2.0], [1.5, np.nan]):
        stream.push(samples)
        twin.push(samples)
    for values, dt, code in (
        ([1.0], 1.0, "wrong_shape"),
        ([1.0, np.inf], 1.0, "non_finite_value"),
        ([1.0, -1e38], 1.0, "value_out_of_range"),
        ([1.0, "a"], 1.0, "wrong_dtype"),
        ([1.0, 2.0], 0.0, "invalid_timestamps"),
        ([1.0, 2.0], float("nan"), "invalid_timestamps"),
    ):
        with pytest.raises(InvalidInputError) as error:
            stream.push(values, dt)  # pyright: ignore[reportArgumentType]
        assert error.value.code == code
    assert np.array_equal(stream.forecast(5), twin.forecast(5))
    with pytest.raises(InvalidInputError):
        forecaster.stream(channels=0)


def test_of_a_stream_at_a_higher_rate_one_sample_an_interval_is_read(
    forecaster: Forecaster,
) -> None:
    coarse = np.random.default_rng(4).normal(size=20).cumsum()
    fine = np.interp(np.arange(-3, 77) / 4, np.arange(20), coarse)
    usual, fast = forecaster.stream(), forecaster.stream()
    scores = [usual.push(value) for value in coarse]
    pushed = [fast.push(value, 0.25) for value in fine]
    assert np.array_equal(pushed[3::4], scores, equal_nan=True)
    assert np.isnan(pushed[2::4]).all()
    assert np.array_equal(fast.forecast(), usual.forecast())
    assert np.array_equal(fast.alarm.surprise, usual.alarm.surprise)
    fast.push(0.0, 0.25)
    assert np.isnan(fast.alarm.probability).all()
    assert np.array_equal(fast.forecast(), usual.forecast())
