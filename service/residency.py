"""Which sessions are in the engine, and how they move to the store and back.

A session in use has rows in the engine. When the engine runs out of rows, the sessions idle for
longest are written to the store and give theirs up; the next message brings them back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from kssm.errors import CapacityError, NotFoundError
from kssm.runtime import Engine, snapshot
from service.lanes import Lane, in_task
from service.records import decode_session, encode_session
from service.sessions import Session
from service.stores import Record, Store

FLUSH_BATCH: Final = 64

logger = logging.getLogger("kssm.service")


@dataclass(slots=True, eq=False)
class Live:
    """A session that has rows in the engine. ``dirty``: the store knows less of it."""

    session: Session
    rows: int
    dirty: bool = True


@dataclass(slots=True, eq=False)
class Entry:
    """A session's place in memory: its lane, and the session itself unless it rests.

    ``used_at`` is when a message last named it, in Unix seconds.
    """

    tenant: str
    session_id: str
    lane: Lane
    used_at: float
    live: Live | None = None


def session_not_found() -> NotFoundError:
    """The same error for what is absent and for what is another tenant's."""
    return NotFoundError("there is no such session", code="session_not_found")


class Residency:
    """The sessions in memory, in order of their last use."""

    def __init__(self, engine: Engine, store: Store, state_key: bytes, lane_limit: int) -> None:
        self._engine = engine
        self._store = store
        self._state_key = state_key
        self._lane_limit = lane_limit
        self._entries: OrderedDict[tuple[str, str], Entry] = OrderedDict()

    def entry(self, tenant: str, session_id: str) -> Entry:
        """The session's entry, made if need be, now the most recently used."""
        key = (tenant, session_id)
        found = self._entries.get(key)
        if found is None:
            lane = Lane(self._lane_limit)
            found = self._entries[key] = Entry(tenant, session_id, lane, time.time())
        else:
            self._entries.move_to_end(key)
            found.used_at = time.time()
        return found

    async def unused_since(self, moment: float) -> list[tuple[str, str]]:
        """Tenant and id of the sessions, in memory or at rest, last used before ``moment``."""
        stored = await self._store.unused_since(moment)
        resting = [key for key in stored if key not in self._entries]
        idle = [key for key, e in self._entries.items() if e.used_at < moment and not e.lane.busy]
        return resting + idle

    def adopt(self, session: Session, rows: int) -> None:
        """Keep a new session."""
        self.entry(session.tenant, session.id).live = Live(session, rows)

    def discard(self, entry: Entry) -> None:
        """Let go of an entry that holds no session and for which no job waits."""
        key = (entry.tenant, entry.session_id)
        if entry.live is None and not entry.lane.crowded and self._entries.get(key) is entry:
            del self._entries[key]

    async def live(self, entry: Entry) -> Live:
        """The session, brought back from the store if it rests; to be called in its lane.

        Raises ``NotFoundError`` (`session_not_found`), ``CapacityError`` (`rows_exhausted`) and
        ``StateError`` where the stored state does not fit the model.
        """
        if entry.live is None:
            try:
                entry.live = await self._load(entry)
            finally:
                self.discard(entry)
        return entry.live

    async def open_rows(self, channels: int, attempt: Callable[[], Future[int]]) -> int:
        """The key that ``attempt`` opens, after idle sessions made room if there was none."""
        while True:
            try:
                return await asyncio.wrap_future(attempt())
            except CapacityError as error:
                if error.code != "rows_exhausted" or not await self._evict(channels):
                    raise

    async def release(self, rows: int) -> None:
        """Give a session's rows back."""
        await asyncio.wrap_future(self._engine.release(rows))

    async def export(self, live: Live, meta: Mapping[str, str]) -> bytes:
        """The session's signed state; to be called in its lane."""
        tensors = await asyncio.wrap_future(self._engine.export(live.rows))
        return snapshot.encode(
            tensors,
            fingerprint=self._engine.fingerprint,
            tenant=live.session.tenant,
            channels=live.session.settings.channels,
            meta=meta,
            key=self._state_key,
        )

    def decode(self, session: Session, blob: bytes) -> tuple[dict[str, Any], dict[str, str]]:
        """The tensors and strings of a signed state made for such a session. Raises StateError."""
        return snapshot.decode(
            blob,
            spec=self._engine.state_spec,
            fingerprint=self._engine.fingerprint,
            tenant=session.tenant,
            channels=session.settings.channels,
            key=self._state_key,
        )

    async def settle(self) -> None:
        """Wait until no lane has work left."""
        while busy := [entry for entry in self._entries.values() if entry.lane.busy]:
            await asyncio.gather(*(entry.lane.barrier() for entry in busy))

    async def flush(self) -> None:
        """Write every session that changed since it was last written."""
        dirty = [entry for entry in self._entries.values() if entry.live and entry.live.dirty]
        for start in range(0, len(dirty), FLUSH_BATCH):
            batch = dirty[start : start + FLUSH_BATCH]
            outcomes = await asyncio.gather(
                *map(self._record_in_turn, batch), return_exceptions=True
            )
            await self._store.put([found for found in outcomes if isinstance(found, Record)])
            for entry, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    logger.error("session %s was not saved", entry.session_id, exc_info=outcome)
                elif entry.live is not None:
                    entry.live.dirty = False

    async def _load(self, entry: Entry) -> Live:
        record = await self._store.get(entry.tenant, entry.session_id)
        if record is None:
            raise session_not_found()
        session = decode_session(record.tenant, record.session_id, record.body)
        tensors, _ = self.decode(session, record.state)
        channels = session.settings.channels
        rows = await self.open_rows(channels, lambda: self._engine.open(channels))
        try:
            await asyncio.wrap_future(self._engine.load(rows, tensors))
        except BaseException:
            await self.release(rows)
            raise
        return Live(session, rows, dirty=False)

    async def _evict(self, channels: int) -> bool:
        victims = list(self._idle(channels))
        await asyncio.gather(
            *(entry.lane.run(lambda entry=entry: in_task(self._rest(entry))) for entry in victims)
        )
        return bool(victims)

    def _idle(self, channels: int) -> Iterable[Entry]:
        freed = 0
        for entry in self._entries.values():
            if freed >= channels:
                return
            if entry.live is not None and not entry.lane.busy:
                freed += entry.live.session.settings.channels
                yield entry

    async def _rest(self, entry: Entry) -> None:
        live = entry.live
        if live is None:
            return
        if live.dirty:
            await self._store.put([await self._record(entry)])
        await self.release(live.rows)
        entry.live = None
        self.discard(entry)

    def _record_in_turn(self, entry: Entry) -> asyncio.Future[Record]:
        return entry.lane.run(lambda: in_task(self._record(entry)))

    async def _record(self, entry: Entry) -> Record:
        if entry.live is None:
            raise session_not_found()
        body = encode_session(entry.live.session)
        state = await self.export(entry.live, {})
        return Record(entry.tenant, entry.session_id, body, state, entry.used_at)
