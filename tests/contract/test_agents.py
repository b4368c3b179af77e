"""Tool loops of client libraries, on a shard that calls two tools and answers when the prompt has their results."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import litellm
import openai
import pytest
from huggingface_hub import InferenceClient
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.fakes.byte_tokenizer import END_ID
from tests.fakes.chat_templates import template_source
from tests.fakes.fake_shard import FakeShardOptions, text_script
from tests.fakes.running_router import RunningRouter
from tests.fakes.weather_tools import OUTPUTS, TOOLS

# litellm's types make pydantic warn.
pytestmark = pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning")

JAVASCRIPT = Path(__file__).parents[1] / "clients" / "javascript"
LIMIT_S = 60
QUESTION = {"role": "user", "content": "What is the weather in Tokyo, and what time is it?"}
GIVEN = {"get_weather": "21 degrees", "get_time": "noon"}
FINAL = "It is noon and 21 degrees."


class get_weather(BaseModel):
    """The weather."""

    city: str


class get_time(BaseModel):
    """The time."""


def agent_script(prompt_ids: list[int], num_output: int) -> int:
    """Call both tools until their answers stand in the prompt."""
    seen = bytes(token for token in prompt_ids if token < 256)
    has_all = all(given.encode() in seen for given in GIVEN.values())
    return text_script(FINAL if has_all else OUTPUTS["qwen2_5"], END_ID)(prompt_ids, num_output)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    folder = tmp_path_factory.mktemp("agent")
    config = {"chat_template": template_source("qwen2_5"), "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (folder / "config.json").write_text(json.dumps(config))
    options = FakeShardOptions(script=agent_script, num_blocks=1024)
    with RunningRouter(folder, options, tokenizer_config_path=str(folder / "config.json")) as router:
        yield router


@pytest.fixture
def client(agent: RunningRouter) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0, http_client=http) as opened:
        yield opened


def check_calls(calls: list[Any]) -> None:
    assert [call.function.name for call in calls] == list(GIVEN)
    assert json.loads(calls[0].function.arguments) == {"city": "東京"}
    assert json.loads(calls[1].function.arguments) == {}
    assert len({call.id for call in calls}) == 2


def answers_to(calls: list[Any]) -> list[dict[str, str]]:
    return [{"role": "tool", "tool_call_id": call.id, "content": GIVEN[call.function.name]} for call in calls]


def test_openai_runs_the_loop(client: openai.OpenAI) -> None:
    messages: list[Any] = [QUESTION]
    first = client.chat.completions.create(model="tgi", messages=messages, tools=TOOLS, temperature=0)
    assert first.choices[0].finish_reason == "tool_calls"
    check_calls(first.choices[0].message.tool_calls)
    messages += [first.choices[0].message, *answers_to(first.choices[0].message.tool_calls)]
    last = client.chat.completions.create(model="tgi", messages=messages, tools=TOOLS, temperature=0)
    assert last.choices[0].message.content == FINAL
    assert last.choices[0].message.tool_calls is None
    assert last.choices[0].finish_reason == "stop"


def test_openai_runs_the_loop_on_streams(client: openai.OpenAI) -> None:
    """`.stream()` puts a message together that has one role and can be sent back."""
    messages: list[Any] = [QUESTION]
    with client.chat.completions.stream(model="tgi", messages=messages, tools=TOOLS, temperature=0) as stream:
        kinds = [event.type for event in stream]
        [choice] = stream.get_final_completion().choices
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert "tool_calls.function.arguments.delta" in kinds
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "tool_calls"
    check_calls(choice.message.tool_calls)
    messages += [choice.message, *answers_to(choice.message.tool_calls)]
    with client.chat.completions.stream(model="tgi", messages=messages, tools=TOOLS, temperature=0) as stream:
        [choice] = stream.get_final_completion().choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", FINAL, "stop")


def test_openai_parses_arguments_into_models(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(model) for model in (get_weather, get_time)]
    answer = client.chat.completions.parse(model="tgi", messages=[QUESTION], tools=tools, temperature=0)
    parsed = [call.function.parsed_arguments for call in answer.choices[0].message.tool_calls]
    assert parsed == [get_weather(city="東京"), get_time()]


def test_openai_parse_raises_where_the_answer_is_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tgi", messages=[QUESTION], response_format=get_weather, max_tokens=5)


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_langchain_runs_the_loop(agent: RunningRouter, streams: bool) -> None:
    model = ChatOpenAI(base_url=f"{agent.url}/v1", api_key="none", model="tgi", temperature=0, max_retries=0)
    bound = model.bind_tools([get_weather, get_time])

    def ask(messages: list[Any]) -> AIMessage:
        if not streams:
            return bound.invoke(messages)
        first, *others = bound.stream(messages)
        for chunk in others:
            first += chunk
        return first

    messages: list[Any] = [HumanMessage(QUESTION["content"])]
    called = ask(messages)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [
        ("get_weather", {"city": "東京"}),
        ("get_time", {}),
    ]
    messages += [called, *(ToolMessage(GIVEN[call["name"]], tool_call_id=call["id"]) for call in called.tool_calls)]
    assert ask(messages).content == FINAL


@pytest.mark.usefixtures("thread_loop")
def test_litellm_runs_the_loop(agent: RunningRouter) -> None:
    options: Any = {"model": "openai/tgi", "api_base": f"{agent.url}/v1", "api_key": "none", "timeout": LIMIT_S}
    messages: list[Any] = [QUESTION]
    called = litellm.completion(messages=messages, tools=TOOLS, temperature=0, **options).choices[0].message
    check_calls(called.tool_calls)
    messages += [called, *answers_to(called.tool_calls)]
    answer = litellm.completion(messages=messages, tools=TOOLS, temperature=0, **options)
    assert answer.choices[0].message.content == FINAL


def test_hub_client_runs_the_loop(agent: RunningRouter) -> None:
    hub = InferenceClient(base_url=agent.url, timeout=LIMIT_S)
    messages: list[Any] = [QUESTION]
    called = hub.chat_completion(messages, tools=TOOLS, temperature=0.0).choices[0].message
    check_calls(called.tool_calls)
    messages += [called, *answers_to(called.tool_calls)]
    assert hub.chat_completion(messages, tools=TOOLS, temperature=0.0).choices[0].message.content == FINAL


@pytest.mark.javascript
def test_javascript_clients_run_the_loop(agent: RunningRouter) -> None:
    node = shutil.which("node")
    assert node is not None
    command = [node, "check_agents.mjs", agent.url, json.dumps(GIVEN), FINAL]
    done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
