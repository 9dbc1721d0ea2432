"""The commands, from arguments to what they print."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kssm_client.cli import app
from tests.client.fake_server import FakeServer

RUNNER = CliRunner()


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    path = tmp_path / "load.csv"
    path.write_text("day,load,wind\nmon,1,5\ntue,2,6\nwed,3,7\n", encoding="utf-8")
    return path


def test_stream_prints_a_line_a_frame(threaded_server: FakeServer, csv_file: Path) -> None:
    arguments = ["stream", str(csv_file), "--url", threaded_server.url, "--column", "load"]
    result = RUNNER.invoke(app, [*arguments, "--horizon", "3"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["#0", "load", "1"],
        ["#1", "load", "2"],
        ["#2", "load", "3"],
    ]
    assert "surprise 2.0" in lines[0]
    assert lines[0].endswith("ms")
    assert threaded_server.model.sessions == {}, "the session is deleted at the end"


def test_stream_reads_standard_input_and_stops_at_the_limit(threaded_server: FakeServer) -> None:
    arguments = ["stream", "-", "--url", threaded_server.url, "--limit", "2", "--json"]
    result = RUNNER.invoke(app, arguments, input="1 2\n3 4\n5 6\n")
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 2


def test_stream_of_this_machine(threaded_server: FakeServer) -> None:
    arguments = [
        "stream",
        "psutil:memory",
        "--url",
        threaded_server.url,
        "--limit",
        "2",
        "--rate",
        "100",
    ]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "memory" in result.output


def test_errors_are_one_line_and_a_status(csv_file: Path) -> None:
    absent = RUNNER.invoke(app, ["stream", "absent.csv"])
    assert absent.exit_code == 1
    assert "cannot read absent.csv" in absent.stderr
    unreachable = RUNNER.invoke(app, ["stream", str(csv_file), "--url", "http://127.0.0.1:9"])
    assert unreachable.exit_code == 1
    assert "connection_failed" in unreachable.stderr.replace("\n", "")
    for levels in ("0.5,x", "0,0.5"):
        wrong = RUNNER.invoke(app, ["stream", str(csv_file), "--quantiles", levels])
        assert wrong.exit_code == 2


class BatchHandler(BaseHTTPRequestHandler):
    """Answers ``POST /v1/forecast`` with numbers that tell what was asked."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        forecasts = [
            {
                "id": series["id"],
                "mean": [series["values"][-1]] * body["horizon"],
                "quantiles": {str(q): [q] * body["horizon"] for q in body["quantiles"]},
            }
            for series in body["series"]
        ]
        reply = json.dumps({"model": "m", "forecasts": forecasts}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


@pytest.fixture
def batch_url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), BatchHandler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_forecast_prints_csv(batch_url: str, csv_file: Path) -> None:
    arguments = ["forecast", str(csv_file), "--horizon", "2", "--url", batch_url]
    result = RUNNER.invoke(app, [*arguments, "--quantiles", "0.5,0.25"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "series,step,mean,q0.25,q0.5",
        "load,1,3,0.25,0.5",
        "load,2,3,0.25,0.5",
        "wind,1,7,0.25,0.5",
        "wind,2,7,0.25,0.5",
    ]


def test_forecast_writes_a_file(batch_url: str, csv_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    arguments = ["forecast", str(csv_file), "--horizon", "1", "--url", batch_url]
    result = RUNNER.invoke(app, [*arguments, "--column", "wind", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert output.read_text(encoding="utf-8").splitlines()[1] == "wind,1,7,0.1,0.5,0.9"


def test_a_file_that_cannot_be_written_is_said(
    batch_url: str, csv_file: Path, tmp_path: Path
) -> None:
    target = str(tmp_path / "no" / "x.csv")
    arguments = ["forecast", str(csv_file), "--horizon", "1", "--url", batch_url]
    result = RUNNER.invoke(app, [*arguments, "--output", target])
    assert result.exit_code == 1
    assert f"cannot write {target}" in result.stderr
    assert "[cannot_write]" in result.stderr


def test_forecast_without_a_server(csv_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    arguments = ["forecast", str(csv_file), "--horizon", "1", "--url", "http://127.0.0.1:9"]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 1
    assert "connection_failed" in result.stderr.replace("\n", "")
