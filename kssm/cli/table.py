"""Reads one signal out of a CSV file that nobody prepared for it.

The separator, the header and the column of times are recognised, the usual marks for "no value"
become missing samples, and what cannot be read is an error that names the line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kssm.cli.cells import is_missing, parse_number, parse_time
from kssm.errors import InvalidInputError

SEPARATORS = (",", ";", "\t", "|")
SNIFFED_LINES = 20
TIME_NAMES = frozenset({"date", "datetime", "ds", "time", "timestamp", "ts"})

Row = tuple[int, list[str]]  # the line in the file (from 1) and its cells


@dataclass(frozen=True)
class Column:
    """A named column; ``lines[i]`` is where in the file ``cells[i]`` stands."""

    name: str
    cells: tuple[str, ...]
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Signal:
    """A column of numbers (NaN = missing), the column of times if any, and the other choices."""

    name: str
    values: tuple[float, ...]
    times: Column | None
    alternatives: tuple[str, ...]


def read_signal(path: Path, column: str | None = None) -> Signal:
    """Read ``column`` of the CSV file at ``path``, by default its first column of numbers.

    Raises ``InvalidInputError``: ``file_not_found``, ``invalid_csv``, ``column_not_found``,
    ``no_numeric_column`` or ``non_finite_value``.
    """
    text = _read_text(path)
    separator = _separator(text)
    decimal = "," if separator == ";" and not _has_decimal_points(text) else "."
    columns = _columns(_rows(text, separator), decimal)
    times = next((c for c in columns if _is_time(c, decimal)), None)
    numeric = [c for c in columns if c is not times and _is_numeric(c, decimal)]
    chosen = _choose(columns, numeric, column)
    others = tuple(c.name for c in numeric if c is not chosen)
    return Signal(chosen.name, _values(chosen, decimal), times, others)


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}"
        raise InvalidInputError(message, code="file_not_found") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _separator(text: str) -> str:
    """The separator that cuts the first lines into the most columns, equally many in each."""
    lines = [line for line in text.splitlines() if line.strip()][:SNIFFED_LINES]

    def quality(separator: str) -> tuple[int, int]:
        widths = {len(cells) for cells in csv.reader(lines, delimiter=separator)}
        return (max(widths, default=0) if len(widths) == 1 else 1, text.count(separator))

    return max(SEPARATORS, key=quality)


def _has_decimal_points(text: str) -> bool:
    cells = [cell for line in text.splitlines()[:SNIFFED_LINES] for cell in line.split(";")]
    return any("." in cell and parse_number(cell) is not None for cell in cells)


def _rows(text: str, separator: str) -> list[Row]:
    """All rows at equal width. A blank line is a missing sample only where there is one column."""
    reader = csv.reader(text.rstrip().splitlines(), delimiter=separator)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        message = f"line {reader.line_num} is not CSV: {error}"
        raise InvalidInputError(message, code="invalid_csv") from error
    if not rows:
        raise InvalidInputError("the file is empty", code="invalid_csv")
    width = len(rows[0][1])
    kept = [(line, cells) for line, cells in rows if cells or width == 1]
    return [(line, _at_width(line, cells, width)) for line, cells in kept]


def _at_width(line: int, cells: list[str], width: int) -> list[str]:
    if any(cells[width:]):
        message = f"line {line} has {len(cells)} cells where the first line has {width}"
        raise InvalidInputError(message, code="invalid_csv", line=line)
    return (cells + [""] * width)[:width]


def _columns(rows: Sequence[Row], decimal: str) -> list[Column]:
    header = _has_header(rows, decimal)
    names = rows[0][1] if header else [f"column {i + 1}" for i in range(len(rows[0][1]))]
    body = rows[1:] if header else rows
    if not body:
        raise InvalidInputError("the file has a header and no data", code="invalid_csv")
    lines = tuple(line for line, _ in body)
    cells = zip(*(cells for _, cells in body), strict=True)
    return [Column(name, column, lines) for name, column in zip(names, cells, strict=True)]


def _has_header(rows: Sequence[Row], decimal: str) -> bool:
    """A first row without any number, or one with text above numbers or times."""
    first, body = rows[0][1], [cells for _, cells in rows[1 : SNIFFED_LINES + 1]]
    named = [i for i, cell in enumerate(first) if _is_text(cell, decimal)]
    if not named:
        return False
    if len(named) == sum(not is_missing(cell) for cell in first):
        return True
    return any(not _is_text(cells[i], decimal) for i in named for cells in body)


def _is_text(cell: str, decimal: str) -> bool:
    return parse_number(cell, decimal) is None and parse_time(cell) is None


def _is_time(column: Column, decimal: str) -> bool:
    """Whether every cell is a date, or a number under a name that means time."""
    if column.name.lower() in TIME_NAMES and _is_numeric(column, decimal):
        return True
    return all(parse_time(cell) is not None for cell in column.cells)


def _is_numeric(column: Column, decimal: str) -> bool:
    """Whether the column holds numbers and missing values only, at least one number."""
    numbers = [parse_number(cell, decimal) for cell in column.cells]
    known = [number for number in numbers if number is not None]
    return len(known) == len(numbers) and not all(math.isnan(number) for number in known)


def _choose(columns: Sequence[Column], numeric: Sequence[Column], name: str | None) -> Column:
    if name is not None:
        found = next((c for c in columns if c.name == name), None)
        if found is None:
            listed = ", ".join(repr(c.name) for c in columns)
            message = f"there is no column {name!r}; the file has {listed}"
            raise InvalidInputError(message, code="column_not_found")
        return found
    data = [c for c in numeric if not _is_row_number(c)] or list(numeric)
    if not data:
        raise InvalidInputError("no column holds numbers only", code="no_numeric_column")
    return data[0]


def _is_row_number(column: Column) -> bool:
    """Whether this is the unnamed index that some tools write before the data."""
    if column.name:
        return False
    start = parse_number(column.cells[0])
    return all(parse_number(cell) == i + (start or 0) for i, cell in enumerate(column.cells))


def _values(column: Column, decimal: str) -> tuple[float, ...]:
    return tuple(
        _value(column.name, cell, line, decimal)
        for cell, line in zip(column.cells, column.lines, strict=True)
    )


def _value(name: str, cell: str, line: int, decimal: str) -> float:
    number = parse_number(cell, decimal)
    if number is None:
        message = f"line {line} of column {name!r} is not a number: {cell!r}"
        raise InvalidInputError(message, code="no_numeric_column", line=line)
    if math.isinf(number):
        message = f"line {line} of column {name!r} is infinite"
        raise InvalidInputError(message, code="non_finite_value", line=line)
    return number
