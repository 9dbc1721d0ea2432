"""Where samples come from: CSV and WAV files, standard input, this machine."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from kssm_client.errors import SourceError
from kssm_client.machine import MACHINE_SIGNALS, MachineSignals
from kssm_client.types import FloatArray

MACHINE_RATE = 10.0

_WAV_BLOCK_SECONDS = 0.02
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})


@dataclass(frozen=True, slots=True)
class Source:
    """Named channels and an iterator of frames, each [samples, channels], NaN = missing.

    ``interval`` is the time between samples in seconds where the source knows it.
    """

    channels: tuple[str, ...]
    frames: Iterator[FloatArray]
    interval: float | None = None


def open_source(
    name: str,
    *,
    columns: Sequence[str] = (),
    rate: float | None = None,
    stdin: TextIO | None = None,
) -> Source:
    """The source called ``name``: FILE.csv, FILE.wav, ``-`` or ``psutil:[cpu,memory,…]``.

    ``columns`` picks CSV columns by name or number from 0 (default: all that hold numbers).
    ``rate`` replays at so many samples a second (psutil: default 10). SourceError when it
    cannot be read.
    """
    if name.startswith("psutil:"):
        return machine_source(name.removeprefix("psutil:"), rate or MACHINE_RATE)
    if name == "-":
        source = lines_source(stdin or sys.stdin)
    elif name.lower().endswith(".wav"):
        source = wav_source(Path(name))
    else:
        source = csv_source(Path(name), columns)
    return source if rate is None else paced(source, rate)


def csv_source(path: Path, columns: Sequence[str] = ()) -> Source:
    """One sample a line of a CSV file, with or without a header."""
    names, table = read_csv(path, columns)
    return Source(names, (row.reshape(1, -1) for row in table))


def read_csv(path: Path, columns: Sequence[str] = ()) -> tuple[tuple[str, ...], FloatArray]:
    """Names and values [samples, columns] of a CSV file's numeric columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = _rows(file.read())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    if not rows:
        raise SourceError(f"{path} is empty")
    has_header = all(_number(cell) is None for cell in rows[0])
    header = rows[0] if has_header else [str(index) for index in range(len(rows[0]))]
    body = rows[1:] if has_header else rows
    picked = [_column_index(path, header, column) for column in columns]
    picked = picked or [i for i in range(len(header)) if _is_numeric(body, i)]
    if not picked or not body:
        raise SourceError(f"{path} has no column of numbers")
    table = [[_cell(path, row, index) for index in picked] for row in body]
    return tuple(header[index] for index in picked), np.array(table, dtype=np.float64)


def _rows(text: str) -> list[list[str]]:
    """The lines of a CSV file. A blank one is a missing sample where there is one column."""
    rows = list(csv.reader(io.StringIO(text.rstrip())))
    single = bool(rows) and len(rows[0]) == 1
    return [row or [""] for row in rows if row or single]


def _column_index(path: Path, header: Sequence[str], column: str) -> int:
    if column in header:
        return header.index(column)
    if column.isdecimal() and int(column) < len(header):
        return int(column)
    raise SourceError(f"{path} has no column {column!r}, it has {', '.join(header)}")


def _is_numeric(rows: Sequence[Sequence[str]], index: int) -> bool:
    numbers = [_number(row[index]) if index < len(row) else math.nan for row in rows]
    return None not in numbers and not all(math.isnan(n) for n in numbers if n is not None)


def _cell(path: Path, row: Sequence[str], index: int) -> float:
    text = row[index] if index < len(row) else ""
    value = _number(text)
    if value is None:
        raise SourceError(f"{path}: {text!r} is not a number")
    return value


def _number(text: str) -> float | None:
    """The number in a cell, NaN for a missing one, None for anything else."""
    stripped = text.strip()
    if stripped.lower() in _MISSING:
        return math.nan
    try:
        return float(stripped)
    except ValueError:
        return None


def wav_source(path: Path) -> Source:
    """Frames of 20 ms of a PCM WAV file, scaled to [-1, 1]."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise SourceError(f"cannot read {path}: {error}") from error
    samples = _pcm(path, data, width).reshape(-1, channels)
    block = max(1, round(rate * _WAV_BLOCK_SECONDS))
    frames = (samples[start : start + block] for start in range(0, len(samples), block))
    return Source(tuple(f"channel {i}" for i in range(channels)), frames, 1.0 / rate)


def _pcm(path: Path, data: bytes, width: int) -> FloatArray:
    raw = np.frombuffer(data, dtype=np.uint8)
    match width:
        case 1:
            return (raw.astype(np.float64) - 128.0) / 128.0
        case 2:
            return raw.view("<i2").astype(np.float64) / 2.0**15
        case 3:
            padded = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
            padded[:, 1:] = raw.reshape(-1, 3)
            return padded.ravel().view("<i4").astype(np.float64) / 2.0**31
        case 4:
            return raw.view("<i4").astype(np.float64) / 2.0**31
        case _:
            raise SourceError(f"{path}: samples of {width} bytes are not supported")


def lines_source(stream: TextIO) -> Source:
    """One sample a line of text: numbers between commas, semicolons or spaces.

    The first line that holds numbers decides how many channels there are; a line of names
    before it names them.
    """
    names: tuple[str, ...] = ()
    for line in stream:
        cells = _cells(line)
        if any(_number(cell) is None for cell in cells):
            names = tuple(cells)
        elif cells:
            first = _sample(cells, len(cells))
            if len(names) != len(cells):
                names = tuple(f"channel {i}" for i in range(len(cells)))
            return Source(names, _samples(first, stream))
    raise SourceError("no numbers on standard input")


def _samples(first: FloatArray, stream: TextIO) -> Iterator[FloatArray]:
    yield first
    for line in stream:
        if cells := _cells(line):
            yield _sample(cells, first.shape[1])


def _cells(line: str) -> list[str]:
    text = line.strip()
    return re.split(r"\s*[,;]\s*|\s+", text) if text else []


def _sample(cells: Sequence[str], channels: int) -> FloatArray:
    numbers = [_number(cell) for cell in cells]
    if len(numbers) != channels or None in numbers:
        raise SourceError(f"expected {channels} numbers, got {' '.join(cells)!r}")
    return np.array([numbers], dtype=np.float64)


def machine_source(
    selection: str,
    rate: float,
    *,
    read: Callable[[], dict[str, float]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Source:
    """This machine's load, sampled ``rate`` times a second for as long as it is read."""
    names = tuple(part.strip() for part in selection.split(",") if part.strip())
    unknown = set(names) - set(MACHINE_SIGNALS)
    if unknown:
        known = ", ".join(MACHINE_SIGNALS)
        raise SourceError(f"no signal {', '.join(sorted(unknown))}; there are {known}")
    chosen = names or tuple(MACHINE_SIGNALS)
    measure = read or MachineSignals().read

    def frames() -> Iterator[FloatArray]:
        while True:
            values = measure()
            yield np.array([[values[name] for name in chosen]])

    endless = Source(chosen, frames(), 1.0 / rate)
    return paced(endless, rate, clock=clock, sleep=sleep)


def paced(
    source: Source,
    rate: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Source:
    """The same frames, each read no sooner than ``rate`` samples a second allow."""
    if not rate > 0:
        raise SourceError(f"the rate must be positive, not {rate}")
    frames = _on_time(source.frames, rate, clock, sleep)
    return replace(source, frames=frames, interval=source.interval or 1.0 / rate)


def _on_time(
    frames: Iterable[FloatArray],
    rate: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[FloatArray]:
    due = clock()
    for frame in frames:
        yield frame
        due += len(frame) / rate
        sleep(max(0.0, due - clock()))
