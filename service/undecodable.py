"""uvicorn's WebSocket for many answers at once and for whatever text a peer may send."""

from __future__ import annotations

from asyncio.transports import BaseTransport
from collections.abc import Sequence
from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.corked import CorkedTransport

STAND_IN: Final = "\N{REPLACEMENT CHARACTER}".encode()
"""What the application gets instead: text that no message is."""


class TolerantWebSocket(WebSocketsSansIOProtocol):
    """Hands on every message that is framed as RFC 6455 says, whatever is in it.

    By the RFC undecodable text ends the connection. Here one bad message never does: many
    sessions may share the connection. Answers that are ready together leave together.
    """

    def connection_made(self, transport: BaseTransport) -> None:
        """Hold answers back for a moment each."""
        super().connection_made(transport)
        self.transport = CorkedTransport(self.transport, self.loop)

    def send_receive_event_to_app(self) -> None:
        """Hand over a message whose last frame has come."""
        if self.curr_msg_data_type == "text" and not _is_utf8(self.frames):
            self.frames = [STAND_IN]
        super().send_receive_event_to_app()


def _is_utf8(frames: Sequence[bytes]) -> bool:
    try:
        b"".join(frames).decode()
    except UnicodeDecodeError:
        return False
    return True
