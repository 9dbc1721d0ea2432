"""The scan's benchmark runs to its JSON line on any machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ops, ops_length, ops_plot, ops_scan, report
from benchmarks.peers_scan import Case

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ops_scan.PASSES)
def test_a_shape_gives_a_row(kind: str) -> None:
    row = ops_scan.measure("ours", kind, Case(1, 8, 4, CPU), copy=1e9, repeats=1)
    assert row["problem"] == ""
    assert (row["batch"], row["tokens"], row["channels"]) == (1, 8, 4)
    assert isinstance(row["share_of_copy"], float)


def test_a_peer_that_is_not_there_is_named_and_not_measured() -> None:
    row = ops_scan.measure("accelerated_scan", "forward", Case(1, 8, 4, CPU), 1e9, 1)
    assert row["ms"] is None
    assert row["problem"]


def test_time_against_length_ends_in_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(ops_plot, "RESULTS", tmp_path)
    monkeypatch.setattr(ops_length, "CPU_LENGTHS", (8, 16))
    ops_length.main(["--save", "--repeats", "1"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert all(row["ms"] is not None for row in rows), rows
    lines = (tmp_path / "ops_length.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| 8", "| 16"]


def test_bytes_count_inputs_and_outputs_once_a_pass() -> None:
    case = Case(2, 8, 64, CPU)
    element = 2 * 8 * 64 * 2
    b = 2 * 2 * 8 * 1 * 2
    assert ops_scan.counted_bytes(case, "forward") == 5 * element + b
    assert ops_scan.counted_bytes(case, "both") == 14 * element + 3 * b


def test_only_known_sections_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ops.main(["nothing"])
    assert "no section nothing" in capsys.readouterr().err


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
