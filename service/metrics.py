"""What the server tells Prometheus, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kssm.runtime import EngineStats

_BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0
)  # fmt: skip
_COUNTERS: Final = frozenset({"ticks", "tokens_stepped", "tokens_prefilled", "forecasts", "faults"})


class Metrics:
    """Counters and latencies of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._frames = Counter(
            "kssm_frames", "Frames answered with a forecast.", ["transport"], registry=self.registry
        )
        self._errors = Counter(
            "kssm_errors", "Requests answered with an error.", ["code"], registry=self.registry
        )
        self._frame_seconds = Histogram(
            "kssm_frame_seconds",
            "Time from a frame's arrival to its answer.",
            ["transport"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._batch_seconds = Histogram(
            "kssm_batch_seconds",
            "Time of a batch forecast.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._sessions = Gauge(
            "kssm_sessions", "Sessions, in the engine or at rest.", registry=self.registry
        )
        self._connections = Gauge(
            "kssm_connections", "Open WebSocket connections.", registry=self.registry
        )
        self._streamed = self._frames.labels("websocket")
        self._posted = self._frames.labels("rest")
        self._stream_seconds = self._frame_seconds.labels("websocket")
        self._post_seconds = self._frame_seconds.labels("rest")

    def watch(
        self,
        stats: Callable[[], EngineStats],
        sessions: Callable[[], float],
        connections: Callable[[], float],
    ) -> None:
        """Read these whenever the metrics are read."""
        self.registry.register(_EngineCollector(stats))
        self._sessions.set_function(sessions)
        self._connections.set_function(connections)

    def streamed(self, seconds: float) -> None:
        """A frame of a WebSocket was answered."""
        self._streamed.inc()
        self._stream_seconds.observe(seconds)

    def posted(self, seconds: float) -> None:
        """A frame of a REST request was answered."""
        self._posted.inc()
        self._post_seconds.observe(seconds)

    def batch(self, seconds: float) -> None:
        """A batch forecast was made."""
        self._batch_seconds.observe(seconds)

    def error(self, code: str) -> None:
        """An error was answered."""
        self._errors.labels(code).inc()

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """The engine's numbers at the time of reading."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One metric a field of ``EngineStats``."""
        for name, value in asdict(self._stats()).items():
            title = f"kssm_engine_{name}"
            text = f"Engine: {name.replace('_', ' ')}."
            if isinstance(value, dict):
                yield _labelled(title, text, value)
            elif name in _COUNTERS:
                yield CounterMetricFamily(title, text, value)
            else:
                yield GaugeMetricFamily(title, text, value)


def _labelled(title: str, text: str, values: dict[object, float]) -> Metric:
    family = GaugeMetricFamily(title, text, labels=["key"])
    for key, value in values.items():
        family.add_metric([str(key)], value)
    return family
