"""The engine: one thread that owns model, arena and device, and the calls that reach it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray

from kssm.language.sampling import Sampling
from kssm.runtime.arena import Arena
from kssm.runtime.config import EngineConfig
from kssm.runtime.contract import Floats, Forecaster, vocabulary
from kssm.runtime.executor import Executor
from kssm.runtime.graphs import Progress
from kssm.runtime.intake import Intake
from kssm.runtime.jobs import (
    Control,
    ForecastResult,
    GenerationResult,
    Job,
    Listener,
    Open,
    Prediction,
    Release,
    Session,
)
from kssm.runtime.monitors import monitor_spec, monitor_state
from kssm.runtime.requests import Requests
from kssm.runtime.schedule import Schedule
from kssm.runtime.statistics import EngineStats
from kssm.runtime.validation import check_channels
from kssm.runtime.worker import Worker

DEFAULT_LEVELS = (0.1, 0.5, 0.9)
DEFAULT_HORIZON = 24

_log = logging.getLogger(__name__)


class Engine:
    """Serves many sessions of one forecaster or language model from one device thread.

    Every method may be called from any thread. Those that return a Future never raise: errors,
    bad input included, come through the future as KSSMError. A session's jobs run in the order of
    their submission; one that fails or is cancelled leaves the state as it was before it
    (a forecast that turns out not finite after its samples were consumed says so in
    ``details["applied"]``). ``state_spec`` describes a session's exported state. Futures' callbacks
    run on the device thread and must be short.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        config: EngineConfig | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.forecaster = forecaster
        self.fingerprint = forecaster.fingerprint  # reads every weight: once is enough
        self.config = config or EngineConfig()
        self.device = torch.device(device)
        self._intake = Intake(self.config.max_pending)
        self._sessions, self._session = self._intake.sessions, self._intake.session
        self._submit = self._intake.submit
        self.vocab_size = vocabulary(forecaster)
        scored = self.vocab_size is None
        self.state_spec = {**forecaster.state_spec(), **monitor_spec(scored=scored)}
        self._requests = Requests(self.config, self.state_spec, self.vocab_size)
        self._executor = self._build()
        schedule = Schedule[Any](self.config.prefill_tokens, self.config.chunk_tokens)
        self._worker = Worker(self._executor, schedule, self._intake.admission, self._sessions)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()

    def _build(self) -> Executor:
        config = self.config
        arena = Arena(
            self.forecaster.state_spec(),
            self.forecaster.initial_state(1),
            rows=config.initial_rows,
            max_rows=config.max_rows,
            device=self.device,
            host=monitor_state(scored=self.vocab_size is None),
        )
        padded, graph_rows = self.device.type == "cuda", config.graph_rows
        return Executor(self.forecaster, arena, self.device, padded=padded, graph_rows=graph_rows)

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    def start(self, progress: Progress | None = None) -> None:
        """Start the device thread; jobs submitted before it wait for it.

        Returns when the thread is ready to serve. On a GPU it first compiles and captures its
        steps, of which ``progress`` hears (called on that thread with graphs done and in all).
        """
        with self._starting:
            if self._thread is not None or self._intake.closed:
                raise RuntimeError("an engine starts once")
            self._thread = threading.Thread(
                target=self._main, args=(progress,), name="kssm-engine", daemon=True
            )
            self._thread.start()
        self._ready.wait()

    def close(self, drain: bool = True) -> None:
        """Refuse new jobs, finish the accepted ones (``drain``) or fail them, stop the thread."""
        self._intake.close(drain)
        if self._thread is None:
            self._abandon()
        elif self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """False once the device thread has died of something unexpected."""
        return not self._intake.died

    def _main(self, progress: Progress | None) -> None:
        try:
            with self._on_device(), torch.inference_mode():
                self._executor.prepare(progress)
                self._ready.set()
                while self._take():
                    if self._worker.busy:
                        self._worker.tick()
        except BaseException:  # noqa: BLE001 (whatever it is, nobody may be left waiting)
            _log.exception("the device thread died")
            self._intake.died = True
        finally:
            self._ready.set()
            self._executor.close()
            self._abandon()

    def _take(self) -> bool:
        """Hand new jobs to the worker, which lets go of them one by one; False = stop."""
        jobs = self._intake.take(self._worker.busy)
        if jobs is None:
            return False
        self._worker.accept(jobs)
        self._intake.accepted()
        return True

    def _on_device(self) -> AbstractContextManager[object]:
        """Kernels start on the thread's current device, wherever their tensors are."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _abandon(self) -> None:
        """Fail whatever is left; nothing is accepted any more."""
        unaccepted = self._intake.abandon()
        self._worker.abort(self._intake.refusal(), unaccepted)

    def open(self, channels: int) -> Future[int]:
        """Create a session of ``channels`` rows; its key. CapacityError ``rows_exhausted``."""
        return self._submit(lambda: Open(channels=check_channels(channels)))

    def append(
        self,
        key: int,
        values: Floats,
        *,
        dt: Floats | None = None,
        horizon: int = DEFAULT_HORIZON,
        levels: Sequence[float] = DEFAULT_LEVELS,
        want_forecast: bool = True,
    ) -> Future[ForecastResult]:
        """Consume samples [samples, channels] (NaN = missing) and forecast what follows.

        ``dt`` [samples] is the time since the previous sample in sample intervals (None = 1
        each); gaps are bridged with missing samples.
        """
        asked = (horizon, levels) if want_forecast else None
        return self._submit(lambda: self._requests.append(self._session(key), values, dt, asked))

    def generate(
        self,
        key: int,
        max_tokens: int,
        sampling: Sampling,
        *,
        seed: int,
        listener: Listener | None = None,
    ) -> Future[GenerationResult]:
        """Draw tokens from a language session's state and append them to it, one a tick.

        The same seed, rules and history give the same text, whoever else is served.
        """
        heard = listener or Listener()
        return self._submit(
            lambda: self._requests.generate(self._session(key), max_tokens, sampling, seed, heard)
        )

    def forecast(self, key: int, horizon: int, levels: Sequence[float]) -> Future[ForecastResult]:
        """Forecast from the session's state as it is."""
        return self._submit(lambda: self._requests.read(self._session(key), horizon, levels))

    def reset(self, key: int) -> Future[None]:
        """Forget everything the session has seen."""
        return self._control(key, self._worker.reset)

    def fork(self, key: int) -> Future[int]:
        """Open a session that continues from a copy of this one's state; its key."""
        return self._control(key, self._worker.fork)

    def export(self, key: int) -> Future[dict[str, NDArray[Any]]]:
        """A copy of the session's state, [channels, ...] per entry."""
        return self._control(key, self._worker.export)

    def release(self, key: int) -> Future[None]:
        """End the session once its earlier jobs are done; no later job is accepted for it."""
        return self._submit(
            lambda: Release(session=self._session(key), action=self._worker.release, cost=0)
        )

    def load(self, key: int, tensors: Mapping[str, NDArray[Any]]) -> Future[None]:
        """Replace the session's state. StateError unless the tensors fit model and session."""

        def request() -> Job:
            session = self._session(key)
            copies = self._requests.state(tensors, session.channels)
            return Control(session=session, action=partial(self._worker.load, tensors=copies))

        return self._submit(request)

    def predict(
        self,
        series: Sequence[Floats],
        horizon: int,
        levels: Sequence[float],
        dt: Sequence[Floats | None] | None = None,
        *,
        watched: bool = False,
    ) -> Future[Prediction]:
        """Forecast each of n series ([samples], NaN = missing) afresh.

        ``watched``: with what an anomaly monitor says of each of their samples.
        """
        return self._submit(
            lambda: self._requests.predict(series, dt, horizon, levels, watched=watched)
        )

    def stats(self) -> EngineStats:
        """The engine's counters now."""
        return self._worker.stats()

    def _control(self, key: int, action: Callable[[Session], Any]) -> Future[Any]:
        return self._submit(lambda: Control(session=self._session(key), action=action))
