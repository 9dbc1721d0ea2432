"""The state machine and a model server, with a connection in slow motion between them."""

from __future__ import annotations

from collections.abc import Sequence

from kssm_client.core import ClientCore
from kssm_client.errors import (
    KSSMClientError,
)
from kssm_client.events import Draining, Event, Failed, RetryLater, Succeeded
from kssm_client.types import Encoding, Forecast, SessionInfo, SessionOptions
from tests.client.model_server import Connection, Message, ModelServer, ModelSession

WINDOW = 5


class Wire:
    """A connection in slow motion: what is under way in each direction can be cut."""

    def __init__(self, core: ClientCore, server: ModelServer) -> None:
        self.core = core
        self.server = server
        self.connection: Connection | None = None
        self.upward: list[Message] = []
        self.downward: list[Message] = []
        self.results: dict[int, Succeeded | Failed] = {}
        self.retries: list[int] = []
        self.largest_flight = 0

    def connect(self) -> None:
        self.connection = self.server.connect()
        self.core.connected()

    def cut(self) -> None:
        """Lose everything under way."""
        self.connection = None
        self.upward.clear()
        self.downward.clear()
        self.core.disconnected()

    def transmit(self) -> None:
        self.upward += self.core.outgoing()
        self.largest_flight = max(self.largest_flight, len(self.upward) + len(self.downward))

    def serve(self, count: int = 1_000_000) -> None:
        assert self.connection is not None
        taken, self.upward = self.upward[:count], self.upward[count:]
        self.downward += [self.connection.answer(message) for message in taken]

    def deliver(self, count: int = 1_000_000) -> None:
        taken, self.downward = self.downward[:count], self.downward[count:]
        for message in taken:
            self.take(self.core.receive(message))

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, RetryLater):
                self.retries.append(event.session)
            elif not isinstance(event, Draining):
                assert event.ticket not in self.results, "a ticket was answered twice"
                self.results[event.ticket] = event

    def settle(self) -> None:
        """Let everything arrive, connecting and retrying as a shell would."""
        for _ in range(2_000):
            if self.connection is None:
                self.connect()
            while self.retries:
                self.core.retry(self.retries.pop())
            self.transmit()
            if not self.upward and not self.downward:
                return
            self.serve()
            self.deliver()
        raise AssertionError("the client never came to rest")

    def forecast(self, ticket: int) -> Forecast:
        result = self.results[ticket]
        assert isinstance(result, Succeeded), result
        assert isinstance(result.result, Forecast)
        return result.result

    def error(self, ticket: int) -> KSSMClientError:
        result = self.results[ticket]
        assert isinstance(result, Failed), result
        return result.error


def wired(window: int = WINDOW, **server: int) -> tuple[ClientCore, Wire]:
    core = ClientCore(window)
    return core, Wire(core, ModelServer(**server))


def opened(
    core: ClientCore, wire: Wire, encoding: Encoding = "binary", channels: int = 1
) -> tuple[int, ModelSession]:
    key, ticket = core.create(SessionOptions(channels=channels, horizon=3, encoding=encoding))
    wire.settle()
    result = wire.results[ticket]
    assert isinstance(result, Succeeded)
    assert isinstance(result.result, SessionInfo)
    return key, wire.server.sessions[result.result.session]


def samples(session: ModelSession) -> list[object]:
    """What the server applied, one entry a frame or reset, frames of one sample flattened."""
    return [entry if entry == "reset" else entry[0][0] for entry in session.history]
