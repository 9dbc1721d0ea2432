"""Corpus files: what they may hold and how they fail."""

from __future__ import annotations

import importlib
import wave
from pathlib import Path

import numpy as np
import pytest

from kssm.errors import InvalidInputError
from kssm.training import readers


def refused(reader, path: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        reader(path)
    assert caught.value.code == "invalid_corpus"
    assert path.name in caught.value.message
    assert caught.value.details["file"] == str(path)
    return caught.value.message


def write_wav(path: Path, samples: np.ndarray, width: int, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())


def test_npz_is_cut_at_its_offsets(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    values = np.array([1, 2, np.nan, 4, 5], dtype=np.float16)
    np.savez(path, values=values, offsets=np.array([0, 3, 5]), freqs=np.array(["H"]))
    first, second = readers.read_npz(path)
    np.testing.assert_array_equal(first, np.array([1, 2, np.nan], dtype=np.float32))
    np.testing.assert_array_equal(second, np.array([4, 5], dtype=np.float32))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"values": np.ones(3)}, "offsets"),
        ({"values": np.ones((3, 1)), "offsets": np.array([0, 3])}, "flat"),
        ({"values": np.array(["a"]), "offsets": np.array([0, 1])}, "numbers"),
        ({"values": np.ones(3), "offsets": np.array([0, 4])}, "rise"),
        ({"values": np.ones(3), "offsets": np.array([0, 2, 1, 3])}, "rise"),
        ({"values": np.ones(3), "offsets": np.array([1, 3])}, "rise"),
        ({"values": np.ones(3), "offsets": np.array([0.0, 3.0])}, "integers"),
        ({"values": np.ones(3), "offsets": np.array([0])}, "two integers"),
    ],
)
def test_malformed_npz_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    assert reason in refused(readers.read_npz, path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_broken_npz_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    refused(readers.read_npz, path)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "pickled.npz"
    np.savez(path, values=np.array([{"a": 1}], dtype=object), offsets=np.array([0, 1]))
    refused(readers.read_npz, path)


def test_csv_columns_become_series(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(
        "Date,load,note,temp\n2024-01-01,1,x,-1.5\n2024-01-02,,y,NaN\n2024-01-03,3,,2e2\n"
    )
    load, temp = readers.read_csv(path)
    np.testing.assert_array_equal(load, np.array([1, np.nan, 3], dtype=np.float32))
    np.testing.assert_array_equal(temp, np.array([-1.5, np.nan, 200], dtype=np.float32))


def test_csv_index_columns_are_no_series(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(",timestamp,id,value\n0,1700000000,7,1\n1,1700000060,7,2\n")
    series = readers.read_csv(path)
    assert len(series) == 1
    np.testing.assert_array_equal(series[0], np.array([1, 2], dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "header"),
        (b"a,b\n", "header"),
        (b"a,b\n1,2\n3\n", "row 3 has 1"),
        (b"a,b\nx,y\n", "no numeric column"),
        (b"a\n\n\n", "header"),
        (b"a,b\n,\n", "no numeric column"),
        (b"a\n\xff\xfe\n", "readable"),
    ],
)
def test_malformed_csv_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    assert reason in refused(readers.read_csv, path)


@pytest.mark.parametrize(("width", "kind"), [(1, "u1"), (2, "<i2"), (4, "<i4")])
def test_wav_is_scaled_to_one(tmp_path: Path, width: int, kind: str) -> None:
    path = tmp_path / "tone.wav"
    limits = np.iinfo(np.dtype(kind))
    middle = (int(limits.min) + int(limits.max) + 1) // 2
    write_wav(path, np.array([limits.min, middle, limits.max], dtype=kind), width)
    (series,) = readers.read_wav(path)
    np.testing.assert_allclose(series, [-1.0, 0.0, 1.0], atol=0.01)


def test_wav_of_24_bits_and_two_channels(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    octets = np.array([0, 0, 0x40, 0, 0, 0xC0, 0, 0, 0x20, 0, 0, 0xE0], dtype=np.uint8)
    write_wav(path, octets, 3, channels=2)
    left, right = readers.read_wav(path)
    np.testing.assert_allclose(left, [0.5, 0.25])
    np.testing.assert_allclose(right, [-0.5, -0.25])


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVEjunkjunk"])
def test_broken_wav_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    refused(readers.read_wav, path)


def test_empty_wav_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    write_wav(path, np.zeros(0, dtype="<i2"), 2)
    assert "no samples" in refused(readers.read_wav, path)


def test_numeric_frame_columns_become_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"ds": [1, 2, 3], "y": [1.0, None, 3.0], "name": ["a", "b", "c"], "n": [4, 5, 6]}
    )
    monkeypatch.setattr(pandas, "read_parquet", lambda _: frame)
    decimals, integers = readers.read_parquet(tmp_path / "table.parquet")
    np.testing.assert_array_equal(decimals, np.array([1, np.nan, 3], dtype=np.float32))
    np.testing.assert_array_equal(integers, np.array([4, 5, 6], dtype=np.float32))


def test_parquet_round_trip(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    pandas.DataFrame({"y": [1.0, None, 3.0]}).to_parquet(path)
    (series,) = readers.read_parquet(path)
    np.testing.assert_array_equal(series, np.array([1, np.nan, 3], dtype=np.float32))


def test_parquet_without_its_packages_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert "pyarrow" in refused(readers.read_parquet, tmp_path / "table.parquet")


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 but not really")
    refused(readers.read_parquet, path)
