"""The `openai` Python client against a running server with the demo model."""

import json
import math
import time
from typing import Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict
from transformers import AutoTokenizer

from tests.fakes.processes import LaunchedServer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TIMEOUT_S = 60
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_chat_answers_and_reports_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tgi", messages=QUESTION, max_tokens=16, temperature=0)
    [choice] = answer.choices
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.model == client.models.list().data[0].id
    assert client.models.retrieve(answer.model).id == answer.model


def test_prompt_has_the_ids_of_the_model_card(
    client: openai.OpenAI, real_server: LaunchedServer, demo_model_folder
) -> None:
    """`/chat_tokenize` and usage agree with transformers on the demo model's own template."""
    reference = AutoTokenizer.from_pretrained(demo_model_folder)
    for messages in (
        QUESTION,
        [{"role": "system", "content": "Be terse."}, *QUESTION],
        [*QUESTION, {"role": "assistant", "content": "Paris. 東京 2024"}, {"role": "user", "content": "naïve 😀?  "}],
    ):
        expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        url = f"{real_server.base_url}/chat_tokenize"
        shown = httpx.post(url, json={"messages": messages}, timeout=TIMEOUT_S, trust_env=False).json()
        assert [token["id"] for token in shown["tokenize_response"]] == expected
        answer = client.chat.completions.create(model="tgi", messages=messages, max_tokens=1, temperature=0)
        assert answer.usage.prompt_tokens == len(expected)


def test_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tgi", messages=QUESTION, max_tokens=16, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="tgi",
            messages=QUESTION,
            max_tokens=16,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_stream_helper_ends_with_one_role(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tgi", messages=QUESTION, max_tokens=8, temperature=0) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert completion.choices[0].message.role == "assistant"
    assert "Paris" in completion.choices[0].message.content


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tgi", messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob, abs=1e-5)
        assert len(entry.top_logprobs) >= 3


def test_twenty_alternatives_are_the_most_likely_ones(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tgi", messages=QUESTION, max_tokens=2, temperature=0, logprobs=True, top_logprobs=20
    )
    for entry in answer.choices[0].logprobs.content:
        assert len({tuple(top.bytes) for top in entry.top_logprobs}) == 20
        logprobs = [top.logprob for top in entry.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == pytest.approx(logprobs[0])
        assert 0.5 < sum(map(math.exp, logprobs)) <= 1.0001


def test_choices_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.chat.completions.create(
            model="tgi", messages=QUESTION, max_tokens=12, n=3, seed=5, temperature=1.5
        )
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_stop_string_is_not_in_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tgi", messages=QUESTION, max_tokens=16, temperature=0, stop="France")
    assert answer.choices[0].message.content == "The capital of "
    assert answer.choices[0].finish_reason == "stop"


def test_tool_call_round_trip(client: openai.OpenAI) -> None:
    """A required call keeps to the schema, and the model goes on after the tool's answer."""
    tools = [{"type": "function", "function": {"name": "save_person", "parameters": SCHEMA}}]
    messages = [{"role": "user", "content": "Save the person Ann, who is 7."}]
    answer = client.chat.completions.create(
        model="tgi",
        messages=messages,
        tools=tools,
        tool_choice="required",
        max_tokens=80,
        temperature=0,
        parallel_tool_calls=False,
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "save_person"
    assert set(json.loads(call.function.arguments)) == {"name", "age"}
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "saved"}]
    assert client.chat.completions.create(model="tgi", messages=messages, tools=tools, max_tokens=4).choices


def test_response_format_is_valid_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tgi",
        messages=[{"role": "user", "content": "Make up a person."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
        max_tokens=80,
        temperature=0,
    )
    found = json.loads(answer.choices[0].message.content)
    assert isinstance(found["age"], int)


class Person(BaseModel):
    """The values are few and bounded, because a small model would write longer ones without end."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Ann", "Bob"]
    age: Literal[7, 70]


def test_parse_gives_a_model(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Ann is 7 years old."}]
    options = {"model": "tgi", "messages": messages, "max_tokens": 80, "temperature": 0}
    [choice] = client.chat.completions.parse(response_format=Person, **options).choices
    assert isinstance(choice.message.parsed, Person)
    with client.chat.completions.stream(response_format=Person, **options) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == choice.message.parsed
    tools = [openai.pydantic_function_tool(Person)]
    [choice] = client.chat.completions.parse(tools=tools, tool_choice="required", **options).choices
    assert isinstance(choice.message.tool_calls[0].function.parsed_arguments, Person)


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"temperature": -1}, openai.UnprocessableEntityError, None),
        (
            {"max_tokens": 1000, "messages": [{"role": "user", "content": "x " * 4000}]},
            openai.UnprocessableEntityError,
            "context_length_exceeded",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "g"},
            openai.UnprocessableEntityError,
            "tool_error",
        ),
    ],
)
def test_errors_have_their_class_message_and_code(client: openai.OpenAI, fields, kind, code) -> None:
    for streams in (False, True):
        with pytest.raises(kind) as refused:
            client.chat.completions.create(**{"model": "tgi", "messages": QUESTION, "stream": streams, **fields})
        assert refused.value.code == code
        assert refused.value.type == "invalid_request_error"
        if code == "context_length_exceeded":
            assert "This model's maximum context length is" in str(refused.value)
            assert "context_length_exceeded" in str(refused.value)


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("some/other")
    assert refused.value.code == "model_not_found"


def test_closing_a_stream_frees_the_blocks(client: openai.OpenAI, real_server: LaunchedServer) -> None:
    def running() -> float:
        text = httpx.get(f"{real_server.base_url}/metrics", trust_env=False).text
        [line] = [line for line in text.splitlines() if line.startswith("tgi_batch_current_size")]
        return float(line.rpartition(" ")[2])

    stream = client.chat.completions.create(
        model="tgi", messages=QUESTION, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert running() >= 1
    stream.close()
    deadline = time.monotonic() + 10
    while running() > 0:
        assert time.monotonic() < deadline
