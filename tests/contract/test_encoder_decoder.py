"""A model with an encoder behind the router: messages to the shard, counts, shown tokens and refusals."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

DECODER_PROMPT = (257, 256)  # <|end|><|begin|>
INPUT = [256, *b"hi"]  # the tokenizer's own first token, then the bytes
MAX_ENCODER_TOKENS = 20
MAX_DECODER_TOKENS = 30


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    options = FakeShardOptions(
        num_slots=8,
        num_blocks=64,
        decoder_prompt_ids=DECODER_PROMPT,
        max_encoder_tokens=MAX_ENCODER_TOKENS,
        max_model_tokens=MAX_DECODER_TOKENS,
    )
    with RunningRouter(tmp_path_factory.mktemp("router"), options) as running:
        yield running


@pytest.fixture(scope="module")
def client(router: RunningRouter) -> Iterator[httpx.Client]:
    with router.client() as opened:
        yield opened


def post(client: httpx.Client, route: str, body: dict[str, Any], status: int = 200) -> httpx.Response:
    answer = client.post(route, json=body)
    assert answer.status_code == status, answer.text
    return answer


def generate(client: httpx.Client, route: str = "/generate", text: str = "hi", **parameters: Any) -> Any:
    return post(client, route, {"inputs": text, "parameters": {"max_new_tokens": 2, **parameters}}).json()


def refusal(client: httpx.Client, text: str = "hi", **parameters: Any) -> str:
    answer = post(client, "/generate", {"inputs": text, "parameters": parameters}, status=422).json()
    assert answer["error_type"] == "validation"
    message: str = answer["error"]
    return message


def test_the_shard_gets_the_input_then_the_first_tokens_of_the_decoder(
    router: RunningRouter, client: httpx.Client
) -> None:
    assert generate(client, details=True, decoder_input_details=True)["generated_text"] == "ab"
    admit = router.shard.last_admit
    assert admit is not None
    assert list(struct.unpack("<5I", admit.prompt_ids)) == [*INPUT, *DECODER_PROMPT]
    assert admit.num_encoder_tokens == len(INPUT)
    assert not admit.HasField("prompt_logprobs_from")


def test_prompt_details_are_the_first_tokens_of_the_decoder(client: httpx.Client) -> None:
    assert generate(client, decoder_input_details=True)["details"]["prefill"] == [
        {"id": 257, "text": "<|end|>", "logprob": None},
        {"id": 256, "text": "<|begin|>", "logprob": None},
    ]
    assert generate(client, details=True)["details"]["prefill"] == []


def test_tokens_of_the_input_are_counted(client: httpx.Client) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 2, "details": True}}
    assert post(client, "/generate", body).headers["x-prompt-tokens"] == "3"
    events = post(client, "/generate_stream", body).text.split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["details"]["input_length"] == 3
    answer = post(client, "/v1/completions", {"model": "m", "prompt": "hi", "max_tokens": 2}).json()
    assert answer["choices"][0]["text"] == "ab"
    usage = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert usage == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_the_input_is_given_back_only_where_it_is_asked_for(client: httpx.Client) -> None:
    assert generate(client, "/") == [{"generated_text": "ab"}]
    assert generate(client, "/", return_full_text=True) == [{"generated_text": "hiab"}]
    echoed = post(client, "/v1/completions", {"model": "m", "prompt": "hi", "max_tokens": 2, "echo": True}).json()
    assert echoed["choices"][0]["text"] == "hiab"


def test_info_names_the_task_and_the_limits(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert info["model_pipeline_tag"] == "text2text-generation"
    assert info["max_input_tokens"] == MAX_ENCODER_TOKENS
    assert info["max_total_tokens"] == MAX_ENCODER_TOKENS + MAX_DECODER_TOKENS - len(DECODER_PROMPT)


def test_an_input_beyond_the_positions_of_the_encoder_is_refused(client: httpx.Client) -> None:
    assert generate(client, text="x" * (MAX_ENCODER_TOKENS - 1))
    message = refusal(client, text="x" * MAX_ENCODER_TOKENS)
    assert "the prompt has 21 tokens, the limit is 20 (where the positions of the encoder end)" in message
    assert generate(client, text="x" * 100, truncate=MAX_ENCODER_TOKENS)


def test_output_ends_where_the_positions_of_the_decoder_end(client: httpx.Client) -> None:
    most = MAX_DECODER_TOKENS - len(DECODER_PROMPT)
    assert generate(client, max_new_tokens=None, details=True)["details"]["generated_tokens"] == most
    assert f"`max_new_tokens` must be <= {most}" in refusal(client, max_new_tokens=most + 1)


def test_an_echo_with_log_probabilities_is_refused(client: httpx.Client) -> None:
    body = {"model": "m", "prompt": "hi", "max_tokens": 2, "echo": True, "logprobs": 1}
    error = post(client, "/v1/completions", body, status=422).json()["error"]
    assert error["param"] == "logprobs"
    assert "encoder" in error["message"]
