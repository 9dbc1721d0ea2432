"""Whatever the network does: nothing lost, nothing twice."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kssm_client.errors import (
    ServerError,
)
from kssm_client.events import Succeeded
from tests.client.model_server import BAD_VALUE, MUTE_VALUE, ModelSession
from tests.client.slow_wire import opened, samples, wired


class AnyNetwork:
    """Random interleavings of calls, partial transmission, cuts and refusals."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.core, self.wire = wired(max_in_flight=12)
        self.keys: list[int] = []
        self.sessions: list[ModelSession] = []
        for _ in range(random.randint(1, 3)):
            key, session = opened(self.core, self.wire, random.choice(["binary", "json"]))
            self.keys.append(key)
            self.sessions.append(session)
        self.plan: list[list[tuple[int, object]]] = [[] for _ in self.keys]
        self.counter = 0

    def step(self) -> None:
        actions = [self.append, self.append, self.control, self.overload, self.retry]
        if self.wire.connection is None:
            actions += [self.connect] * 4
        else:
            actions += [self.move] * 6 + [self.cut, self.cut, self.goaway]
        self.random.choice(actions)()

    def append(self) -> None:
        which = self.random.randrange(len(self.keys))
        for _ in range(self.random.randint(1, 6)):
            self.counter += 1
            chance = self.random.random()
            value = BAD_VALUE if chance < 0.1 else float(self.counter % 512)
            value = MUTE_VALUE if chance > 0.95 else value
            self.plan[which].append((self.core.append(self.keys[which], value), value))

    def control(self) -> None:
        which = self.random.randrange(len(self.keys))
        kind = self.random.choice(["session.reset", "forecast.create"])
        self.plan[which].append((self.core.control(self.keys[which], kind), kind))

    def connect(self) -> None:
        self.wire.connect()

    def move(self) -> None:
        self.wire.transmit()
        self.wire.serve(self.random.randint(0, 12))
        self.wire.deliver(self.random.randint(0, 12))

    def cut(self) -> None:
        """The server gets some more of what was under way; no reply arrives any more."""
        self.wire.serve(self.random.randint(0, 9))
        self.wire.cut()

    def overload(self) -> None:
        self.wire.server.busy = self.random.randint(1, 4)

    def retry(self) -> None:
        while self.wire.retries:
            self.core.retry(self.wire.retries.pop())

    def goaway(self) -> None:
        self.core.receive('{"type": "goaway", "time_left_s": 1}')
        self.wire.serve()
        self.wire.deliver()
        self.wire.cut()

    def finish(self) -> None:
        assert self.wire.largest_flight <= 12
        self.wire.settle()
        for session, plan in zip(self.sessions, self.plan, strict=True):
            self.check(session, plan)

    def check(self, session: ModelSession, plan: list[tuple[int, object]]) -> None:
        reference = ModelSession("r", 1, 3, [0.1, 0.5, 0.9], "json", state=np.zeros(1))
        applied: list[object] = []
        seq = 0
        for ticket, what in plan:
            if what == "session.reset":
                assert self.wire.results[ticket] == Succeeded(ticket, None)
                reference.state = np.zeros(1)
                applied.append("reset")
                continue
            if what == BAD_VALUE:
                assert isinstance(self.wire.error(ticket), ServerError)
                continue
            if isinstance(what, float):
                reference.apply(np.array([[what]]))
                applied.append(what)
                seq += 1
            if what == MUTE_VALUE:
                assert self.wire.error(ticket).code in {"numerical_fault", "reply_lost"}
                continue
            forecast = self.wire.forecast(ticket)
            assert forecast.seq == seq - 1
            expected = reference.forecast(3, [0.1, 0.5, 0.9])
            np.testing.assert_allclose(forecast.values, expected, rtol=1e-6)
        assert without_repeated_resets(samples(session)) == without_repeated_resets(applied)


def without_repeated_resets(history: list[object]) -> list[object]:
    """A reset may be sent twice in a row, which changes nothing."""
    return [e for i, e in enumerate(history) if e != "reset" or i == 0 or history[i - 1] != e]


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 160))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_network_applies_every_frame_once_and_answers_it(seed: int, steps: int) -> None:
    network = AnyNetwork(Random(seed))
    for _ in range(steps):
        network.step()
    network.finish()
