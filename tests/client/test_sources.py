"""Reading samples: files, lines, this machine, and their pace."""

from __future__ import annotations

import io
import wave
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kssm_client.errors import SourceError
from kssm_client.machine import MACHINE_SIGNALS, MachineSignals
from kssm_client.sources import machine_source, open_source, paced, read_csv


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_takes_every_column_of_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "when,a,b\nmon,1,2\ntue,,4.5\nwed,NA,-1e3\n")
    source = open_source(str(file))
    assert source.channels == ("a", "b")
    frames = list(source.frames)
    assert [frame.shape for frame in frames] == [(1, 2)] * 3
    np.testing.assert_array_equal(np.vstack(frames), [[1, 2], [np.nan, 4.5], [np.nan, -1000]])


@pytest.mark.parametrize(
    ("columns", "expected"), [(["b"], [2.0, 4.0]), (["2"], [2.0, 4.0]), (["1"], [1.0, 3.0])]
)
def test_csv_columns_by_name_and_number(
    tmp_path: Path, columns: list[str], expected: list[float]
) -> None:
    file = write(tmp_path / "x.csv", "t,a,b\nx,1,2\ny,3,4\n")
    _, table = read_csv(file, columns)
    assert table[:, 0].tolist() == expected


def test_csv_without_header(tmp_path: Path) -> None:
    names, table = read_csv(write(tmp_path / "x.csv", "1,2\n3,4\n"))
    assert names == ("0", "1")
    assert table.shape == (2, 2)


def test_a_blank_line_of_a_single_column_is_a_missing_sample(tmp_path: Path) -> None:
    _, table = read_csv(write(tmp_path / "x.csv", "a\n1\n\n3\n\n"))
    np.testing.assert_array_equal(table, [[1], [np.nan], [3]])
    _, table = read_csv(write(tmp_path / "y.csv", "a,b\n1,2\n\n3,4\n"))
    np.testing.assert_array_equal(table, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", [], "empty"),
        ("a,b\nx,y\n", [], "no column of numbers"),
        ("a\n1\n", ["c"], "no column 'c'"),
        ("a,b\n1,x\n", ["b"], "not a number"),
    ],
)
def test_csv_that_cannot_be_used(
    tmp_path: Path, text: str, columns: list[str], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read_csv(write(tmp_path / "x.csv", text), columns)


@pytest.mark.parametrize("name", ["absent.csv", "absent.wav"])
def test_files_that_are_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_in_every_width(tmp_path: Path, width: int) -> None:
    path = tmp_path / "x.wav"
    wanted = np.array([0.0, 0.5, -0.5, -1.0] * 100)
    if width == 1:
        data = (wanted * 128 + 128).astype(np.uint8).tobytes()
    else:
        scaled = (wanted * 2.0 ** (8 * width - 1)).astype("<i4")
        data = b"".join(int(v).to_bytes(width, "little", signed=True) for v in scaled)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(data)
    source = open_source(str(path))
    frames = list(source.frames)
    assert source.interval == 1 / 8000
    assert len(source.channels) == 2
    assert [len(frame) for frame in frames] == [160, 40]
    np.testing.assert_array_equal(np.vstack(frames), wanted.reshape(-1, 2))


def test_lines_with_any_separator_names_and_gaps() -> None:
    text = "cpu, mem\n\n1, 2\n3;nan\n5 6\n"
    source = open_source("-", stdin=io.StringIO(text))
    assert source.channels == ("cpu", "mem")
    np.testing.assert_array_equal(np.vstack(list(source.frames)), [[1, 2], [3, np.nan], [5, 6]])


def test_lines_are_read_as_they_come() -> None:
    source = open_source("-", stdin=io.StringIO("1\n2\nx\n"))
    assert source.channels == ("channel 0",)
    assert next(source.frames).tolist() == [[1.0]]
    assert next(source.frames).tolist() == [[2.0]]
    with pytest.raises(SourceError, match="expected 1 numbers"):
        next(source.frames)


def test_lines_without_numbers() -> None:
    with pytest.raises(SourceError, match="no numbers"):
        open_source("-", stdin=io.StringIO("\nhello\n"))


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_pace_makes_up_for_late_readers() -> None:
    clock = Clock()
    source = open_source("-", stdin=io.StringIO("1\n2\n3\n4\n"))
    frames = paced(source, 10.0, clock=clock, sleep=clock.sleep).frames
    next(frames)
    next(frames)
    clock.now += 0.15
    next(frames)
    next(frames)
    assert clock.slept == pytest.approx([0.1, 0.0, 0.05])
    with pytest.raises(SourceError, match="rate"):
        paced(source, 0.0)


def test_machine_signals_are_rates_between_readings() -> None:
    clock = Clock()
    disk = SimpleNamespace(read_bytes=1_000_000, write_bytes=0)
    network = SimpleNamespace(bytes_sent=500, bytes_recv=500)
    psutil = SimpleNamespace(
        cpu_percent=lambda interval: 12.5,
        virtual_memory=lambda: SimpleNamespace(percent=40.0),
        disk_io_counters=lambda: disk,
        net_io_counters=lambda: network,
    )
    signals = MachineSignals(clock, psutil)
    clock.now += 0.5
    disk.write_bytes += 2_000_000
    network.bytes_recv += 3_000
    assert signals.read() == {"cpu": 12.5, "memory": 40.0, "disk": 4.0, "network": 6.0}
    psutil.disk_io_counters = lambda: None
    clock.now += 1.0
    assert signals.read()["network"] == 0.0


def test_machine_source_reads_what_is_asked() -> None:
    clock = Clock()
    source = machine_source(
        "memory,cpu",
        10.0,
        read=lambda: {"cpu": 1.0, "memory": 2.0, "disk": 3.0, "network": 4.0},
        clock=clock,
        sleep=clock.sleep,
    )
    assert (source.channels, source.interval) == (("memory", "cpu"), 0.1)
    assert [frame.tolist() for frame in islice(source.frames, 2)] == [[[2.0, 1.0]]] * 2
    with pytest.raises(SourceError, match="no signal gpu"):
        machine_source("gpu", 10.0)


def test_this_machine_can_be_read() -> None:
    pytest.importorskip("psutil")
    values = MachineSignals().read()
    assert set(values) == set(MACHINE_SIGNALS)
    assert 0 < values["memory"] <= 100
