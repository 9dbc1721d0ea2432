"""Cores, a server process, and a process for what may end it, for measurements."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import IO, Any, ParamSpec, TypeVar, cast
from urllib.error import URLError
from urllib.request import urlopen

P = ParamSpec("P")
R = TypeVar("R")

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05
LOG_TAIL = 2_000


def split_cores() -> tuple[set[int], set[int]]:
    """One core for what is measured and the rest for who measures (the same one if it is alone).

    Both are empty where the system cannot pin processes.
    """
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    cores = sorted(os.sched_getaffinity(0))
    return {cores[0]}, set(cores[1:] or cores)


@contextmanager
def pinned(cores: Collection[int]) -> Generator[None]:
    """Keep this thread, and every process that it starts meanwhile, on ``cores``."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class LostError(RuntimeError):
    """A worker's process ended in a call, or had to be ended: the message says which."""


class Worker:
    """A process that makes calls, one at a time; after a call that ended it, another one.

    It starts with the first call and ends with the ``with`` block.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        """``limit_s``: calls that take longer end the process."""
        self._limit_s = limit_s
        self._process: SpawnProcess | None = None
        self._calls: Connection

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def call(self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """What ``function`` returns there, or the exception that it raised.

        Raises:
            LostError: the call ended the process, or took too long.
        """
        if self._process is None:
            self._start()
        self._calls.send((function, arguments, options))
        answered = self._calls.poll(self._limit_s)
        try:
            raised, answer = cast(
                "tuple[bool, Any]", self._calls.recv() if answered else (False, None)
            )
        except EOFError:
            self._end()
            raise LostError("ended its process") from None
        if not answered:
            self._end()
            raise LostError(f"no answer in {self._limit_s:g} s")
        if raised:
            raise answer
        return answer

    def _start(self) -> None:
        context = get_context("spawn")
        self._calls, answers = context.Pipe()
        self._process = context.Process(target=_serve, args=(answers,))
        self._process.start()
        answers.close()  # the process has its own: when it ends, the pipe does

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._calls.close()
        self._process = None


def _serve(answers: Connection) -> None:
    """Make the calls that come through the pipe."""
    while True:
        try:
            function, arguments, options = answers.recv()
        except EOFError:
            return
        try:
            answers.send((False, function(*arguments, **options)))
        except Exception as error:  # noqa: BLE001 (the caller's to judge)
            answers.send((True, error))


@contextmanager
def server(arguments: Sequence[str], cores: Collection[int]) -> Generator[int]:
    """``kssm serve`` on a free port of the loopback address and on ``cores``; yields the port."""
    port = _free_port()
    command = [sys.executable, "-m", "kssm.cli", "serve", "--host", "127.0.0.1"]
    with tempfile.TemporaryFile() as log:
        with pinned(cores):
            process = subprocess.Popen(
                [*command, "--port", str(port), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        try:
            _wait_until_ready(process, port, log)
            yield port
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended before it was ready:\n{_tail(log)}")
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(POLL_S)
    raise RuntimeError(f"the server was not ready in {READY_TIMEOUT_S:g} s:\n{_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-LOG_TAIL:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
