"""The calls that the API key lets through, the time of the check, and the rules for pages of other origins.

`contract/test_routes.py` and `contract/test_access.py` have the rest.
"""

import asyncio
import time
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from textmill_router.http.api_keys import ApiKeyEntry, KeyRing, digest_of
from textmill_router.http.call import open_call
from textmill_router.http.error_responses import TGI_ERRORS
from textmill_router.http.middleware import ApiKey, Cors, CorsRules
from textmill_router.http.path_style import PathStyle, PathStyles

TOKEN_STYLE = PathStyle("/other/", TGI_ERRORS, key_header="x-other-key")


def status_with(value: bytes, name: bytes = b"authorization", path: str = "/generate") -> int:
    """Return the status of a call with this header."""
    statuses: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope: dict[str, Any] = {"method": "POST", "path": path, "headers": [(name, value)]}
    open_call(scope, "id")
    asyncio.run(
        ApiKey(app, KeyRing([ApiKeyEntry("k", digest_of(b"a key"))]), PathStyles([TOKEN_STYLE]))(scope, receive, send)
    )
    [status] = statuses
    return status


@pytest.mark.parametrize("value", [b"Bearer a key", b"bearer: \ta key", b"Bearer a key \t"])
def test_spaces_around_the_key_do_not_count(value: bytes) -> None:
    assert status_with(value) == 200


@pytest.mark.parametrize("value", [b"Bearer", b"Bearera key", b"Bearer akey", b"Bearer  ", b"a key"])
def test_other_keys_are_refused(value: bytes) -> None:
    assert status_with(value) == 401


def test_header_of_spaces_is_read_once() -> None:
    """A match that begins at each of the spaces would take seconds."""
    begin_s = time.process_time()
    assert status_with(b"Bearer" + b" " * 30_000) == 401
    assert status_with(b"Bearer a" + b" " * 30_000 + b"x") == 401
    assert time.process_time() - begin_s < 1


@pytest.mark.parametrize(
    ("value", "name", "path", "status"),
    [
        (b"a key", b"x-other-key", "/other/route", 200),
        (b" a key ", b"x-other-key", "/other/", 200),
        (b"Bearer a key", b"x-other-key", "/other/route", 401),
        (b"", b"x-other-key", "/other/route", 401),
        (b"a key", b"x-other-key", "/generate", 401),
        (b"Bearer a key", b"authorization", "/other/route", 200),
        (b"a key", b"x-api-key", "/other/route", 200),
        (b"a key", b"x-api-key", "/generate", 200),
        (b"", b"x-api-key", "/generate", 401),
        (b"Bearer a key", b"x-api-key", "/generate", 401),
    ],
)
def test_a_path_has_its_own_header_of_the_key(value: bytes, name: bytes, path: str, status: int) -> None:
    assert status_with(value, name, path) == status


def preflight(rules: CorsRules, origin: bytes, wanted: bytes) -> dict[bytes, bytes]:
    """Return the headers of the answer to a preflight."""
    answers: list[dict[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("a preflight reaches no route")

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answers.append(dict(message["headers"]))

    asked = [(b"origin", origin), (b"access-control-request-method", b"POST")]
    headers = [*asked, (b"access-control-request-headers", wanted)]
    scope: dict[str, Any] = {"method": "OPTIONS", "path": "/generate", "headers": headers}
    open_call(scope, "id")
    asyncio.run(Cors(app, rules)(scope, receive, send))
    [answer] = answers
    return answer


def test_listed_headers_are_allowed_beside_those_that_the_server_reads_and_no_others() -> None:
    rules = CorsRules(origins=("https://a",), headers=("x-own",), max_age_s=5)
    answer = preflight(rules, b"https://a", b"x-own,x-other")
    allowed = answer[b"access-control-allow-headers"].split(b",")
    assert {b"authorization", b"x-api-key", b"content-type", b"x-own"} <= set(allowed)
    assert b"x-other" not in allowed
    assert answer[b"access-control-max-age"] == b"5"
    assert b"access-control-allow-credentials" not in answer
    assert b"x-other" in preflight(CorsRules(), b"https://a", b"x-other")[b"access-control-allow-headers"].split(b",")


def test_credentials_are_for_listed_origins_alone() -> None:
    rules = CorsRules(origins=("https://a",), allows_credentials=True)
    assert preflight(rules, b"https://a", b"")[b"access-control-allow-credentials"] == b"true"
    stranger = preflight(rules, b"https://b", b"")
    assert b"access-control-allow-credentials" not in stranger
    assert b"access-control-allow-origin" not in stranger
