"""``kssm serve`` in a process of its own, on a free port."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from kssm_client import RestClient

START_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0


class ServerFailedError(Exception):
    """The server did not start; the message holds the end of its output."""


@contextmanager
def serving(arguments: Sequence[str] = ()) -> Generator[str, None, None]:
    """The address of a server that is ready and is stopped again afterwards."""
    port = _free_port()
    command = [sys.executable, "-m", "kssm.cli", "serve", "--host", "127.0.0.1"]
    command += ["--port", str(port), *arguments]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _wait_until_ready(process, url):
                output.seek(0)
                raise ServerFailedError("\n".join(output.read().splitlines()[-20:]))
            yield url
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[str], url: str) -> bool:
    deadline = time.monotonic() + START_TIMEOUT
    with RestClient(url) as client:
        while process.poll() is None and time.monotonic() < deadline:
            if client.ready():
                return True
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
