"""Runs the service until a signal asks it to stop, then lets it finish what it accepted."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
import threading
from copy import deepcopy
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from kssm.runtime.collector import relax_collector
from service.app import create_app
from service.core import Service, build_engine
from service.settings import Settings
from service.stores import open_store
from service.undecodable import TolerantWebSocket

CLOSE_CHECKS: Final = 100
CLOSE_CHECK_S: Final = 0.02


class Server(uvicorn.Server):
    """uvicorn, but connections are closed (1012) only after the service has drained."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._listening = threading.Event()

    def wait_until_listening(self, timeout_s: float) -> int:
        """The port, once there is one; for callers on another thread. Raises ``TimeoutError``."""
        if not self._listening.wait(timeout_s):
            raise TimeoutError("the server did not start in time")
        return self.servers[0].sockets[0].getsockname()[1]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then let those know who wait for it."""
        await super().startup(sockets)
        self._listening.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second interrupt stops waiting. The exit status stays 0."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while connections still live, then end them."""
        try:
            await self._service.drain()
            await self._await_close_replies()
        finally:
            await super().shutdown(sockets)

    async def _await_close_replies(self) -> None:
        """Closing a socket with unread data would reset it, and the peer lose its last answers."""
        kind = self.config.ws_protocol_class
        assert kind is not None
        for _ in range(CLOSE_CHECKS):
            if not any(isinstance(peer, kind) for peer in self.server_state.connections):
                return
            await asyncio.sleep(CLOSE_CHECK_S)


class RedactKeys(logging.Filter):
    """Keeps API keys, which browsers can only send in the address, out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record's arguments where need be; never drop it."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_redact, record.args))
        return True


def make_server(app: FastAPI, settings: Settings) -> Server:
    """A server for an app of ``create_app``."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        log_config=_log_config(),
        access_log=False,
        server_header=False,
        ws=TolerantWebSocket,
        ws_max_size=settings.max_message_bytes,
        ws_per_message_deflate=False,
        # Pings keep the way open and let TCP find dead peers. Missing answers prove nothing: a
        # connection with too much unanswered is not read, so its pongs wait behind its messages.
        ws_ping_timeout=None,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    return Server(config, app.state.service)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises ``KSSMError`` when the store cannot be used or the model not be loaded.
    """
    asyncio.run(_try_store(settings))
    app = create_app(settings, build_engine(settings))
    relax_collector()
    make_server(app, settings).run()


async def _try_store(settings: Settings) -> None:
    """What is wrong with the store is said in one line, before the model is loaded."""
    store = open_store(settings.store)
    try:
        await store.open()
    finally:
        await store.close()


def _log_config() -> dict[str, Any]:
    config = deepcopy(LOGGING_CONFIG)
    config["filters"] = {"redact": {"()": RedactKeys}}
    config["handlers"]["default"]["filters"] = ["redact"]
    config["loggers"]["kssm.runtime"] = {"handlers": ["default"], "level": "INFO"}
    return config


def _redact(value: object) -> object:
    return re.sub(r"(api_key=)[^&\s]*", r"\1***", value) if isinstance(value, str) else value
