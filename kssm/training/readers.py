"""Readers of corpus files: each returns the series of one file.

A file that does not hold what its suffix promises raises ``InvalidInputError`` with the code
``invalid_corpus`` and the file's name.
"""

from __future__ import annotations

import csv
import importlib
import wave
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kssm.errors import InvalidInputError

SourceSeries = list[np.ndarray]

MISSING_TOKENS = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?"})
# Columns that number or date the rows.
INDEX_COLUMNS = frozenset({"", "index", "id", "time", "timestamp", "date", "datetime", "ds"})
PCM_LIMITS = {1: 128.0, 2: 32768.0, 3: 8388608.0, 4: 2147483648.0}


def _invalid(path: Path, reason: str) -> InvalidInputError:
    return InvalidInputError(f"{path.name}: {reason}", code="invalid_corpus", file=str(path))


def read_npz(path: Path) -> SourceSeries:
    """``values`` (flat, floats, NaN = missing) cut at ``offsets`` (int64, first 0, rising)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            values, offsets = np.asarray(archive["values"]), np.asarray(archive["offsets"])
    except KeyError as error:
        raise _invalid(path, "needs the arrays 'values' and 'offsets'") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _invalid(path, f"is not a readable npz file ({error})") from error
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise _invalid(path, "'values' must be one flat array of numbers")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise _invalid(path, "'offsets' must be a flat array of at least two integers")
    bounds = offsets.astype(np.int64)
    if bounds[0] != 0 or bounds[-1] != len(values) or (np.diff(bounds) < 0).any():
        raise _invalid(path, "'offsets' must rise from 0 to the number of values")
    return np.split(values.astype(np.float32), bounds[1:-1])


def read_csv(path: Path) -> SourceSeries:
    """Every numeric column below a header line; empty cells, NA, NaN and null are missing.

    Columns that only number or date the rows (by their name) and columns with other text are
    passed over.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _invalid(path, f"is not a readable CSV file ({error})") from error
    if len(rows) < 2:
        raise _invalid(path, "needs a header and at least one line of values")
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise _invalid(path, f"row {number} has {len(row)} cells, the header {len(header)}")
    names = [name.strip().lower() for name in header]
    columns = zip(names, zip(*body, strict=True), strict=True)
    series = [_numbers(cells) for name, cells in columns if name not in INDEX_COLUMNS]
    return _some(path, [x for x in series if x is not None])


def _numbers(cells: tuple[str, ...]) -> np.ndarray | None:
    """The cells as float32, or None if one of them is neither a number nor missing."""
    try:
        numbers = [
            float("nan") if cell.strip().lower() in MISSING_TOKENS else float(cell)
            for cell in cells
        ]
    except ValueError:
        return None
    return np.array(numbers, dtype=np.float64).astype(np.float32)


def _some(path: Path, series: SourceSeries) -> SourceSeries:
    if not any(np.isfinite(x).any() for x in series):
        raise _invalid(path, "has no numeric column")
    return series


def read_parquet(path: Path) -> SourceSeries:
    """Every numeric column; needs pandas with a Parquet engine (pyarrow)."""
    try:
        pandas: Any = importlib.import_module("pandas")
        frame: Any = pandas.read_parquet(path)
    except ImportError as error:
        raise _invalid(path, "reading Parquet needs pandas and pyarrow") from error
    except Exception as error:  # the engines raise exception types of their own
        raise _invalid(path, f"is not a readable Parquet file ({error})") from error
    numeric = frame.select_dtypes("number")
    kept = [name for name in numeric.columns if str(name).lower() not in INDEX_COLUMNS]
    return _some(
        path, [np.asarray(numeric[name].to_numpy("float32", na_value=np.nan)) for name in kept]
    )


def read_wav(path: Path) -> SourceSeries:
    """Each channel of an integer PCM file (8, 16, 24 or 32 bits), scaled to -1 ... 1."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width = file.getnchannels(), file.getsampwidth()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise _invalid(path, f"is not a readable PCM WAV file ({error})") from error
    if width not in PCM_LIMITS or len(raw) < channels * width:
        raise _invalid(path, f"has no samples, or samples of {8 * width} bits")
    whole = len(raw) // (channels * width) * channels * width
    frames = _pcm(raw[:whole], width).reshape(-1, channels)
    return list(np.ascontiguousarray((frames / PCM_LIMITS[width]).T.astype(np.float32)))


def _pcm(raw: bytes, width: int) -> np.ndarray:
    """Little-endian integers as float64; eight bits are unsigned around 128."""
    octets = np.frombuffer(raw, dtype=np.uint8)
    if width == 1:
        return octets.astype(np.float64) - 128.0
    padded = np.zeros((len(octets) // width, 4), dtype=np.uint8)
    padded[:, 4 - width :] = octets.reshape(-1, width)
    return padded.view("<i4").ravel().astype(np.float64) / 256.0 ** (4 - width)


READERS: Mapping[str, Callable[[Path], SourceSeries]] = MappingProxyType(
    {".npz": read_npz, ".csv": read_csv, ".parquet": read_parquet, ".wav": read_wav}
)
