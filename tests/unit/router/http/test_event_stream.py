"""The begin of an answer in events, the comments that keep it alive, and its end."""

import asyncio
import inspect
from typing import Any

from starlette.types import Message
from textmill_router.http.call import open_call
from textmill_router.http.event_stream import EventStream, OpenStreams

LIMIT_S = 5.0


class Wire:
    """A connection that keeps all messages and may block writers."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.changed = asyncio.Event()

    async def send(self, message: Message) -> None:
        await self.may_send.wait()
        self.sent.append(message)
        self.changed.set()

    async def until(self, num_messages: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while len(self.sent) < num_messages:
                self.changed.clear()
                await self.changed.wait()

    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


def make_stream(wire: Wire, keep_alive_s: float, streams: OpenStreams | None = None) -> EventStream:
    scope: dict[str, Any] = {"type": "http"}
    open_call(scope, "id")
    return EventStream(scope, wire.send, [], streams or OpenStreams(), keep_alive_s)


def test_nothing_is_sent_before_the_first_write() -> None:
    async def scenario() -> None:
        wire = Wire()
        stream = make_stream(wire, 15.0)
        await asyncio.sleep(0)
        assert wire.sent == []
        assert not stream.is_started
        await stream.write(b"one")
        await stream.end(b"two")
        assert [message["type"] for message in wire.sent] == ["http.response.start", *["http.response.body"] * 2]
        assert wire.sent[0]["status"] == 200
        assert [message.get("more_body") for message in wire.sent[1:]] == [True, False]

    asyncio.run(scenario())


def test_all_open_streams_get_a_comment_at_once_and_ended_ones_none() -> None:
    async def scenario() -> None:
        streams = OpenStreams()
        silent, ended, blocked = Wire(), Wire(), Wire()
        make_stream(silent, 15.0, streams)
        over = make_stream(ended, 15.0, streams)
        await over.end(b"end")
        make_stream(blocked, 15.0, streams)
        blocked.may_send.clear()
        streams.comment_all()
        streams.comment_all()  # the comment that still waits needs no second one
        await silent.until(2)
        blocked.may_send.set()
        await blocked.until(2)
        await asyncio.sleep(0)
        assert silent.bodies() == blocked.bodies() == [b":\n\n"]
        assert ended.bodies() == [b"end"]

    asyncio.run(scenario())


def test_silence_is_filled_with_comments_also_before_the_first_event() -> None:
    async def scenario() -> None:
        wire = Wire()
        stream = make_stream(wire, 0.01)
        await wire.until(3)
        assert stream.is_started
        await stream.write(b"one")
        await wire.until(5)
        assert wire.bodies()[:2] == [b":\n\n"] * 2
        assert b"one" in wire.bodies()
        assert wire.bodies()[-1] == b":\n\n"
        await stream.end(b"two")
        assert [message["type"] for message in wire.sent].count("http.response.start") == 1
        num_messages = len(wire.sent)
        await asyncio.sleep(0.03)  # three intervals, in which no comment follows the end
        assert len(wire.sent) == num_messages

    asyncio.run(scenario())


def test_comments_come_after_15_seconds_unless_told_otherwise() -> None:
    assert inspect.signature(EventStream).parameters["keep_alive_s"].default == 15.0


def test_stream_that_flows_has_no_comments() -> None:
    async def scenario() -> None:
        wire = Wire()
        stream = make_stream(wire, 0.2)
        for _ in range(30):
            await stream.write(b"event")
            await asyncio.sleep(0.01)
        await stream.end(b"")
        assert b":\n\n" not in wire.bodies()

    asyncio.run(scenario())


def test_comment_that_waits_for_a_slow_reader_goes_before_the_next_event() -> None:
    async def scenario() -> None:
        wire = Wire()
        stream = make_stream(wire, 0.01)
        await stream.write(b"one")
        wire.may_send.clear()
        await asyncio.sleep(0.05)  # several intervals, in which one comment waits and none is added
        writing = asyncio.create_task(stream.end(b"two"))
        await asyncio.sleep(0)
        wire.may_send.set()
        await asyncio.wait_for(writing, LIMIT_S)
        assert wire.bodies() == [b"one", b":\n\n", b"two"]

    asyncio.run(scenario())


def test_stream_closed_before_it_began_does_not_begin() -> None:
    """The error that closed the stream keeps its own status, also when a comment is due in that turn of the loop."""

    async def scenario() -> None:
        wire = Wire()
        stream = make_stream(wire, 0.0)
        for _ in range(2):  # the timer has run, but not its comment
            await asyncio.sleep(0)
        assert not stream.is_started
        stream.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert wire.sent == []
        assert not stream.is_started

    asyncio.run(scenario())
