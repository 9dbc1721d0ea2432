"""Series out of tables: CSV and Parquet files in wide or long format, or folders of them."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kssm.errors import InvalidInputError
from kssm.training.readers import INDEX_COLUMNS, MISSING_TOKENS

Floats = NDArray[np.float64]
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class TableFormat:
    """How a table holds its series.

    Attributes:
        column: the only column of values to use; None = every column of numbers.
        id_column: long format: rows with the same entry here are one series.
        timestamp_column: rows are put in the order of this column (ISO 8601 or numbers); None =
            they are in order.
    """

    column: str | None = None
    id_column: str | None = None
    timestamp_column: str | None = None


def read_series(path: str | Path, table: TableFormat | None = None) -> dict[str, Floats]:
    """The series of a file, or of all .csv and .parquet files of a folder, by name; NaN = missing.

    Raises ``InvalidInputError``: ``file_not_found``, ``invalid_corpus`` (not a table, or without a
    column of numbers), ``column_not_found``, ``invalid_timestamps``.
    """
    place, layout = Path(path), table or TableFormat()
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in _READERS)
        found = {f"{f.stem}/{k}": v for f in files for k, v in _read_file(f, layout).items()}
    elif place.is_file():
        found = _read_file(place, layout)
    else:
        raise InvalidInputError(f"{place} does not exist", code="file_not_found")
    if not found:
        raise InvalidInputError(f"{place} holds no columns of numbers", code="invalid_corpus")
    return found


def _read_file(path: Path, table: TableFormat) -> dict[str, Floats]:
    if path.suffix.lower() not in _READERS:
        message = f"{path.name}: neither {' nor '.join(sorted(_READERS))}"
        raise InvalidInputError(message, code="invalid_corpus")
    columns = _READERS[path.suffix.lower()](path)
    for name in (table.column, table.id_column, table.timestamp_column):
        if name is not None and name not in columns:
            message = f"{path.name} has no column {name!r}, only {', '.join(map(repr, columns))}"
            raise InvalidInputError(message, code="column_not_found")
    columns = _in_order(columns, table.timestamp_column, path)
    aside = (table.id_column, table.timestamp_column)
    values = {name: cells for name, cells in columns.items() if name not in aside}
    if table.column is not None:
        values = {table.column: values[table.column]}
    elif table.id_column is None or len(values) > 1:
        values = {k: v for k, v in values.items() if k.strip().lower() not in INDEX_COLUMNS}
    numbers = {
        name: found for name, cells in values.items() if (found := _numbers(cells)) is not None
    }
    if table.id_column is None:
        return numbers
    return _by_id(columns[table.id_column], numbers)


def _read_csv(path: Path) -> Columns:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path.name}: not CSV: {error}", code="invalid_corpus") from error
    if len(rows) < 2:
        message = f"{path.name} needs a header and at least one line of values"
        raise InvalidInputError(message, code="invalid_corpus")
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            message = f"{path.name}: row {number} has {len(row)} cells, the header {len(header)}"
            raise InvalidInputError(message, code="invalid_corpus")
    return {name: list(cells) for name, cells in zip(header, zip(*body, strict=True), strict=True)}


def _read_parquet(path: Path) -> Columns:
    try:
        pandas: Any = importlib.import_module("pandas")
        frame: Any = pandas.read_parquet(path)
    except ImportError as error:
        message = "reading Parquet needs pandas and pyarrow: pip install 'kssm[eval,train]'"
        raise InvalidInputError(message, code="missing_dependency") from error
    except Exception as error:  # the engines raise exception types of their own
        message = f"{path.name} is not a readable Parquet file: {error}"
        raise InvalidInputError(message, code="invalid_corpus") from error
    return {str(name): frame[name].tolist() for name in frame.columns}


def _in_order(columns: Columns, timestamp: str | None, path: Path) -> Columns:
    if timestamp is None:
        return columns
    try:
        moments = [_moment(cell) for cell in columns[timestamp]]
    except (TypeError, ValueError) as error:
        message = f"{path.name}: a timestamp is neither ISO 8601 nor a number: {error}"
        raise InvalidInputError(message, code="invalid_timestamps") from error
    order = sorted(range(len(moments)), key=moments.__getitem__)
    return {name: [cells[i] for i in order] for name, cells in columns.items()}


def _moment(cell: Any) -> float:
    if isinstance(cell, datetime):
        return cell.timestamp()
    try:
        return float(cell)
    except ValueError:
        return datetime.fromisoformat(str(cell).strip()).timestamp()


def _numbers(cells: Sequence[Any]) -> Floats | None:
    """The cells as float64, infinities as missing; None if one is neither number nor missing."""
    try:
        found = np.array([_number(cell) for cell in cells])
    except (TypeError, ValueError):
        return None
    found[~np.isfinite(found)] = np.nan
    return None if np.isnan(found).all() else found


def _number(cell: Any) -> float:
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING_TOKENS):
        return float("nan")
    return float(cell)


def _by_id(ids: Sequence[Any], columns: Mapping[str, Floats]) -> dict[str, Floats]:
    places: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        places.setdefault(str(name), []).append(row)
    only = len(columns) == 1
    return {
        (series if only else f"{series}/{name}"): values[rows]
        for series, rows in places.items()
        for name, values in columns.items()
    }


_READERS: Mapping[str, Callable[[Path], Columns]] = MappingProxyType(
    {".csv": _read_csv, ".parquet": _read_parquet}
)
