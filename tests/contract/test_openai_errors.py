"""The openai client raises a class for each refusal, with the message, code and parameter of the server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.chat_calls import USER
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

HELD = {"messages": [USER], "max_tokens": 5}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal: the fault of the server, the call, and the error that the client must raise."""

    kind: type[openai.APIStatusError]
    status: int
    words: str
    type: str
    code: str | None = None
    param: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    text: str = "hi"
    num_times: int = 4
    before: Callable[[RunningRouter], None] = lambda router: None


def take_the_permit(router: RunningRouter) -> None:
    router.shard.pause()
    router.holders.append(router.send("/v1/chat/completions", HELD))
    router.wait_until(lambda: router.service.permits.held == 1, "the permit is taken")


REFUSALS = [
    Refusal(
        openai.AuthenticationError,
        401,
        "send the header `Authorization: Bearer <key>`",
        "authentication_error",
        "invalid_api_key",
        settings={"api_key": ("other",)},
    ),
    Refusal(
        openai.NotFoundError,
        404,
        "The model 'gpt-4o' does not exist: this server serves 'fake/model'",
        "invalid_request_error",
        "model_not_found",
        settings={"strict_model": True},
        fields={"model": "gpt-4o"},
    ),
    Refusal(
        openai.APIStatusError,
        413,
        "the body must have at most 20 bytes (--payload-limit",
        "invalid_request_error",
        "payload_too_large",
        settings={"payload_limit": 20},
    ),
    Refusal(
        openai.UnprocessableEntityError,
        422,
        "`temperature` must be >= 0",
        "invalid_request_error",
        param="temperature",
        fields={"temperature": -1},
    ),
    Refusal(
        openai.BadRequestError,
        400,
        "`temperature` must be >= 0",
        "invalid_request_error",
        param="temperature",
        settings={"v1_errors": "openai"},
        fields={"temperature": -1},
    ),
    Refusal(
        openai.UnprocessableEntityError,
        422,
        "This model's maximum context length is 100 tokens",
        "invalid_request_error",
        "context_length_exceeded",
        param="max_tokens",
        settings={"max_total_tokens": 100},
        text="x" * 50,
    ),
    Refusal(
        openai.BadRequestError,
        400,
        "(context_length_exceeded)",
        "invalid_request_error",
        "context_length_exceeded",
        param="max_tokens",
        settings={"max_total_tokens": 100, "v1_errors": "openai"},
        text="x" * 50,
    ),
    Refusal(
        openai.APIStatusError,
        424,
        "scripted fault",
        "server_error",
        "generation",
        before=lambda router: router.shard.fail_slot(0),
    ),
    Refusal(
        openai.InternalServerError,
        500,
        "scripted fault",
        "server_error",
        "generation",
        settings={"v1_errors": "openai"},
        before=lambda router: router.shard.fail_slot(0),
    ),
    Refusal(
        openai.RateLimitError,
        429,
        "Model is overloaded: 1 of 1 sequences are in work",
        "rate_limit_error",
        "rate_limit_exceeded",
        settings={"max_concurrent_requests": 1},
        before=take_the_permit,
    ),
    Refusal(
        openai.InternalServerError,
        500,
        "the model server refused the plan",
        "server_error",
        "internal",
        before=lambda router: router.shard.reject_next_admission(),
        num_times=1,  # the second such answer of the shard would end the service
    ),
    Refusal(
        openai.InternalServerError,
        503,
        "Model fake/model is loading",
        "server_error",
        "loading",
        settings={"is_loading": True},
    ),
    Refusal(
        openai.InternalServerError,
        503,
        "the server is shutting down",
        "server_error",
        "shutting_down",
        before=lambda router: router.in_loop(router.service.permits.close),
    ),
]


@contextmanager
def opened(router: RunningRouter, key: str = "none") -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key=key, max_retries=0, http_client=http) as client:
        yield client


def ask(client: openai.OpenAI, is_chat: bool, text: str, **fields: Any) -> Any:
    fields = {"model": "tgi", **fields}
    if is_chat:
        return client.chat.completions.create(messages=[{"role": "user", "content": text}], **fields)
    return client.completions.create(prompt=text, **fields)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda row: f"{row.status}-{row.code}")
def test_refusal_has_its_class_message_and_code(tmp_path: Path, refusal: Refusal) -> None:
    """Chat and completions are called, whole and streamed."""
    forms = [(is_chat, streams) for streams in (False, True) for is_chat in (True, False)]
    with RunningRouter(tmp_path, **refusal.settings) as router, opened(router) as client:
        for is_chat, streams in forms[: refusal.num_times]:
            if not router.holders:
                refusal.before(router)
            fields = {"max_tokens": 90, "stream": streams, **refusal.fields}
            with pytest.raises(refusal.kind) as caught:
                ask(client, is_chat, refusal.text, **fields)
            error = caught.value
            assert type(error) is refusal.kind
            found = (error.status_code, error.type, error.code, error.param)
            assert found == (refusal.status, refusal.type, refusal.code, refusal.param)
            assert refusal.words in error.body["message"]
            assert refusal.words in str(error)
        router.shard.resume()
        for holder in router.holders:
            holder.close()


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completions"])
def test_failure_in_a_stream_is_raised_while_it_is_read(tmp_path: Path, is_chat: bool) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.01)) as router, opened(router) as client:
        events = iter(ask(client, is_chat, "hi", max_tokens=500, stream=True))
        assert next(events).choices
        router.shard.fail_slot(0)
        with pytest.raises(openai.APIError) as caught:
            list(events)
        assert caught.value.type == "server_error"
        assert caught.value.code == "generation"
        assert caught.value.message == "scripted fault"
        router.wait_until_free()


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completions"])
def test_stream_that_its_client_closes_frees_slots_and_blocks(tmp_path: Path, is_chat: bool) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005)) as router, opened(router) as client:
        stream = ask(client, is_chat, "hi", max_tokens=5000, n=3, stream=True)
        next(iter(stream))
        router.wait_until_counts(running=3, waiting=0)
        stream.close()
        router.wait_until_free()


def test_unknown_model_and_route_are_not_found(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, api_key=("secret",)) as router:
        with opened(router, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with opened(router, "secret") as client:
            assert client.models.list().data[0].id == "fake/model"
            assert client.models.retrieve("fake/model").id == "fake/model"
            for name in ("other", "other/model", "fake/model/", "fake"):
                with pytest.raises(openai.NotFoundError) as caught:
                    client.models.retrieve(name)
                assert caught.value.code == "model_not_found"
            with pytest.raises(openai.NotFoundError) as caught:
                client.moderations.create(input="x")
            assert caught.value.code == "not_found"
            with pytest.raises(openai.UnprocessableEntityError) as refused:
                client.embeddings.create(model="tgi", input="x")
            assert refused.value.code == "task"
