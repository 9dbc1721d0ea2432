"""This machine's live signals, through psutil."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from kssm_client.errors import SourceError

MACHINE_SIGNALS: Mapping[str, str] = {
    "cpu": "%",
    "memory": "%",
    "disk": "MB/s",
    "network": "kB/s",
}
"""Name and unit of every signal."""


class MachineSignals:
    """Reads load and rates; rates are averages since the reading before."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, psutil: Any | None = None
    ) -> None:
        self._psutil = psutil or _import_psutil()
        self._clock = clock
        self._before = (clock(), *self._totals())
        self._psutil.cpu_percent(interval=None)

    def read(self) -> dict[str, float]:
        """One sample of every signal of ``MACHINE_SIGNALS``."""
        now = (self._clock(), *self._totals())
        elapsed, disk, network = (b - a for a, b in zip(self._before, now, strict=True))
        self._before = now
        seconds = max(elapsed, 1e-6)
        return {
            "cpu": float(self._psutil.cpu_percent(interval=None)),
            "memory": float(self._psutil.virtual_memory().percent),
            "disk": disk / seconds / 1e6,
            "network": network / seconds / 1e3,
        }

    def _totals(self) -> tuple[int, int]:
        """Bytes so far through disks and networks; a machine may have neither."""
        disk = self._psutil.disk_io_counters()
        network = self._psutil.net_io_counters()
        return (
            disk.read_bytes + disk.write_bytes if disk else 0,
            network.bytes_sent + network.bytes_recv if network else 0,
        )


def _import_psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise SourceError("psutil: is missing; pip install 'kssm-client[psutil]'") from error
    return psutil
