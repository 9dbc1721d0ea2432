"""Tables as series: wide and long, ordered, missing values, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kssm.errors import InvalidInputError
from kssm.training.tables import TableFormat, read_series

LONG = "id,when,x,y\nb,2024-01-02,20,1\na,2024-01-02,2,2\na,2024-01-01,1,3\nb,2024-01-01,,4\n"


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def same(found: dict[str, np.ndarray], expected: dict[str, list[float]]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], np.array(values), equal_nan=True)
        for name, values in expected.items()
    )


def test_wide_tables_give_every_column_of_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "date,a,b,note\nx,1,NA,u\ny,2.5,inf,v\nz,1013250000.01,7,w\n")
    nan = float("nan")
    assert same(read_series(path), {"a": [1, 2.5, 1013250000.01], "b": [nan, nan, 7]})
    assert same(read_series(path, TableFormat(column="b")), {"b": [nan, nan, 7]})


def test_long_tables_are_cut_by_id_and_put_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, LONG)
    table = TableFormat(column="x", id_column="id", timestamp_column="when")
    assert same(read_series(path, table), {"a": [1, 2], "b": [float("nan"), 20]})
    both = read_series(path, TableFormat(id_column="id", timestamp_column="when"))
    assert same(both, {"a/x": [1, 2], "a/y": [3, 2], "b/x": [float("nan"), 20], "b/y": [4, 1]})


def test_numeric_timestamps(tmp_path: Path) -> None:
    path = write(tmp_path, "t,x\n10,3\n9,2\n-1,1\n")
    assert same(read_series(path, TableFormat(timestamp_column="t")), {"x": [1, 2, 3]})


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    csv = write(tmp_path, LONG)
    pd.read_csv(csv, parse_dates=["when"]).to_parquet(tmp_path / "t.parquet")
    table = TableFormat(column="x", id_column="id", timestamp_column="when")
    assert same(read_series(tmp_path / "t.parquet", table), {"a": [1, 2], "b": [float("nan"), 20]})


def test_folders_join_their_files(tmp_path: Path) -> None:
    write(tmp_path, "x\n1\n2\n", "one.csv")
    write(tmp_path, "x\n3\n4\n", "two.csv")
    write(tmp_path, "not a table", "readme.txt")
    assert same(read_series(tmp_path), {"one/x": [1, 2], "two/x": [3, 4]})


@pytest.mark.parametrize(
    ("text", "table", "code"),
    [
        ("x\n1\n", TableFormat(column="z"), "column_not_found"),
        ("x,t\n1,soon\n", TableFormat(timestamp_column="t"), "invalid_timestamps"),
        ("x\nword\n", TableFormat(), "invalid_corpus"),
        ("x\n", TableFormat(), "invalid_corpus"),
        ("x,y\n1\n", TableFormat(), "invalid_corpus"),
    ],
)
def test_refusals(tmp_path: Path, text: str, table: TableFormat, code: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        read_series(write(tmp_path, text), table)
    assert error.value.code == code


def test_what_is_not_there_or_no_table(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        read_series(tmp_path / "absent.csv")
    assert error.value.code == "file_not_found"
    with pytest.raises(InvalidInputError):
        read_series(write(tmp_path, "x", "t.txt"))
    broken = write(tmp_path, "x", "t.parquet")
    with pytest.raises(InvalidInputError):
        read_series(broken)
