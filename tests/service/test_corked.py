"""What is written together leaves together."""

from __future__ import annotations

import asyncio

from service.corked import MOST, CorkedTransport


class Wire(asyncio.Transport):
    """Notes what is done to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("here", 1)})
        self.said: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said.append(bytes(data))

    def close(self) -> None:
        self.said.append("close")

    def abort(self) -> None:
        self.said.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.said

    def pause_reading(self) -> None:
        self.said.append("pause")

    def resume_reading(self) -> None:
        self.said.append("resume")


def corked() -> tuple[Wire, CorkedTransport]:
    wire = Wire()
    return wire, CorkedTransport(wire, asyncio.get_running_loop())


async def test_all_but_the_first_go_out_in_one_piece_in_the_next_turn():
    wire, transport = corked()
    for part in (b"a", bytearray(b"b"), memoryview(b"c")):
        transport.write(part)
    assert wire.said == [b"a"]
    await asyncio.sleep(0)
    assert wire.said == [b"a", b"bc"]
    transport.write(b"d")  # in the turn in which others went out
    assert wire.said == [b"a", b"bc"]
    await asyncio.sleep(0)
    assert wire.said == [b"a", b"bc", b"d"]


async def test_single_answers_do_not_wait():
    wire, transport = corked()
    for part in (b"a", b"b"):
        transport.write(part)
        assert wire.said[-1] == part
        await asyncio.sleep(0)


async def test_much_is_not_held_back():
    wire, transport = corked()
    transport.write(b"first")
    transport.write(b"x")
    transport.write(bytes(MOST))
    assert [len(part) for part in wire.said] == [5, MOST + 1]
    transport.write(b"y")
    await asyncio.sleep(0)
    assert wire.said[2:] == [b"y"]


async def test_closing_sends_what_is_held_back_and_aborting_does_not():
    for end, said in (("close", [b"first", b"last", "close"]), ("abort", [b"first", "abort"])):
        wire, transport = corked()
        transport.write(b"first")
        transport.write(b"last")
        assert not transport.is_closing()
        getattr(transport, end)()
        assert transport.is_closing() == (end == "close")
        await asyncio.sleep(0)
        assert wire.said == said


async def test_the_rest_is_the_transports():
    wire, transport = corked()
    transport.pause_reading()
    transport.resume_reading()
    assert wire.said == ["pause", "resume"]
    assert transport.get_extra_info("peername") == ("here", 1)
    assert transport.get_extra_info("nothing", 3) == 3
