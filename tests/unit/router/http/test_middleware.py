"""Who is let through, and what finding out may cost. The rest stands in `contract/test_routes.py`."""

import asyncio
import time
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from textmill_router.http.middleware import ApiKey
from textmill_router.http.replies import open_call


def status_with(authorization: bytes) -> int:
    """What a call with this header is answered with."""
    statuses: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope: dict[str, Any] = {"method": "POST", "path": "/generate", "headers": [(b"authorization", authorization)]}
    open_call(scope, "id")
    asyncio.run(ApiKey(app, "a key")(scope, receive, send))
    [status] = statuses
    return status


@pytest.mark.parametrize("value", [b"Bearer a key", b"bearer: \ta key", b"Bearer a key \t"])
def test_spaces_around_the_key_do_not_count(value: bytes) -> None:
    assert status_with(value) == 200


@pytest.mark.parametrize("value", [b"Bearer", b"Bearera key", b"Bearer akey", b"Bearer  ", b"a key"])
def test_other_keys_are_refused(value: bytes) -> None:
    assert status_with(value) == 401


def test_header_of_spaces_is_read_once() -> None:
    """Tried at each of its spaces, this one would take seconds."""
    begin_s = time.monotonic()
    assert status_with(b"Bearer" + b" " * 30_000) == 401
    assert status_with(b"Bearer a" + b" " * 30_000 + b"x") == 401
    assert time.monotonic() - begin_s < 1
