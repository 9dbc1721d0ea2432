"""The scan's benchmark runs to its JSON line on any machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ops, report

CPU = torch.device("cpu")


def test_a_shape_gives_a_row_a_pass() -> None:
    rows = ops.measure_shape((1, 8, 4), CPU, copy=1e9, repeats=1)
    assert [row["pass"] for row in rows] == ["forward", "both"]
    for row in rows:
        assert (row["batch"], row["tokens"], row["channels"]) == (1, 8, 4)
        assert isinstance(row["share_of_copy"], float)


def test_bytes_count_inputs_and_outputs_once_a_pass() -> None:
    case = ops.Case((2, 8, 64), CPU)
    element = 2 * 8 * 64 * 2
    b = 2 * 2 * 8 * 1 * 2
    assert case.forward_bytes == 5 * element + b
    assert case.both_bytes == 14 * element + 3 * b


@pytest.mark.parametrize("save", [False, True])
def test_the_last_line_is_json_and_kept_only_when_asked(
    save: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    rows: list[report.Row] = [{"pass": "forward", "ms": 1.25}]
    report.finish("sample", CPU, rows, save=save)
    line = capsys.readouterr().out.splitlines()[-1]
    found = json.loads(line)
    assert found["benchmark"] == "sample"
    assert found["results"] == rows
    assert {"commit", "device", "torch", "triton"} <= found.keys()
    kept = tmp_path / "results" / "sample.json"
    assert kept.exists() == save
    assert not save or json.loads(kept.read_text()) == found


def test_tables_align() -> None:
    rows: list[report.Row] = [{"name": "a", "ms": 1.0}, {"name": "long", "ms": 10.5}]
    assert report.table(rows).splitlines() == ["name      ms", "   a   1.000", "long  10.500"]
