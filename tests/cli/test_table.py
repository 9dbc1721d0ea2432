"""CSV files as people have them."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kssm.cli.table import Signal, read_signal
from kssm.errors import InvalidInputError


def read(tmp_path: Path, text: str | bytes, column: str | None = None) -> Signal:
    path = tmp_path / "signal.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_signal(path, column)


def code_of(tmp_path: Path, text: str, column: str | None = None) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, text, column)
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("x\n1\n2.5\n-3e2\n", "x", (1, 2.5, -300)),
        ("1\n2\n3\n", "column 1", (1, 2, 3)),
        ("when,load\n2024-01-01,5\n2024-01-02,6\n", "load", (5, 6)),
        ("load;note\n1,5;a\n2,5;b\n", "load", (1.5, 2.5)),
        ("load;other\n1.5;2.5\n2.5;3.5\n", "load", (1.5, 2.5)),
        ("a\tb\nx\t1\ny\t2\n", "b", (1, 2)),
        ("timestamp,v\n1700000000,4\n1700000060,5\n", "v", (4, 5)),
        (",v\n0,4\n1,5\n2,9\n", "v", (4, 5, 9)),
        ('"load, kW",n\n"1",x\n"2",y\n', "load, kW", (1, 2)),
        ("\ufeffv\n1\n2\n", "v", (1, 2)),
        ("v\r\n1\r\n2\r\n", "v", (1, 2)),
        ("v,\n1,\n2,\n", "v", (1, 2)),
        ("v,w\n1,2\n\n3,4\n", "v", (1, 3)),
    ],
)
def test_column_and_values(tmp_path, text, name, values):
    signal = read(tmp_path, text)
    assert signal.name == name
    assert signal.values == values


@pytest.mark.parametrize("mark", ["", "NaN", "NA", "null", "None", "-", "?", "n/a"])
def test_marks_for_no_value_are_missing_samples(tmp_path, mark):
    values = read(tmp_path, f"t,v\n2024-01-01,1\n2024-01-02,{mark}\n2024-01-03,3\n").values
    assert values[0] == 1
    assert math.isnan(values[1])
    assert values[2] == 3


def test_blank_line_in_a_single_column_is_a_missing_sample(tmp_path):
    values = read(tmp_path, "v\n1\n\n3\n\n").values
    assert values[::2] == (1, 3)
    assert math.isnan(values[1])
    assert len(values) == 3


def test_latin1_header(tmp_path):
    assert read(tmp_path, "k\u00e4lte\n1\n2\n".encode("latin-1")).name == "k\u00e4lte"


def test_named_column_and_alternatives(tmp_path):
    text = "time,a,b,note\n2024-01-01 00:00,1,4,x\n2024-01-01 01:00,2,5,y\n"
    signal = read(tmp_path, text, "b")
    assert signal.values == (4, 5)
    assert signal.alternatives == ("a",)
    assert signal.times is not None
    assert signal.times.name == "time"


@pytest.mark.parametrize(
    ("text", "column", "code"),
    [
        ("", None, "invalid_csv"),
        ("v\n", None, "invalid_csv"),
        ("a,b\n1,2,3\n", None, "invalid_csv"),
        ("a,b\n1,2\n", "c", "column_not_found"),
        ("a\nx\ny\n", None, "no_numeric_column"),
        ("a,b\n1,x\n2,y\n", "b", "no_numeric_column"),
        ("v\n1\ninf\n", None, "non_finite_value"),
        ("v\nNaN\n\nNaN\n", None, "no_numeric_column"),
    ],
)
def test_errors_have_codes(tmp_path, text, column, code):
    assert code_of(tmp_path, text, column) == code


def test_error_names_the_line(tmp_path):
    with pytest.raises(InvalidInputError, match="line 3 of column 'b'") as caught:
        read(tmp_path, "a,b\n1,2\n3,oops\n", "b")
    assert caught.value.details == {"line": 3}


def test_absent_file(tmp_path):
    with pytest.raises(InvalidInputError) as caught:
        read_signal(tmp_path / "absent.csv")
    assert caught.value.code == "file_not_found"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_numbers_survive_exactly(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("csv") / "signal.csv"
    path.write_text("value\n" + "\n".join(repr(number) for number in numbers))
    assert read_signal(path).values == tuple(numbers)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_signal_or_a_coded_error(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("csv") / "signal.csv"
    path.write_bytes(raw)
    with contextlib.suppress(InvalidInputError):
        assert not any(math.isinf(value) for value in read_signal(path).values)
