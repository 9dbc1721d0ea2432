"""Runs the service until a signal asks it to stop, then lets it finish what it accepted."""

from __future__ import annotations

import math
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.core import Service, build_engine
from service.settings import Settings


class Server(uvicorn.Server):
    """uvicorn, but connections are closed (1012) only after the service has drained."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second interrupt stops waiting. The exit status stays 0."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while connections still live, then close them."""
        await self._service.drain()
        await super().shutdown(sockets)


def make_server(app: FastAPI, settings: Settings) -> Server:
    """A server for an app of ``create_app``."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        ws_max_size=settings.max_message_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    return Server(config, app.state.service)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``KSSMError`` when the model cannot be loaded."""
    app = create_app(settings, build_engine(settings))
    make_server(app, settings).run()
