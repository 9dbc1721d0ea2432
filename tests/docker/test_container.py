"""The image, run as it should be: read-only, without privileges, stopped and started again.

``docker/test.sh`` builds the image and names it in CONTAINER_IMAGE; without that every test here
is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from kssm_client import Client

IMAGE = os.environ.get("CONTAINER_IMAGE", "")
DOCKER = os.environ.get("DOCKER", "docker")
LOCKED_DOWN = [
    *("--read-only", "--tmpfs", "/tmp"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--pids-limit", "512"),
]
READY_TIMEOUT_S = 120
GRACE_S = 30

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not IMAGE, reason="CONTAINER_IMAGE is not set (make docker-test sets it)"),
]


def docker(*arguments: str) -> str:
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Container:
    """A running server and its address."""

    name: str
    url: str

    def stop(self) -> int:
        """Stop it as an operator would; its exit code."""
        docker("stop", "--time", str(GRACE_S), self.name)
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", self.name))

    def logs(self) -> str:
        both = [DOCKER, "logs", self.name]
        return subprocess.run(
            both, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        ).stdout


@pytest.fixture
def volume() -> Iterator[str]:
    name = docker("volume", "create", f"kssm-test-{uuid.uuid4().hex[:12]}")
    yield name
    docker("volume", "rm", name)


@pytest.fixture
def start(volume: str) -> Iterator[Start]:
    starter = Start(volume, [])
    yield starter
    for name in starter.names:
        docker("rm", "--force", name)


@dataclass(frozen=True)
class Start:
    """Starts servers on one volume."""

    volume: str
    names: list[str]

    def __call__(self) -> Container:
        name = f"kssm-test-{uuid.uuid4().hex[:12]}"
        place = ["--volume", f"{self.volume}:/var/lib/kssm", "--publish", "127.0.0.1::8000"]
        docker("run", "--detach", "--name", name, *LOCKED_DOWN, *place, IMAGE)
        self.names.append(name)
        container = Container(name, f"http://{docker('port', name, '8000').splitlines()[0]}")
        wait_until_ready(container)
        return container


def wait_until_ready(container: Container) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        running = docker("inspect", "--format", "{{.State.Running}}", container.name)
        assert running == "true", container.logs()
        try:
            with urlopen(f"{container.url}/readyz", timeout=5) as reply:
                assert reply.status == 200
                return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"not ready in {READY_TIMEOUT_S} s:\n{container.logs()}")


def waves(samples: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.1, (samples, 2))
    return np.sin(np.arange(samples)[:, None] * [0.26, 0.52]) + noise


def test_the_image_is_locked_down(start):
    container = start()
    config = json.loads(docker("inspect", container.name))[0]
    assert config["Config"]["User"] == "10001:10001"
    assert config["HostConfig"]["ReadonlyRootfs"] is True
    identity = docker("exec", container.name, "id", "-u")
    assert identity == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        docker("exec", container.name, "touch", "/opt/kssm/probe")


def test_the_health_check_passes(start):
    container = start()
    docker("exec", container.name, "kssm-entrypoint", "healthy")


def test_a_session_goes_on_after_stop_and_start(start):
    frames = waves(60)
    first = start()
    with Client(first.url) as client:
        session = client.create_session(channels=2, horizon=12)
        seqs = [session.send([frame]).seq for frame in frames[:40]]
        assert seqs == list(range(40))
        assert first.stop() == 0, first.logs()
    second = start()
    with Client(second.url) as client:
        resumed = client.attach_session(session.id)
        assert resumed.info.next_seq == 40
        whole = client.create_session(channels=2, horizon=12)
        for frame in frames[:40]:
            whole.send([frame])
        for seq, frame in enumerate(frames[40:], start=40):
            after, reference = resumed.send([frame]), whole.send([frame])
            assert after.seq == seq
            np.testing.assert_allclose(after.values, reference.values, rtol=1e-5, atol=1e-6)
    assert second.stop() == 0, second.logs()


def test_the_command_streams_a_file_through_it(start, tmp_path):
    file = tmp_path / "waves.csv"
    np.savetxt(file, waves(30), delimiter=",", header="slow,fast", comments="")
    container = start()
    command = Path(sys.executable).with_name("kssm-client")
    done = subprocess.run(
        [command, "stream", file, "--url", container.url, "--plain"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert len(frames) == 30
    assert "slow" in frames[-1]
    assert "fast" in frames[-1]


def test_a_volume_that_cannot_be_written_is_said(start):
    done = subprocess.run(
        [DOCKER, "run", "--rm", *LOCKED_DOWN, "--tmpfs", "/var/lib/kssm:mode=0555", IMAGE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "/var/lib/kssm is not writable by user 10001" in done.stderr
