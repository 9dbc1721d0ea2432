"""The parts of a running server and their life: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from kssm.language import LanguageModel
from kssm.runtime import Engine
from service.auth import Authenticator
from service.connection import Connection
from service.manager import SessionManager
from service.metrics import Metrics
from service.settings import Settings
from service.stores import Store, open_store
from service.texts import TextManager

logger = logging.getLogger("kssm.service")

MAX_EXPIRY_PAUSE_S: Final = 600.0
"""Longest time between two looks for unused sessions."""


class Service:
    """Holds what the routes use. ``engine`` may be injected; it must not be started yet."""

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.auth = Authenticator(settings.api_keys)
        self.connections: set[Connection] = set()
        self._engine = engine
        self._store: Store | None = None
        self._manager: SessionManager | None = None
        self._texts: TextManager | None = None
        self._drained = False
        self._expiry: asyncio.Task[None] | None = None

    @property
    def engine(self) -> Engine:
        """The engine of a started service."""
        assert self._engine is not None, "the service is not started"
        return self._engine

    @property
    def manager(self) -> SessionManager:
        """The sessions of a started service."""
        assert self._manager is not None, "the service is not started"
        return self._manager

    @property
    def texts(self) -> TextManager:
        """What only language sessions do, of a started service."""
        assert self._texts is not None, "the service is not started"
        return self._texts

    @property
    def ready(self) -> bool:
        """Whether new sessions are welcome."""
        return self._manager is not None and not self._drained

    async def start(self) -> None:
        """Load the model if need be, open the store, start the engine."""
        if self._engine is None:
            self._engine = await asyncio.to_thread(build_engine, self.settings)
        self._store = open_store(self.settings.store)
        await self._store.open()
        key = self.settings.state_key_bytes or await self._store.secret()
        model = model_name(self.settings)
        manager = SessionManager(self.settings, model, self._engine, self._store, key)
        await manager.start()
        await asyncio.to_thread(self._engine.start)  # captures graphs first on a GPU
        self._manager = manager
        self._texts = TextManager(self.settings, manager, self._engine)
        self._expiry = asyncio.create_task(self._expire(self.settings.session_ttl_s))
        stats = self._engine.stats
        self.metrics.watch(stats, lambda: manager.sessions, lambda: len(self.connections))

    async def drain(self) -> None:
        """Refuse new work, tell the streams, finish what was accepted, save, close the streams."""
        if self._manager is None or self._drained:
            return
        self._drained = True
        if self._expiry is not None:
            self._expiry.cancel()
        self._manager.refuse()
        patience = self.settings.drain_timeout_s
        await asyncio.gather(*(stream.goaway(patience) for stream in list(self.connections)))
        self.texts.cancel_all()
        await self._manager.settle()
        await self._deliver(patience)
        try:
            await self._manager.flush()
        finally:
            await asyncio.gather(*(stream.restart() for stream in list(self.connections)))

    async def stop(self) -> None:
        """Drain if nobody did, then stop engine and store."""
        await self.drain()
        if self._manager is not None:
            await asyncio.to_thread(self.engine.close)
        if self._store is not None:
            await self._store.close()

    async def _expire(self, ttl_s: float) -> None:
        """Look for unused sessions every so often, until cancelled."""
        while ttl_s:
            await asyncio.sleep(min(ttl_s / 4, MAX_EXPIRY_PAUSE_S))
            try:
                if ended := await self.manager.expire():
                    logger.info("ended %d sessions unused for %s s", ended, ttl_s)
            except Exception:
                logger.exception("unused sessions could not be ended")

    async def _deliver(self, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*(stream.answered() for stream in list(self.connections)))
        except TimeoutError:
            logger.warning("some answers were not fetched within %s s", patience_s)


def build_engine(settings: Settings) -> Engine:
    """The engine for the settings' model and device, not started. Raises ``KSSMError``."""
    from kssm.device import resolve_device
    from kssm.forecast.pretrained import locate
    from kssm.language.rows import LanguageRows
    from kssm.language.tokenizer import Tokenizer
    from kssm.loading import load_any
    from kssm.runtime.config import config_for

    device = resolve_device(settings.device)
    folder = locate(settings.model)
    model = load_any(folder, device, window=settings.window, weights=settings.weights)
    if isinstance(model, LanguageModel):
        model = LanguageRows(model, Tokenizer.find(folder))
    return Engine(model, config_for(model.state_spec(), settings.max_rows), device)


def model_name(settings: Settings) -> str:
    """What clients call the model: its name, or its folder's last part."""
    return settings.model.rstrip("/").rsplit("/", 1)[-1]
