"""`kssm bench service`, end to end on a tiny checkpoint."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.processes import pinned, split_cores
from benchmarks.service import Options, Report, Timing
from kssm.cli import main
from kssm.forecast import pretrained
from kssm.forecast.testing import tiny_forecaster

REPORT = Report(
    Options("m", "cpu", 2, 10), "abc", True, Timing(100, 200), Timing(300, 400), Timing(250, 300)
)


def test_the_line_holds_the_figures_and_their_ratio():
    line = json.loads(REPORT.as_line())
    assert line["benchmark"] == "service"
    options = {"model": "m", "device": "cpu", "sessions": 2, "frames": 10, "weights": None}
    assert line["options"] == options
    assert line["ratio"] == 3
    assert line["ratio_binary"] == 2.5
    assert line["model"] == {"p50_us": 100, "p99_us": 200}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin")
def test_pinning_ends_with_its_block():
    before = os.sched_getaffinity(0)
    measured, others = split_cores()
    assert len(measured) == 1
    assert others == before - measured or others == before == measured
    with pinned(measured):
        assert os.sched_getaffinity(0) == measured
    assert os.sched_getaffinity(0) == before


def test_measures_a_real_server(tmp_path, capsys):
    pretrained.save(tiny_forecaster(), tmp_path)
    words = ["bench", "service", "--model", str(tmp_path), "--sessions", "2", "--frames", "20"]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["options"]["sessions"] == 2
    assert line["json"]["p50_us"] > 0
    assert line["binary"]["p50_us"] > 0
    assert line["ratio"] == pytest.approx(
        line["json"]["p50_us"] / line["model"]["p50_us"], rel=1e-2
    )
