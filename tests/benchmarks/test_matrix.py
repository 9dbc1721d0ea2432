"""`python -m benchmarks.ops_matrix` and `python -m benchmarks.blocks`, small and on a CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import blocks, ops_matrix


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_scan_is_compared_with_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    ops_matrix.main(["--only", "ours", "mamba3", "--repeats", "1"])
    line = last_line(capsys)
    assert line["benchmark"] == "ops_matrix"
    forward, both = line["results"]
    assert (forward["pass"], both["pass"]) == ("forward", "both")
    assert forward["limit_ms"] > 0
    assert forward["ours_ms"] > 0
    assert (forward["mamba3_ms"] is None) == ("ours/mamba3" not in forward)


def test_blocks_have_the_parameters_of_their_peer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--widths", "128", "--lengths", "64", "--total", "64", "--repeats", "1"]
    blocks.main([*arguments, "--only", "kssm", "kssm_matrix"])
    line = last_line(capsys)
    wanted = blocks.mamba2_parameters(128)
    assert [row["block"] for row in line["results"]] == ["kssm", "kssm_matrix"]
    for row in line["results"]:
        assert row["parameters"] == pytest.approx(wanted, rel=0.12)
        assert row["tokens_per_s"] > 0
        assert row["speed/mamba"] is None
