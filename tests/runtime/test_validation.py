"""What callers may submit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kssm.errors import InvalidInputError
from kssm.runtime.config import EngineConfig
from kssm.runtime.validation import (
    Query,
    check_channels,
    check_dt,
    check_query,
    check_series,
    check_values,
    to_tokens,
)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (np.zeros(3), "wrong_shape"),
        (np.zeros((3, 1)), "wrong_shape"),
        (np.zeros((1, 3, 2)), "wrong_shape"),
        ([[1.0, 2.0], [3.0]], "wrong_shape"),
        ([["a", "b"]], "wrong_shape"),
        (np.zeros((0, 2)), "empty_frame"),
        ([[np.inf, 0.0]], "non_finite_value"),
        ([[0.0, -np.inf]], "non_finite_value"),
        ([[0.0, 1.1e30]], "value_out_of_range"),
        ([[-1e31, np.nan]], "value_out_of_range"),
    ],
)
def test_bad_values(values: Any, code: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_values(values, 2)
    assert refused.value.code == code


def test_good_values_are_copied() -> None:
    values = np.array([[1.0, np.nan], [-1e30, 0.0]])
    checked = check_values(values, 2)
    values[0, 0] = np.inf
    assert checked[0, 0] == 1.0
    assert checked.dtype == np.float64
    assert check_values(np.ones((2, 2), dtype=np.float32), 2).dtype == np.float64


@pytest.mark.parametrize("dt", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf, 1.0], "ab"])
def test_bad_steps(dt: Any) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_dt(dt, 2)
    assert refused.value.code == "invalid_timestamps"


def test_absent_steps_stay_absent() -> None:
    limits = {"channels": 2, "max_gap": 8, "max_tokens": 6}
    values, steps = to_tokens(np.ones((3, 2)), None, **limits)
    assert (values.shape, steps) == ((3, 2), None)
    with pytest.raises(InvalidInputError) as refused:
        to_tokens(np.ones((4, 2)), None, **limits)
    assert refused.value.code == "message_too_large"


@pytest.mark.parametrize("kind", [np.float64, np.float32, list])
def test_values_are_a_private_copy(kind: Any) -> None:
    given = [[1.0, np.nan], [2.0, -2.5]]
    own = given if kind is list else np.array(given, dtype=kind)
    checked = check_values(own, 2)
    own[0][0] = 7.0
    np.testing.assert_array_equal(checked, [[1.0, np.nan], [2.0, -2.5]])
    assert check_values(np.full((2, 1), np.nan), 1).shape == (2, 1)


@pytest.mark.parametrize("horizon", [0, -1, 101, 2.0, "3", None, True])
def test_bad_horizons(horizon: Any) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_query(horizon, (0.5,), 100)
    assert refused.value.code == "invalid_horizon"


@pytest.mark.parametrize("levels", [(), (0.0,), (1.0,), (0.5, np.nan), ("x",), 0.5, [0.5] * 257])
def test_bad_levels(levels: Any) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_query(10, levels, 100)
    assert refused.value.code == "invalid_quantiles"


def test_good_queries_compare_by_value() -> None:
    assert check_query(np.int64(100), np.array([0.1, 0.5]), 100) == Query(100, (0.1, 0.5))


@pytest.mark.parametrize("channels", [0, -1, 1.0, "1", None, True])
def test_bad_channels(channels: Any) -> None:
    with pytest.raises(InvalidInputError):
        check_channels(channels)


def test_series_become_columns() -> None:
    assert check_series(np.arange(3.0)).shape == (3, 1)
    for bad in (np.zeros((3, 1)), 1.0, ["a"]):
        with pytest.raises(InvalidInputError) as refused:
            check_series(bad)  # type: ignore[arg-type]
        assert refused.value.code == "wrong_shape"


def test_tokens_are_bounded_before_they_are_made() -> None:
    def tokens(samples: int, gap: float, channels: int = 1) -> int:
        values, steps = to_tokens(
            np.zeros((samples, channels)),
            np.full(samples, gap),
            channels=channels,
            max_gap=1 << 40,
            max_tokens=1000,
        )
        assert len(values) == len(steps)
        return len(values)

    assert tokens(1000, 1.0) == 1000
    assert tokens(500, 1.0, channels=2) == 500
    assert tokens(10, 100.0) == 1000
    for samples, gap, channels in [(1001, 1.0, 1), (501, 1.0, 2), (10, 101.0, 1), (1, 1e12, 1)]:
        with pytest.raises(InvalidInputError) as refused:
            tokens(samples, gap, channels)
        assert refused.value.code == "message_too_large"


def test_configurations_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="chunk_tokens"):
        EngineConfig(chunk_tokens=0)
