"""What one cell of a CSV file says: a number, a missing value, a time, or text."""

from __future__ import annotations

import math
from datetime import datetime

MISSING = frozenset({"", "-", "?", "n/a", "na", "nan", "none", "null", "#n/a", "<na>"})


def parse_number(cell: str, decimal: str = ".") -> float | None:
    """The cell's number, NaN where the value is missing, None where the cell is text."""
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    if "_" in text:
        return None
    try:
        return float(text if decimal == "." else text.replace(decimal, "."))
    except ValueError:
        return None


def is_missing(cell: str) -> bool:
    """Whether the cell is empty or one of the usual marks for "no value"."""
    return cell.strip().lower() in MISSING


def parse_time(cell: str) -> datetime | None:
    """The cell's ISO 8601 date or time (slashes allowed), None where it is neither."""
    text = cell.strip()
    if len(text) < len("2024-01-01") or not text[:4].isdigit() or text[4] not in "-/":
        return None
    try:
        return datetime.fromisoformat(text.replace("/", "-"))
    except ValueError:
        return None
