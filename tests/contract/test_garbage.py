"""Objects of a call die with their last reference, because a collection would stop the router for a moment."""

import gc
import http.client
import json
from typing import Any

import pytest

from tests.fakes.running_router import WAIT_TIMEOUT_S, RunningRouter

NUM_CALLS = 10
MESSAGES = [{"role": "user", "content": "hi"}]


def call(router: RunningRouter, path: str, body: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=WAIT_TIMEOUT_S)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, bool(answer.read())) == (200, True)
    connection.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "hi", "parameters": {"max_new_tokens": 3}}),
        ("/generate_stream", {"inputs": "hi", "parameters": {"max_new_tokens": 3}}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "stream": True, "n": 2}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 3}),
    ],
    ids=["whole", "stream", "chat", "completion"],
)
def test_calls_leave_no_circles(router: RunningRouter, path: str, body: dict[str, Any]) -> None:
    call(router, path, body)
    gc.collect()
    gc.disable()
    try:
        for _ in range(NUM_CALLS):
            call(router, path, body)
        router.wait_until_free()
        assert gc.collect() < NUM_CALLS  # a circle for each call would be several objects for each
    finally:
        gc.enable()
