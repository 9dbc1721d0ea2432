"""The sessions of the server: every operation on them, coupled to the engine.

Operations return futures and take their place in the session's lane at once, so calls made in
some order, from whichever connection or request, are applied in that order.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from kssm.errors import CapacityError, NotFoundError
from kssm.language.rows import wrong_kind
from kssm.runtime import Engine
from service.applying import attach, finish, status, submit
from service.delivery import Delivery
from service.errors import draining
from service.lanes import Started, at_once, failed, finished, in_task
from service.limits import check_query
from service.opening import new_id, open_session, parse_request
from service.records import clock_from_meta, clock_to_meta
from service.residency import Entry, Live, Residency, session_not_found
from service.schemas import SessionCreate
from service.sessions import Reply, Status
from service.settings import Settings
from service.stores import Store
from service.vocabulary import Vocabulary
from service.wire import Frame

T = TypeVar("T")

_SESSION_ID: Final = re.compile(r"[0-9a-f]{32}")


class SessionManager:
    """Creates, finds, advances and deletes sessions. Lives on one event loop.

    Futures fail with ``KSSMError``: `session_not_found` for what is absent or foreign, `draining`
    after ``refuse``, and what the operation itself adds. ``vocabulary`` is a language model's.
    """

    def __init__(
        self, settings: Settings, model: str, engine: Engine, store: Store, state_key: bytes
    ) -> None:
        self.model = model
        self.vocabulary = Vocabulary.of(engine)
        self._settings = settings
        self._engine = engine
        self._store = store
        self._residency = Residency(engine, store, state_key, settings.max_in_flight)
        self._delivery = Delivery()
        self._sessions = 0
        self._creations: set[asyncio.Task[Status]] = set()
        self._draining = False

    @property
    def sessions(self) -> int:
        """Number of sessions, in the engine or at rest."""
        return self._sessions

    async def start(self) -> None:
        """Learn how many sessions the store holds."""
        self._sessions = await self._store.count()

    def create(self, tenant: str, request: SessionCreate) -> asyncio.Future[Status]:
        """A new session that has seen the request's prompt.

        Adds `model_not_found`, `session_limit`, `rows_exhausted` and what is wrong with the
        request.
        """
        if self._draining:
            return failed(draining())
        creation = asyncio.create_task(self._create(tenant, request))
        self._creations.add(creation)
        creation.add_done_callback(self._creations.discard)
        return creation

    def append(
        self,
        tenant: str,
        session_id: str,
        frame: Frame,
        attachment: int | None = None,
        *,
        tokens: bool = False,
    ) -> asyncio.Future[Reply]:
        """Apply a frame (``tokens``: of ids [n, 1]). Adds `seq_gap` and what is wrong with it.

        ``attachment`` is given by a connection that addresses the session by its handle, which
        ends when another connection attaches.
        """
        if tokens == (self.vocabulary is None):
            return failed(wrong_kind())
        return self._in_lane(
            tenant, session_id, lambda entry: self._start_append(entry, frame, attachment)
        )

    def forecast(
        self,
        tenant: str,
        session_id: str,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
    ) -> asyncio.Future[Reply]:
        """A forecast of the session as it is; None stands for the session's own settings."""

        async def work(live: Live) -> Reply:
            own = live.session.settings
            wanted = own.quantiles if quantiles is None else quantiles
            steps = own.horizon if horizon is None else horizon
            levels = check_query(self._settings, own.channels, steps, wanted)
            future = self._engine.forecast(live.rows, steps, levels)
            return Reply(live.session.next_seq - 1, await asyncio.wrap_future(future))

        allowed = self.vocabulary is None
        return self.run(tenant, session_id, work) if allowed else failed(wrong_kind())

    def attach(self, tenant: str, session_id: str) -> asyncio.Future[Status]:
        """Make the caller's the one attachment of the session."""
        return self.run(tenant, session_id, attach)

    def get(self, tenant: str, session_id: str) -> asyncio.Future[Status]:
        """The session."""
        return self.run(tenant, session_id, status)

    def reset(self, tenant: str, session_id: str) -> asyncio.Future[Status]:
        """Forget the signal; the session's ``seq`` runs on."""

        async def work(live: Live) -> Status:
            await asyncio.wrap_future(self._engine.reset(live.rows))
            live.session.reset()
            live.dirty = True
            return live.session.status()

        return self.run(tenant, session_id, work)

    def fork(self, tenant: str, session_id: str) -> asyncio.Future[Status]:
        """A new session that continues from a copy. Adds `session_limit`, `rows_exhausted`."""

        async def work(live: Live) -> Status:
            self._reserve()
            try:
                channels = live.session.settings.channels
                fork = partial(self._engine.fork, live.rows)
                rows = await self._residency.open_rows(channels, fork)
            except BaseException:
                self._sessions -= 1
                raise
            copy = live.session.fork(new_id())
            self._residency.adopt(copy, rows)
            return copy.status()

        return self.run(tenant, session_id, work)

    def export_state(self, tenant: str, session_id: str) -> asyncio.Future[bytes]:
        """The session's signed state."""

        async def work(live: Live) -> bytes:
            return await self._residency.export(live, clock_to_meta(live.session.clock))

        return self.run(tenant, session_id, work)

    def import_state(self, tenant: str, session_id: str, blob: bytes) -> asyncio.Future[Status]:
        """Continue from an exported state. Adds the codes of ``StateError``."""

        async def work(live: Live) -> Status:
            tensors, meta = self._residency.decode(live.session, blob)
            await asyncio.wrap_future(self._engine.load(live.rows, tensors))
            live.session.restore_clock(clock_from_meta(meta))
            live.dirty = True
            return live.session.status()

        return self.run(tenant, session_id, work)

    def delete(self, tenant: str, session_id: str) -> asyncio.Future[None]:
        """End the session and forget it."""
        return self._in_lane(tenant, session_id, lambda entry: in_task(self._delete(entry)))

    async def expire(self) -> int:
        """End the sessions unused for longer than the limit; returns how many there were."""
        ttl = self._settings.session_ttl_s
        if not ttl or self._draining:
            return 0
        unused = await self._residency.unused_since(time.time() - ttl)
        endings = [self.delete(tenant, session_id) for tenant, session_id in unused]
        outcomes = await asyncio.gather(*endings, return_exceptions=True)
        return sum(not isinstance(outcome, BaseException) for outcome in outcomes)

    def refuse(self) -> None:
        """From now on every call fails with `draining`."""
        self._draining = True

    async def settle(self) -> None:
        """Wait for the calls accepted so far."""
        await asyncio.gather(*self._creations, return_exceptions=True)
        await self._residency.settle()

    async def flush(self) -> None:
        """Write what changed to a durable store, every session after its accepted calls."""
        if self._store.durable:
            await self._residency.flush()

    def run(
        self, tenant: str, session_id: str, work: Callable[[Live], Coroutine[Any, Any, T]]
    ) -> asyncio.Future[T]:
        """Do ``work`` in the session's lane."""

        async def with_live(entry: Entry) -> T:
            return await work(await self._residency.live(entry))

        return self._in_lane(tenant, session_id, lambda entry: in_task(with_live(entry)))

    def _in_lane(
        self, tenant: str, session_id: str, start: Callable[[Entry], Started[T]]
    ) -> asyncio.Future[T]:
        if self._draining:
            return failed(draining())
        if not _SESSION_ID.fullmatch(session_id):
            return failed(session_not_found())
        entry = self._residency.entry(tenant, session_id)
        return entry.lane.run(partial(start, entry))

    def _start_append(self, entry: Entry, frame: Frame, attachment: int | None) -> Started[Reply]:
        if entry.live is None:
            return in_task(self._append_cold(entry, frame, attachment))
        return self._append_live(entry.live, frame, attachment)

    async def _append_cold(self, entry: Entry, frame: Frame, attachment: int | None) -> Reply:
        live = await self._residency.live(entry)
        return await finished(self._append_live(live, frame, attachment))

    def _append_live(self, live: Live, frame: Frame, attachment: int | None) -> Started[Reply]:
        session = live.session
        if attachment is not None and attachment != session.attachments:
            raise session_not_found()
        admitted = session.admit(frame)
        if isinstance(admitted, Reply):
            return at_once(admitted)
        future = submit(self._engine, live, admitted, forecasts=self.vocabulary is None)
        return Started(self._delivery.expect(future), partial(finish, live, admitted))

    async def _create(self, tenant: str, request: SessionCreate) -> Status:
        if request.model not in {None, self.model}:
            raise NotFoundError("there is no such model", code="model_not_found")
        session, prompt = parse_request(self._settings, tenant, request, self.vocabulary)
        self._reserve()
        try:
            rows = await open_session(self._engine, self._residency, session, prompt)
        except BaseException:
            self._sessions -= 1
            raise
        self._residency.adopt(session, rows)
        return session.status()

    async def _delete(self, entry: Entry) -> None:
        stored = await self._store.delete(entry.tenant, entry.session_id)
        live, entry.live = entry.live, None
        self._residency.discard(entry)
        if live is not None:
            await self._residency.release(live.rows)
        elif not stored:
            raise session_not_found()
        self._sessions -= 1

    def _reserve(self) -> None:
        if self._sessions >= self._settings.max_sessions:
            raise CapacityError(f"the server holds {self._sessions} sessions", "session_limit")
        self._sessions += 1
