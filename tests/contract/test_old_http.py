"""Event streams over HTTP/1.0 have no chunks, on every route, and bodies in an unknown coding are refused."""

import json
import re
import socket
from typing import Any

import httpx
import pytest

from tests.fakes.running_router import WAIT_TIMEOUT_S, RunningRouter

_GENERATE = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
_CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True}
_COMPLETION = {"prompt": "hi", "max_tokens": 3, "stream": True}
STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("/generate_stream", _GENERATE),
    ("/", {**_GENERATE, "stream": True}),
    ("/v1/chat/completions", _CHAT),
    ("/v1/completions", _COMPLETION),
    ("/invocations", {**_GENERATE, "stream": True}),
    ("/invocations", _CHAT),
    ("/invocations", _COMPLETION),
]


def say(router: RunningRouter, version: str, route: str, body: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return header and body of an answer that ends with the connection."""
    data = json.dumps(body).encode()
    head = f"POST {route} HTTP/{version}\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", router.port), WAIT_TIMEOUT_S) as connection:
        connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
        with connection.makefile("rb") as file:
            header, _, said = file.read().partition(b"\r\n\r\n")
    return header, said


def without_ids(events: bytes) -> bytes:
    return re.sub(rb'"(id|created)":("[^"]*"|\d+),', b"", events)


@pytest.mark.parametrize(("route", "body"), STREAMS)
def test_stream_has_the_same_events_without_chunks(router: RunningRouter, route: str, body: dict[str, Any]) -> None:
    header, said = say(router, "1.0", route, body)
    assert b"transfer-encoding" not in header.lower()
    assert b"content-length" not in header.lower()
    with router.client() as client:
        usual = client.post(route, json=body).content
    assert usual.startswith(b"data: ")
    assert without_ids(said) == without_ids(usual)


@pytest.mark.parametrize("coding", ["gzip", "br", "x-custom"])
@pytest.mark.parametrize("route", ["/generate", "/v1/chat/completions", "/tokenize", "/vertex", "/invocations"])
def test_coded_body_is_415(client: httpx.Client, route: str, coding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = client.post(route, content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error_type"] == "unsupported_media_type"
    assert coding in json.dumps(answer.json()["error"])
    assert answer.headers["accept-encoding"] == "identity"  # RFC 9110, 15.5.16


def test_identity_is_no_coding(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"inputs": "x"}, headers={"content-encoding": "Identity"})
    assert answer.status_code == 200
