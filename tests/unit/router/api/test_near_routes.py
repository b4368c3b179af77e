"""The route that a caller of an unknown path may have meant."""

import pytest
from textmill_router.api.near_routes import near_route

KNOWN = (
    "/",
    "/generate",
    "/generate_stream",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/info",
    "/embed",
)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),  # a base URL with /v1 and a client that adds /v1
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions"),  # a base URL with the whole route
        ("/api/generate", "/generate"),
        ("/v1/generate_stream", "/generate_stream"),
        ("/generate/", "/generate"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/chat/Completions", "/v1/chat/completions"),
        ("/genrate", "/generate"),
        ("/v1/responses", "/v1/chat/completions"),
        ("/v1/messages", "/v1/chat/completions"),
        ("/api/chat", "/v1/chat/completions"),
        ("/favicon.ico", None),
        ("/", None),
        ("", None),
        ("/v1/images/generations", None),
        ("/" + "x" * 10_000, None),
    ],
)
def test_near_route(path: str, meant: str | None) -> None:
    assert near_route(path, KNOWN) == meant


def test_chats_of_other_dialects_mean_nothing_where_no_chat_is_served() -> None:
    assert near_route("/v1/responses", ("/", "/embed")) is None
