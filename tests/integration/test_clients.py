"""The clients that people have: huggingface_hub's and text_generation's, against a running server."""

from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from text_generation import Client
from text_generation.errors import ValidationError

from tests.processes import LaunchedServer

# text_generation is written for pydantic 1 and says so at each call.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

PROMPT = "The capital of France is"
MAX_NEW_TOKENS = 12
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def expected(real_server: LaunchedServer) -> dict[str, Any]:
    """What POST /generate answers: the text and the details that the clients have to give back."""
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
    """It posts to `/`, where the prompt stands before the text unless told otherwise."""
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


def test_hub_client_raises_on_a_bad_request(hub_client: InferenceClient) -> None:
    with pytest.raises(Exception, match="Input validation error"):
        hub_client.text_generation(PROMPT, max_new_tokens=4, top_p=7.0)


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
    """The client checks most values by itself, so the budget is overdrawn: only the server knows it."""
    with pytest.raises(ValidationError, match="must be <="):
        Client(real_server.base_url, timeout=TIMEOUT_S).generate("word " * 5000, max_new_tokens=1)
