"""Frameworks that build on the OpenAI dialect, against a running server with the demo model."""

from typing import Any, Literal

import httpx
import instructor
import litellm
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

from tests.fakes.processes import LaunchedServer

# litellm's types make pydantic warn.
pytestmark = pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning")

TIMEOUT_S = 60
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOO_LONG = [{"role": "user", "content": "x " * 5000}]


class Person(BaseModel):
    """The values are few and bounded, because a small model would write longer ones without end."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Ann", "Bob"]
    age: Literal[7, 70]


@pytest.fixture
def url(real_server: LaunchedServer) -> str:
    return f"{real_server.base_url}/v1"


@pytest.fixture
def hub(real_server: LaunchedServer) -> InferenceClient:
    return InferenceClient(base_url=real_server.base_url, timeout=TIMEOUT_S)


def test_hub_client_chats(hub: InferenceClient) -> None:
    answer = hub.chat_completion(QUESTION, max_tokens=16, temperature=0.0, logprobs=True, top_logprobs=2)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0
    assert answer.choices[0].logprobs.content[0].top_logprobs
    chunks = list(hub.chat_completion(QUESTION, max_tokens=16, temperature=0.0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content


def test_hub_client_gets_tools_formats_and_errors(hub: InferenceClient) -> None:
    tool = {"type": "function", "function": {"name": "save", "parameters": Person.model_json_schema()}}
    answer = hub.chat_completion(
        [{"role": "user", "content": "Save Ann, 7."}],
        tools=[tool],
        tool_choice={"function": {"name": "save"}},
        max_tokens=80,
        temperature=0.0,
    )
    [call] = answer.choices[0].message.tool_calls
    assert Person.model_validate_json(call.function.arguments)
    form: Any = {"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}}
    answer = hub.chat_completion(QUESTION, response_format=form, max_tokens=80, temperature=0.0)
    assert Person.model_validate_json(answer.choices[0].message.content)
    with pytest.raises(HfHubHTTPError, match="context_length_exceeded"):
        hub.chat_completion(TOO_LONG, max_tokens=1000)


def chat_model(url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=url, api_key="none", model="tgi", temperature=0, max_retries=0, **options)


def test_langchain_chats_and_streams(url: str) -> None:
    model = chat_model(url, max_tokens=16)
    whole = model.invoke("What is the capital of France?")
    assert "Paris" in whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in model.stream("What is the capital of France?")) == whole.content


def test_langchain_binds_tools(url: str) -> None:
    model = chat_model(url, max_tokens=80).bind_tools([Person], tool_choice="Person")
    [call] = model.invoke("Ann is 7 years old.").tool_calls
    assert call["name"] == "Person"
    assert Person.model_validate(call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gives_structured_output(url: str, method: Any) -> None:
    model = chat_model(url, max_tokens=80).with_structured_output(Person, method=method)
    assert isinstance(model.invoke("Ann is 7 years old."), Person)


@pytest.mark.usefixtures("thread_loop")
def test_litellm_chats_and_knows_the_window(url: str) -> None:
    options: Any = {"model": "openai/tgi", "api_base": url, "api_key": "none", "timeout": TIMEOUT_S}
    answer = litellm.completion(messages=QUESTION, max_tokens=16, temperature=0, **options)
    assert "Paris" in answer.choices[0].message.content
    chunks = list(litellm.completion(messages=QUESTION, max_tokens=16, temperature=0, stream=True, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=TOO_LONG, max_tokens=1000, **options)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_instructor_gives_models(url: str, mode: instructor.Mode) -> None:
    with openai.OpenAI(base_url=url, api_key="none", http_client=httpx.Client(trust_env=False)) as plain:
        client = instructor.from_openai(plain, mode=mode)
        person = client.chat.completions.create(
            model="tgi",
            messages=[{"role": "user", "content": "Ann is 7 years old."}],
            response_model=Person,
            max_tokens=80,
            temperature=0,
            max_retries=0,
        )
    assert isinstance(person, Person)
