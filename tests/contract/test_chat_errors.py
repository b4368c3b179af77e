"""Errors on /v1 in three styles, whole and in streams, with OpenAI's object and TGI's `error_type`; names of models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.chat_calls import USER, answer_of, ask, chunks_of, error_of
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "developer", "content": None}, USER]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 2, "7": "x", "8": 3}}, "logit_bias.7"),
        ({"logit_bias": {"1": None}}, "logit_bias.1"),
        ({"logit_bias": {"1" * 100: "x"}}, "logit_bias." + "1" * 64 + "..."),
        ({"logit_bias": ["x"]}, "logit_bias[0]"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [{"function": {"name": "f", "parameters": "x"}}]}, "tools[0].function.parameters"),
        ({"tools": [TOOL, {"function": {"name": ""}}]}, "tools[1].function.name"),
        ({"tools": [TOOL, {"function": {"name": "g"}}, TOOL]}, "tools[2].function.name"),
        ({"tools": [TOOL, TOOL], "tool_choice": "none"}, "tools[1].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json"}}, "response_format.value"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_bad_field_is_422_with_its_name(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    for streams in (False, True):
        error = error_of(ask(client, stream=streams, **fields), 422)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["code"] is None
        assert "max_new_tokens" not in error["message"]


def test_wrong_key_is_told_as_one(client: httpx.Client) -> None:
    message = error_of(ask(client, logit_bias={"1": 1, "a": 1}), 422)["message"]
    assert message == "`logit_bias`: expected `int`, got `str` as a key, found 'a'"


def test_key_that_is_given_twice_is_a_wrong_key_too(client: httpx.Client) -> None:
    for bias in ('{"a": 1}, "logit_bias": [1]', '{"1": "x"}, "logit_bias": null'):
        text = f'{{"messages": [{{"role": "user", "content": "x"}}], "logit_bias": {bias}}}'
        answer = client.post("/v1/chat/completions", content=text, headers={"content-type": "application/json"})
        assert error_of(answer, 422)["param"] == "logit_bias"


@pytest.mark.parametrize("streams", [False, None])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_stream_options_without_a_stream_are_400(client: httpx.Client, route: str, streams: bool | None) -> None:
    """OpenAI: "The 'stream_options' parameter is only allowed when 'stream' is enabled."."""
    prompt = {"prompt": "x"} if route == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    for options in ({"include_usage": True}, {}):
        error = error_of(client.post(route, json={**prompt, "stream": streams, "stream_options": options}), 400)
        assert (error["type"], error["param"]) == ("invalid_request_error", "stream_options")
        assert "stream: true" in error["message"]


@pytest.mark.parametrize(
    ("part", "words", "param"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            "this model takes no images",
            ".image_url",
        ),
        ({"type": "input_image", "image_url": "https://a.com/x.png"}, "this model takes no images", ".image_url"),
        ({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}, "text and images only", ""),
        ({"type": "video_url", "video_url": {"url": "https://a.com/x"}}, "text and images only", ""),
    ],
)
def test_parts_that_the_model_does_not_take_are_422(client: httpx.Client, part: Any, words: str, param: str) -> None:
    parts = [{"type": "text", "text": "see"}, part]
    error = error_of(ask(client, messages=[{"role": "user", "content": parts}]), 422)
    assert words in error["message"]
    assert error["param"] == f"messages[0].content[1]{param}"


def test_window_is_told_as_frameworks_search_it(client: httpx.Client) -> None:
    for fields in (
        {"max_tokens": 1000, "messages": [{"role": "user", "content": "x" * 1400}]},
        {"messages": [{"role": "user", "content": "x" * 1800}]},
        {"messages": [{"role": "user", "content": "x" * 100_000}]},
    ):
        error = error_of(ask(client, **fields), 422)
        assert error["code"] == "context_length_exceeded"
        assert "context_length_exceeded" in error["message"]
        assert "This model's maximum context length is 2048 tokens" in error["message"]


def test_tool_errors(client: httpx.Client) -> None:
    for choice in ("g", {"function": {"name": "g"}}, {"FunctionName": "g"}):
        answer = ask(client, tools=[TOOL], tool_choice=choice)
        assert "'g'" in error_of(answer, 422)["message"]
        assert answer.json()["error_type"] == "tool_error"
    for fields in ({"tools": []}, {"tools": [TOOL], "tool_choice": "none"}, {"tools": None, "tool_choice": "none"}):
        answer_of(client, response_format={"type": "regex", "value": "[a-z]+"}, **fields)


def test_http_errors_have_the_object_too(client: httpx.Client) -> None:
    post = client.post
    error = error_of(post("/v1/chat/completions", content="{", headers={"content-type": "application/json"}), 400)
    assert error["type"] == "invalid_request_error"
    error_of(post("/v1/chat/completions", content="x", headers={"content-type": "text/plain"}), 415)
    error_of(client.get("/v1/chat/completions"), 405)
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "not_found"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningRouter]:
    """A router with one permit, an API key and strict names of models."""
    with RunningRouter(tmp_path, max_concurrent_requests=1, api_key=("k",), strict_model=True, max_n=2) as router:
        yield router


def test_refusals_of_a_full_or_closed_server(small: RunningRouter) -> None:
    with small.client() as stranger, small.client(headers={"authorization": "Bearer k"}) as client:
        error = error_of(ask(stranger), 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        error = error_of(ask(client, n=2), 422)
        assert "the most is 1 (--max-concurrent-requests)" in error["message"]
        assert error_of(ask(client, n=3), 422)["param"] == "n"
        for name in ("tgi", "other/model"):
            assert error_of(ask(client, model=name), 404)["code"] == "model_not_found"
        for name in ("fake/model", None):
            assert ask(client, model=name).status_code == 200


def test_other_styles(tmp_path: Path) -> None:
    for style, status in (("openai", 400), ("tgi", 422)):
        folder = tmp_path / style
        folder.mkdir()
        with RunningRouter(folder, v1_errors=style) as router, router.client() as client:
            answer = ask(client, temperature=-1)
            assert answer.status_code == status
            if style == "tgi":
                assert answer.json() == {
                    "error": "Input validation error: `temperature` must be >= 0 (0 is greedy), found -1",
                    "error_type": "validation",
                }
            else:
                assert answer.json()["error"]["type"] == "invalid_request_error"
                assert answer.json()["error_type"] == "validation"
            native = client.post("/generate", json={"inputs": "", "parameters": {}})
            assert (native.status_code, native.json()["error_type"]) == (422, "validation")


@pytest.mark.parametrize("style", ["mixed", "openai", "tgi"])
@pytest.mark.parametrize("num_choices", [1, 2])
def test_failure_in_a_stream_is_an_event_and_done(tmp_path: Path, style: str, num_choices: int) -> None:
    options = FakeShardOptions(step_s=0.01)
    with RunningRouter(tmp_path, options, v1_errors=style) as router, router.client() as client:
        body = {"messages": [USER], "max_tokens": 500, "stream": True, "n": num_choices}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            assert "choices" in next(lines)
            router.shard.fail_slot(0)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        last = chunks_of(httpx.Response(200, headers=answer.headers, text=f"{rest[-2]}\n\n{rest[-1]}\n\n"))[0]
        if style == "tgi":
            assert last["error"]["http_status_code"] == 422
        else:
            assert last["error"]["type"] == "server_error"
            assert last["error_type"] == "generation"
        router.wait_until_free()
        assert 'tgi_request_failure{err="generation"} 1\n' in client.get("/metrics").text


def test_failure_before_the_first_chunk_has_its_status(router: RunningRouter, client: httpx.Client) -> None:
    router.shard.reject_next_admission()
    assert error_of(ask(client, stream=True), 500)["type"] == "server_error"
    router.wait_until_healthy()


def test_client_that_leaves_frees_everything(tmp_path: Path) -> None:
    options = FakeShardOptions(step_s=0.005)
    with RunningRouter(tmp_path, options) as router:
        for streams in (False, True):
            body = {"messages": [USER], "max_tokens": 5000, "stream": streams, "n": 3}
            connection = router.send("/v1/chat/completions", body)
            router.wait_until_counts(running=3, waiting=0)
            connection.close()
            router.wait_until_free()
