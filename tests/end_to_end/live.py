"""A real server on a real port, in a thread or in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kssm.forecast.testing import tiny_forecaster
from kssm.runtime import Engine, EngineConfig
from service.app import create_app
from service.server import make_server
from service.settings import Settings

ROOT = Path(__file__).parents[2]


class Live:
    """Where a server listens."""

    def __init__(self, port: int) -> None:
        self.http = f"http://127.0.0.1:{port}"
        self.stream = f"ws://127.0.0.1:{port}/v1/stream"


@contextmanager
def thread_server(config: EngineConfig | None = None, **settings: Any) -> Generator[Live]:
    """A server with a tiny forecaster of three resolutions in a thread of this process."""
    chosen = Settings(port=0, log_level="warning", **settings)
    app = create_app(chosen, Engine(tiny_forecaster(thinning=(4, 16)), config or EngineConfig()))
    server = make_server(app, chosen)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Live(server.wait_until_listening(30))
    finally:
        server.should_exit = True
        thread.join()


class ProcessServer:
    """A server with a tiny forecaster of three resolutions, in a process that can be stopped."""

    def __init__(self, store: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KSSM_")}
        environment |= {"KSSM_STORE": str(store), "KSSM_PORT": "0", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.live"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.live = Live(int(self._process.stdout.readline()))

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status."""
        status = self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self.wait()


def main() -> None:
    """Serve as the environment says; the first line of output is the port."""
    settings = Settings(log_level="warning")
    server = make_server(create_app(settings, Engine(tiny_forecaster(thinning=(4, 16)))), settings)

    def announce() -> None:
        sys.stdout.write(f"{server.wait_until_listening(60)}\n")
        sys.stdout.flush()

    threading.Thread(target=announce).start()
    server.run()


if __name__ == "__main__":
    main()
