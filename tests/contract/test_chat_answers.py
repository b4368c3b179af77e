"""Shapes, fields and streams of chat completions for plain conversations, on a shard that answers abcdef..."""

from array import array
from pathlib import Path
from typing import Any

import httpx
import pytest
from textmill_proto.v1 import shard_pb2

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID
from tests.fakes.chat_calls import USER, answer_of, ask, stream, text_of
from tests.fakes.fake_shard import FakeShardOptions, text_script
from tests.fakes.running_router import RunningRouter

PUBLISHED_EXAMPLE = {
    "frequency_penalty": 1.0,
    "logit_bias": [0],
    "logprobs": False,
    "max_tokens": 32,
    "messages": [{"content": "What is Deep Learning?", "name": "David", "role": "user"}],
    "model": "mistralai/Mistral-7B-Instruct-v0.2",
    "n": 2,
    "presence_penalty": 0.1,
    "seed": 42,
    "stop": None,
    "stream": False,
    "temperature": 1,
    "tool_choice": {"FunctionName": "string"},
    "tool_prompt": "Based on the conversation, please choose the most appropriate tool to use: ",
    "tools": None,
    "top_logprobs": 5,
    "top_p": 0.95,
}


def test_whole_answer(client: httpx.Client) -> None:
    answer = answer_of(client)
    assert answer["id"].startswith("chatcmpl-")
    assert answer["created"] > 1_700_000_000
    assert answer["system_fingerprint"]
    assert {key: value for key, value in answer.items() if key not in ("id", "created", "system_fingerprint")} == {
        "object": "chat.completion",
        "model": "fake/model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "abc"},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": len("user: hi\nassistant: ") + 1,
            "completion_tokens": 3,
            "total_tokens": len("user: hi\nassistant: ") + 4,
            "prompt_tokens_details": {"cached_tokens": answer["usage"]["prompt_tokens_details"]["cached_tokens"]},
        },
    }
    assert answer_of(client)["id"] != answer["id"]


def test_chunks_of_a_stream(client: httpx.Client) -> None:
    chunks = stream(client)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(chunk["model"] == "fake/model" and chunk["system_fingerprint"] and chunk["created"] for chunk in chunks)
    assert [chunk["choices"] for chunk in chunks] == [  # as in the stream that OpenAI publishes
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "b"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "c"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
    ]


def test_usage_is_one_last_chunk_when_asked(client: httpx.Client) -> None:
    chunks = stream(client, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    for options in (None, {}, {"include_usage": False}):
        chunks = stream(client, stream_options=options)
        assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_headers(client: httpx.Client) -> None:
    headers = ask(client).headers
    assert headers["x-prompt-tokens"] == "21"
    assert headers["x-generated-tokens"] == "3"
    assert headers["x-compute-characters"] == str(len("<|begin|>user: hi\nassistant: "))
    assert float(headers["x-compute-time"]) > 0
    assert ask(client, stream=True).headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("streams", [False, True])
def test_stop_string_ends_the_text_before_the_match(client: httpx.Client, streams: bool) -> None:
    for stop, text in (("de", "abc"), (["xyz", "def"], "abc"), (["b"], "a"), (["a"], "")):
        if streams:
            chunks = stream(client, stop=stop, max_tokens=9)
            assert text_of(chunks) == text
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        else:
            [choice] = answer_of(client, stop=stop, max_tokens=9)["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


def test_logprobs_are_of_the_shown_tokens(client: httpx.Client) -> None:
    [choice] = answer_of(client, logprobs=True, top_logprobs=2, stop="cd", max_tokens=9)["choices"]
    assert set(choice["logprobs"]) == {"content", "refusal"}
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["a", "b"]
    assert entries[0]["bytes"] == [97]
    assert [top["token"] for top in entries[0]["top_logprobs"]] == ["a", "b"]
    assert set(entries[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}
    chunks = stream(client, logprobs=True, top_logprobs=2, stop="cd", max_tokens=9)
    assert all(set(chunk["choices"][0]["logprobs"] or choice["logprobs"]) == {"content", "refusal"} for chunk in chunks)
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == entries
    [choice] = answer_of(client, logprobs=True)["choices"]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[], [], []]
    [choice] = answer_of(client, top_logprobs=20)["choices"]
    assert choice["logprobs"] is None


def test_several_choices_share_a_prefill(router: RunningRouter, client: httpx.Client) -> None:
    content = "a long question " * 20
    before = router.stats().num_prompt_tokens_computed_total
    answer = answer_of(client, n=4, messages=[{"role": "user", "content": content}])
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["abc"] * 4
    num_prompt_tokens = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["total_tokens"] == num_prompt_tokens + 12
    # The shard computes the prompt once, and its last token again for each other choice.
    assert router.stats().num_prompt_tokens_computed_total - before <= num_prompt_tokens + 3


def test_cached_tokens_are_told_once_for_all_choices(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "told before " * 20}]
    num_prompt_tokens = answer_of(client, messages=messages)["usage"]["prompt_tokens"]
    for num_choices in (1, 4):
        usage = answer_of(client, messages=messages, n=num_choices)["usage"]
        # All full blocks are cached, but never the last token, because the model must see a token to give logits.
        assert usage["prompt_tokens_details"]["cached_tokens"] == (num_prompt_tokens - 1) // 16 * 16


def test_each_choice_has_its_own_seed(router: RunningRouter, client: httpx.Client) -> None:
    answer_of(client, n=4, seed=11)
    assert router.shard.last_admit is not None
    assert router.shard.last_admit.sampling.seed == 14


def test_several_choices_are_streamed_side_by_side(client: httpx.Client) -> None:
    chunks = stream(client, n=3, stream_options={"include_usage": True})
    assert [text_of(chunks, index) for index in range(3)] == ["abc"] * 3
    firsts: dict[int, dict[str, Any]] = {}
    for chunk in chunks[:-1]:
        [choice] = chunk["choices"]
        firsts.setdefault(choice["index"], choice)
    assert all(choice["delta"]["role"] == "assistant" for choice in firsts.values())
    assert sum("role" in chunk["choices"][0]["delta"] for chunk in chunks[:-1]) == 3
    assert sum(chunk["choices"][0]["finish_reason"] == "length" for chunk in chunks[:-1]) == 3
    assert chunks[-1]["usage"]["completion_tokens"] == 9


def test_last_field_of_the_two_limits_wins(client: httpx.Client) -> None:
    assert answer_of(client, max_tokens=9, max_completion_tokens=2)["usage"]["completion_tokens"] == 2
    assert answer_of(client, max_tokens=4, max_completion_tokens=None)["usage"]["completion_tokens"] == 4


def biases(sampling: shard_pb2.Sampling) -> dict[int, float]:
    ids, values = array("I", sampling.logit_bias_ids), array("f", sampling.logit_bias_values)
    return dict(zip(ids, values, strict=True))


def test_every_field_reaches_the_shard(router: RunningRouter, client: httpx.Client) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "seed": 11,
        "logit_bias": {"97": 1.5, "5": -100},
        "min_tokens": 2,
        "ignore_eos": True,
    }
    answer_of(client, **fields)
    admit = router.shard.history[-1].last_admit
    sampling = admit.sampling
    assert sampling.do_sample
    assert (sampling.top_k, sampling.seed, admit.min_new_tokens, admit.ignore_eos) == (7, 11, 2, True)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        assert getattr(sampling, name) == pytest.approx(fields[name])
    assert biases(sampling) == {97: 1.5, 5: -100}
    answer_of(client)
    sampling = router.shard.history[-1].last_admit.sampling
    assert sampling.do_sample  # as at OpenAI, unless the temperature is 0
    assert biases(sampling) == {}
    answer_of(client, temperature=0, logit_bias=[1, 0, 2])
    sampling = router.shard.history[-1].last_admit.sampling
    assert not sampling.do_sample
    assert biases(sampling) == {0: 1, 2: 2}


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": None, "stream": None, "stream_options": None, "tools": None, "n": None, "user": None, "seed": None},
        {"top_p": 1, "temperature": 0, "top_k": -1},
        {"top_k": 0, "logit_bias": {}, "user": "someone", "store": True, "metadata": {"a": 1}},
        {"model": "tgi"},
        {"model": "anything"},
        {"model": "http://some.where/v1"},
        {"tools": [], "response_format": {"type": "text"}},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": None}, USER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]},
        {"messages": [{"role": "developer", "content": "x"}, USER]},
    ],
)
def test_accepted(client: httpx.Client, fields: dict[str, Any]) -> None:
    assert answer_of(client, **fields)["model"] == "fake/model"


def test_answer_can_be_sent_back_as_it_came(client: httpx.Client) -> None:
    message = answer_of(client)["choices"][0]["message"]
    answer_of(client, messages=[USER, {**message, "refusal": None, "annotations": [], "audio": None}, USER])


def test_published_example_is_answered(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=PUBLISHED_EXAMPLE)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == 2


def test_final_assistant_message_is_continued(client: httpx.Client) -> None:
    messages = [USER, {"role": "assistant", "content": "Well,"}]
    shown = client.post("/chat_tokenize", json={"messages": messages}).json()
    assert shown["templated_text"] == "<|begin|>user: hi\nassistant: Well,"
    shown = client.post("/chat_tokenize", json={"messages": messages, "continue_final_message": False}).json()
    assert shown["templated_text"] == "<|begin|>user: hi\nassistant: Well,\nassistant: "
    shown = client.post("/chat_tokenize", json={"messages": [USER], "add_generation_prompt": False}).json()
    assert shown["templated_text"] == "<|begin|>user: hi\n"


def test_chat_tokenize_shows_tokens_with_offsets_and_forges_nothing(client: httpx.Client) -> None:
    shown = client.post("/chat_tokenize", json={"messages": [{"role": "user", "content": "é<|end|>x"}]}).json()
    ids = [token["id"] for token in shown["tokenize_response"]]
    assert ids[0] == BEGIN_ID
    assert END_ID not in ids
    assert bytes(ids[1:]).decode() == shown["templated_text"].removeprefix("<|begin|>")
    data = shown["templated_text"].encode()
    assert all(
        data[token["start"] : token["stop"]].decode(errors="replace") == token["text"]
        for token in shown["tokenize_response"]
    )


def test_prompts_that_callers_render_hold_special_tokens(router: RunningRouter, client: httpx.Client) -> None:
    """Routes without a template let the caller write special tokens into the prompt."""
    prompt = "a<|end|>b"
    for route, body in (
        ("/v1/completions", {"prompt": prompt, "max_tokens": 1}),
        ("/generate", {"inputs": prompt, "parameters": {"max_new_tokens": 1}}),
    ):
        assert client.post(route, json=body).status_code == 200
        assert router.shard.last_admit is not None
        assert list(array("I", router.shard.last_admit.prompt_ids)) == [BEGIN_ID, ord("a"), END_ID, ord("b")]


def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("fake/model", "model", "fake")
    assert model["max_model_len"] == 2048
    assert model["created"] > 1_700_000_000
    assert client.get("/v1/models/fake/model").json() == model
    assert client.get("/v1/models/fake%2Fmodel").json() == model
    assert client.head("/v1/models").status_code == 200
    assert client.options("/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"
    missing = client.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert client.options("/v1/chat/completions", headers=headers).headers["access-control-allow-origin"] == "*"


def test_models_are_listed_while_loading(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "fake/model"
        answer = ask(client)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "loading"
        assert answer.json()["phase"]
        router.shard.load(None)
        router.wait_until_healthy()
        assert answer_of(client)["choices"][0]["message"]["content"] == "abc"


def test_end_of_answer_is_stop_and_not_shown(tmp_path: Path) -> None:
    options = FakeShardOptions(script=text_script("héy", END_ID))
    with RunningRouter(tmp_path, options) as router, router.client() as client:
        [choice] = answer_of(client, max_tokens=20, logprobs=True)["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("héy", "stop")
        assert [entry["bytes"] for entry in choice["logprobs"]["content"]] == [[104], [195], [169], [121]]
        chunks = stream(client, max_tokens=20)
        assert text_of(chunks) == "héy"
        assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
