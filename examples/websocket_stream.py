"""Stream to a server with nothing but JSON over a WebSocket, as any language can.

    kssm serve &
    python -m examples.websocket_stream

``kssm_client`` does the same in fewer lines and survives a broken connection.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from websockets.sync.client import ClientConnection, connect

HOST = "127.0.0.1:8000"


def ask(socket: ClientConnection, **message: Any) -> dict[str, Any]:
    """Send a message; its answer, or an exception."""
    socket.send(json.dumps(message))
    answer = json.loads(socket.recv())
    if answer["type"] == "error":
        raise RuntimeError(answer["error"]["message"])
    return answer


def main(host: str) -> None:
    """Send a sine sample by sample, print what is expected of the next one."""
    with connect(f"ws://{host}/v1/stream") as socket:
        session = ask(socket, type="session.create", horizon=1)["session"]
        for seq in range(100):
            value = math.sin(seq / 5)
            answer = ask(socket, type="frames.append", session=session, seq=seq, values=[[value]])
            low, middle, high = (rows[0][0] for rows in answer["quantiles"].values())
            print(f"{seq:3d}: {value:6.3f}, next {middle:6.3f} ({low:6.3f} … {high:6.3f})")
        ask(socket, type="session.close", session=session)


if __name__ == "__main__":
    try:
        main(*(sys.argv[1:] or [HOST]))
    except ConnectionRefusedError as error:
        sys.exit(f"error: no server there, is `kssm serve` running? {error}")
