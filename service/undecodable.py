"""uvicorn's WebSocket, but text that is not UTF-8 costs an error and not the connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

STAND_IN: Final = "\N{REPLACEMENT CHARACTER}".encode()
"""What the application gets instead: text that no message is."""


class TolerantWebSocket(WebSocketsSansIOProtocol):
    """Hands on every message that is framed as RFC 6455 says, whatever is in it.

    By the RFC undecodable text ends the connection. Here one bad message never does: many
    sessions may share the connection.
    """

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
