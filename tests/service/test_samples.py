from __future__ import annotations

import base64

import numpy as np
import pytest

from kssm.errors import InvalidInputError
from service import samples


def code_of(call, *args) -> str:
    with pytest.raises(InvalidInputError) as caught:
        call(*args)
    return caught.value.code


def test_rows_are_samples_by_channels_and_null_is_nan():
    array = samples.rows([[1, 2.5], [None, -3]])
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, [[1.0, 2.5], [np.nan, -3.0]])


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (None, "invalid_message"),
        ({}, "invalid_message"),
        ([], "empty_frame"),
        ([1.0], "invalid_message"),
        ([[1.0], 2.0], "invalid_message"),
        ([[]], "wrong_shape"),
        ([[1.0], [1.0, 2.0]], "wrong_shape"),
        ([[True]], "invalid_message"),
        ([["1"]], "invalid_message"),
        ([[[1.0]]], "invalid_message"),
    ],
)
def test_rows_name_what_is_wrong(values, code):
    assert code_of(samples.rows, values) == code


def test_column_is_one_series():
    np.testing.assert_array_equal(samples.column([1, None, 2.0]), [1.0, np.nan, 2.0])


@pytest.mark.parametrize(
    ("values", "code"),
    [([], "empty_frame"), ("1", "invalid_message"), ([[1.0]], "invalid_message")],
)
def test_column_names_what_is_wrong(values, code):
    assert code_of(samples.column, values) == code


def test_base64_is_flat_float32():
    sent = np.array([1.5, np.nan, -2.0], dtype="<f4")
    got = samples.from_base64(base64.b64encode(sent.tobytes()).decode())
    np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_frame"),
        ("AAA", "invalid_message"),
        ("é", "invalid_message"),
        ("AAAA AAAA", "invalid_message"),
        (base64.b64encode(b"12345").decode(), "truncated_frame"),
    ],
)
def test_base64_names_what_is_wrong(text, code):
    assert code_of(samples.from_base64, text) == code


def test_timestamps_are_seconds_or_iso_8601():
    stamps = [
        "2024-01-01T00:00:00Z",
        1704067201,
        "2024-01-01T01:00:02+01:00",
        "2024-01-01T00:00:03",
    ]
    expected = 1704067200.0 + np.arange(4)
    np.testing.assert_array_equal(samples.timestamps(stamps), expected)
    np.testing.assert_array_equal(samples.timestamps([1, 2.5]), [1.0, 2.5])


def test_timestamps_reach_to_the_year_9999():
    last = samples.timestamps(["9999-12-31T23:59:59Z"])
    np.testing.assert_array_equal(samples.timestamps([253_402_300_799]), last)


@pytest.mark.parametrize(
    "stamps",
    [
        *([], None, "2024", [None], [True], ["soon"], [[1]], ["9" * 40]),
        *([1.0, 253_402_300_800], [1_767_225_600_000], [-1e300], [0.0, 1e300]),
    ],
)
def test_timestamps_name_what_is_wrong(stamps):
    assert code_of(samples.timestamps, stamps) == "invalid_timestamps"
