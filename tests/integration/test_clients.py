"""The clients of huggingface_hub and text_generation against a running server."""

import asyncio
import inspect
import json
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub import errors as hub_errors
from text_generation import AsyncClient, Client
from text_generation.errors import OverloadedError, ValidationError

from tests.fakes.processes import LaunchedServer
from tests.fakes.running_router import RunningRouter

# text_generation is written for pydantic 1, of which it warns at each call.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

PROMPT = "The capital of France is"
MAX_NEW_TOKENS = 12
TIMEOUT_S = 60
# Every argument of the hub's client but `adapter_id`.
EVERYTHING: dict[str, Any] = {
    "best_of": 1,
    "decoder_input_details": True,
    "do_sample": True,
    "frequency_penalty": 0.1,
    "grammar": {"type": "regex", "value": "[A-Z][a-z]+ [a-z]+"},
    "max_new_tokens": MAX_NEW_TOKENS,
    "repetition_penalty": 1.05,
    "return_full_text": False,
    "seed": 3,
    "stop": ["zzz"],
    "temperature": 0.8,
    "top_k": 40,
    "top_n_tokens": 3,
    "top_p": 0.95,
    "truncate": 4,
    "typical_p": 0.9,
    "watermark": True,
}
STREAMED = {**EVERYTHING, "decoder_input_details": False}


@pytest.fixture(scope="module")
def expected(real_server: LaunchedServer) -> dict[str, Any]:
    """Return the answer of POST /generate: the text and the details that the clients have to give back."""
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "details": True}}
    answer = httpx.post(f"{real_server.base_url}/generate", json=body, timeout=TIMEOUT_S, trust_env=False)
    assert answer.status_code == 200
    return answer.json()


@pytest.fixture
def hub_client(real_server: LaunchedServer) -> InferenceClient:
    return InferenceClient(base_url=real_server.base_url, timeout=TIMEOUT_S)


@pytest.fixture
def tgi_client(real_server: LaunchedServer) -> Client:
    return Client(real_server.base_url, timeout=TIMEOUT_S)


def test_hub_client_gets_prompt_and_text(hub_client: InferenceClient, expected: dict[str, Any]) -> None:
    """The client posts to `/`, where by default the prompt stands before the text."""
    text = hub_client.text_generation(PROMPT, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    assert text == PROMPT + expected["generated_text"]


@pytest.mark.parametrize(("return_full_text", "prefix"), [(False, ""), (True, PROMPT)])
def test_hub_client_says_whether_it_wants_the_prompt(
    hub_client: InferenceClient, expected: dict[str, Any], return_full_text: bool, prefix: str
) -> None:
    text = hub_client.text_generation(
        PROMPT, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, return_full_text=return_full_text
    )
    assert text == prefix + expected["generated_text"]


def test_hub_client_gets_details(hub_client: InferenceClient, expected: dict[str, Any]) -> None:
    answer = hub_client.text_generation(
        PROMPT, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, details=True, return_full_text=False
    )
    assert answer.generated_text == expected["generated_text"]
    details = expected["details"]
    assert answer.details.finish_reason == details["finish_reason"]
    assert answer.details.generated_tokens == details["generated_tokens"] == MAX_NEW_TOKENS
    assert [token.id for token in answer.details.tokens] == [token["id"] for token in details["tokens"]]
    assert [token.text for token in answer.details.tokens] == [token["text"] for token in details["tokens"]]


def test_hub_client_streams_text(hub_client: InferenceClient, expected: dict[str, Any]) -> None:
    pieces = hub_client.text_generation(PROMPT, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stream=True)
    assert "".join(pieces) == expected["generated_text"]


def test_hub_client_streams_details(hub_client: InferenceClient, expected: dict[str, Any]) -> None:
    events = list(
        hub_client.text_generation(PROMPT, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stream=True, details=True)
    )
    assert [event.token.id for event in events] == [token["id"] for token in expected["details"]["tokens"]]
    assert all(event.generated_text is None for event in events[:-1])
    assert events[-1].details.finish_reason == expected["details"]["finish_reason"]
    assert events[-1].generated_text.endswith(expected["generated_text"])


def ask(server: LaunchedServer, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of POST /generate to these parameters."""
    body = {"inputs": PROMPT, "parameters": {**parameters, "details": True}}
    answer = httpx.post(f"{server.base_url}/generate", json=body, timeout=TIMEOUT_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, TIMEOUT_S))


def test_every_argument_of_the_hub_client_is_tried() -> None:
    """`stop_sequences` is the old name of `stop`, and each test sets `details`, `stream` and `model` by itself."""
    for client in (InferenceClient, AsyncInferenceClient):
        arguments = set(inspect.signature(client.text_generation).parameters)
        chosen = {"self", "prompt", "details", "stream", "model", "adapter_id", "stop_sequences"}
        assert arguments - chosen == set(EVERYTHING)


def test_hub_client_passes_every_argument(real_server: LaunchedServer, hub_client: InferenceClient) -> None:
    wanted = ask(real_server, EVERYTHING)
    answer = hub_client.text_generation(PROMPT, details=True, **EVERYTHING)
    assert answer.generated_text == wanted["generated_text"]
    assert [token.id for token in answer.details.tokens] == [token["id"] for token in wanted["details"]["tokens"]]
    assert answer.details.seed == 3
    assert len(answer.details.prefill) == 4
    assert [len(top) for top in answer.details.top_tokens] == [len(top) for top in wanted["details"]["top_tokens"]]
    assert hub_client.text_generation(PROMPT, **STREAMED) == wanted["generated_text"]


def test_hub_client_streams_with_every_argument(real_server: LaunchedServer, hub_client: InferenceClient) -> None:
    wanted = ask(real_server, STREAMED)
    events = list(hub_client.text_generation(PROMPT, details=True, stream=True, **STREAMED))
    assert [event.token.id for event in events] == [token["id"] for token in wanted["details"]["tokens"]]
    assert events[-1].generated_text == wanted["generated_text"]
    assert events[-1].details.finish_reason == wanted["details"]["finish_reason"]
    assert events[-1].details.input_length == 4


def test_async_hub_client_does_the_same(real_server: LaunchedServer) -> None:
    wanted = ask(real_server, STREAMED)

    async def work() -> None:
        async with AsyncInferenceClient(base_url=real_server.base_url, timeout=TIMEOUT_S) as client:
            assert await client.text_generation(PROMPT, **STREAMED) == wanted["generated_text"]
            answer = await client.text_generation(PROMPT, details=True, **STREAMED)
            assert answer.details.generated_tokens == wanted["details"]["generated_tokens"]
            events = [
                event async for event in await client.text_generation(PROMPT, stream=True, details=True, **STREAMED)
            ]
            assert events[-1].generated_text == wanted["generated_text"]
            pieces = [piece async for piece in await client.text_generation(PROMPT, stream=True, **STREAMED)]
            # The client leaves out special tokens.
            assert "".join(pieces) == "".join(event.token.text for event in events if not event.token.special)
            with pytest.raises(hub_errors.ValidationError, match="top_p"):
                await client.text_generation(PROMPT, top_p=7.0)

    run(work())


def test_hub_client_gets_the_best_of_two_and_the_other(hub_client: InferenceClient) -> None:
    """The call has no seed, because a seed excludes `best_of`."""
    asked = {**EVERYTHING, "best_of": 2, "seed": None, "max_new_tokens": 4}
    details = hub_client.text_generation(PROMPT, details=True, **asked).details
    [other] = details.best_of_sequences
    assert [token.id for token in details.prefill] == [token.id for token in other.prefill]
    assert details.seed != other.seed
    means = [sum(token.logprob for token in one.tokens) / len(one.tokens) for one in (details, other)]
    assert means[0] >= means[1]


@pytest.mark.parametrize("stream", [False, True])
def test_hub_client_raises_its_validation_error(hub_client: InferenceClient, stream: bool) -> None:
    with pytest.raises(hub_errors.ValidationError, match="Input validation error: `top_p`"):
        list(hub_client.text_generation(PROMPT, max_new_tokens=4, top_p=7.0, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
def test_clients_raise_their_overloaded_error(tmp_path: Path, stream: bool) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=1) as router:
        router.shard.pause()
        holder = router.send("/generate", {"inputs": "hi"})
        router.wait_until(lambda: router.service.permits.held == 1, "the permit is taken")
        with pytest.raises(hub_errors.OverloadedError, match="overloaded"):
            list(InferenceClient(base_url=router.url, timeout=TIMEOUT_S).text_generation("hi", stream=stream))
        client = Client(router.url, timeout=TIMEOUT_S)
        with pytest.raises(OverloadedError):
            list(client.generate_stream("hi") if stream else client.generate("hi"))

        async def ask_all() -> None:
            async with AsyncInferenceClient(base_url=router.url, timeout=TIMEOUT_S) as hub:
                with pytest.raises(hub_errors.OverloadedError):
                    await hub.text_generation("hi", stream=stream)
            client = AsyncClient(router.url, timeout=TIMEOUT_S)
            with pytest.raises(OverloadedError):
                await (anext(client.generate_stream("hi")) if stream else client.generate("hi"))

        run(ask_all())
        holder.close()
        router.shard.resume()


def test_tgi_client_generates(tgi_client: Client, expected: dict[str, Any]) -> None:
    answer = tgi_client.generate(PROMPT, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    assert answer.generated_text == expected["generated_text"]
    assert [token.id for token in answer.details.tokens] == [token["id"] for token in expected["details"]["tokens"]]


def test_tgi_client_gets_prompt_details(tgi_client: Client) -> None:
    answer = tgi_client.generate(PROMPT, max_new_tokens=2, do_sample=False, decoder_input_details=True)
    assert "".join(token.text for token in answer.details.prefill) == PROMPT
    assert answer.details.prefill[0].logprob is None
    assert all(token.logprob < 0 for token in answer.details.prefill[1:])


def test_tgi_client_streams(tgi_client: Client, expected: dict[str, Any]) -> None:
    events = list(tgi_client.generate_stream(PROMPT, max_new_tokens=MAX_NEW_TOKENS, do_sample=False))
    assert [event.token.id for event in events] == [token["id"] for token in expected["details"]["tokens"]]
    assert "".join(event.token.text for event in events if not event.token.special) == expected["generated_text"]
    assert events[-1].generated_text == expected["generated_text"]
    assert events[-1].details.finish_reason.value == expected["details"]["finish_reason"]


def test_tgi_client_says_the_reason_of_a_refusal(real_server: LaunchedServer) -> None:
    """The client checks most values by itself, so the call exceeds the budget, which only the server knows."""
    with pytest.raises(ValidationError, match="must be <="):
        Client(real_server.base_url, timeout=TIMEOUT_S).generate("word " * 5000, max_new_tokens=1)


def test_async_tgi_client_does_the_same(real_server: LaunchedServer, expected: dict[str, Any]) -> None:
    async def work() -> None:
        client = AsyncClient(real_server.base_url, timeout=TIMEOUT_S)
        answer = await client.generate(PROMPT, max_new_tokens=MAX_NEW_TOKENS)
        assert answer.generated_text == expected["generated_text"]
        events = [event async for event in client.generate_stream(PROMPT, max_new_tokens=MAX_NEW_TOKENS)]
        assert [event.token.id for event in events] == [token["id"] for token in expected["details"]["tokens"]]
        assert events[-1].generated_text == expected["generated_text"]
        with pytest.raises(ValidationError, match="must be <="):
            await client.generate("word " * 5000, max_new_tokens=1)

    run(work())


def test_curl_shows_each_event_of_a_stream(real_server: LaunchedServer, expected: dict[str, Any]) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}}
    command = ["curl", "-sN", f"{real_server.base_url}/generate_stream", "-H", "content-type: application/json"]
    done = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, timeout=TIMEOUT_S, check=True)
    lines = done.stdout.decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: {") for line in lines)
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["token"]["id"] for event in events] == [token["id"] for token in expected["details"]["tokens"]]
    assert events[-1]["generated_text"] == expected["generated_text"]
