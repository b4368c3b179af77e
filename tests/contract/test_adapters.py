"""Adapters in every dialect: how a call names one, what the answer says, and lists, metrics and the log."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions, adapted_text, write_adapter
from tests.fakes.running_router import RunningRouter

BASE = "fake/model"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Server:
    """A router with the adapters `poet` and `org/clerk`."""

    def __init__(self, running: RunningRouter, client: httpx.Client, poet: bytes, clerk: bytes) -> None:
        self.router, self.client = running, client
        self.texts = {None: "abcdef", "poet": adapted_text(poet, 6), "org/clerk": adapted_text(clerk, 6)}
        self.digest = poet.hex()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("adapters")
    poet = write_adapter(folder / "poet", "verses")
    hub = folder / "models--org--clerk" / "snapshots" / ("0" * 40)
    clerk = write_adapter(hub, "forms")
    options = FakeShardOptions(num_slots=8, num_blocks=512)
    settings = {
        "lora_adapter": (f"poet={folder / 'poet'}", f"org/clerk={hub}"),
        "response_cache_bytes": 100_000,
        "metrics_alias": "vllm",
        "max_total_tokens": 2048,
    }
    with RunningRouter(folder, options, **settings) as running, running.client() as client:
        yield Server(running, client, poet, clerk)


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/"])
def test_rule_23_an_adapter_that_is_not_loaded_reaches_no_plan(
    router: RunningRouter, client: httpx.Client, route: str
) -> None:
    num_steps = router.shard.num_steps
    answer = client.post(route, json={"inputs": "a", "parameters": {"adapter_id": "mine", "max_new_tokens": 2}})
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"
    assert "`adapter_id` 'mine' is not loaded: this server has no adapters" in answer.json()["error"]
    assert router.stats().num_running == 0
    assert router.shard.num_steps == num_steps


@pytest.mark.parametrize("name", [None, BASE, "poet", "org/clerk"])
@pytest.mark.parametrize("route", ["/generate", "/", "/invocations", "/vertex", "/generate_stream"])
def test_tgi_routes_take_adapter_id(server: Server, route: str, name: str | None) -> None:
    parameters = {"max_new_tokens": 6, "return_full_text": False, **({} if name is None else {"adapter_id": name})}
    body: dict[str, Any] = {"inputs": "q", "parameters": parameters, "options": {"use_cache": False}}
    answer = server.client.post(route, json={"instances": [body]} if route == "/vertex" else body)
    assert answer.status_code == 200, answer.text
    wanted = server.texts[None if name == BASE else name]
    if route == "/generate_stream":
        events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
        assert events[-1]["generated_text"] == wanted
    else:
        found = answer.json()
        found = found["predictions"] if route == "/vertex" else found
        found = found[0] if isinstance(found, list) else found
        assert (found if isinstance(found, str) else found["generated_text"]) == wanted
    if route != "/vertex":
        assert answer.headers.get("x-adapter-id") == (None if name in (None, BASE) else name)


@pytest.mark.parametrize("name", [None, BASE, "tgi", "dummy", "http://host/v1", "poet", "org/clerk"])
def test_v1_takes_the_adapter_as_model_and_answers_with_its_name(server: Server, name: str | None) -> None:
    adapter = name if name in ("poet", "org/clerk") else None
    named = {} if name is None else {"model": name}
    whole = server.client.post("/v1/completions", json={"prompt": "q", "max_tokens": 6, **named})
    assert whole.status_code == 200, whole.text
    assert whole.json()["choices"][0]["text"] == server.texts[adapter]
    assert whole.json()["model"] == (adapter or BASE)
    streamed = server.client.post("/v1/completions", json={"prompt": "q", "max_tokens": 6, "stream": True, **named})
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == server.texts[adapter]
    assert {event["model"] for event in events} == {adapter or BASE}


def test_v1_refuses_other_names_once_there_are_adapters(server: Server, client: httpx.Client) -> None:
    body = {"prompt": "q", "max_tokens": 2, "model": "gpt-4"}
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "'fake/model', 'poet', 'org/clerk'" in answer.json()["error"]["message"]
    assert client.post("/v1/completions", json=body).status_code == 200  # a server without adapters


@pytest.mark.parametrize(
    ("model", "adapter_id", "status"),
    [
        (None, "poet", 200),
        ("tgi", "poet", 200),
        ("poet", "poet", 200),
        ("poet", None, 200),
        (BASE, BASE, 200),
        ("poet", "org/clerk", 422),
        ("poet", BASE, 422),
        (BASE, "poet", 422),
        (None, "nobody", 422),
    ],
)
def test_model_and_adapter_id_of_a_completion_must_agree(
    server: Server, model: str | None, adapter_id: str | None, status: int
) -> None:
    body = {"prompt": "q", "max_tokens": 6, "model": model, "adapter_id": adapter_id}
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    if status == 200:
        wanted = None if (model, adapter_id) == (BASE, BASE) else "poet"
        assert answer.json()["choices"][0]["text"] == server.texts[wanted]
    else:
        assert answer.json()["error"]["param"] == "adapter_id"


def test_a_chat_names_its_adapter_as_model_alone(server: Server) -> None:
    answer = server.client.post("/v1/chat/completions", json={**CHAT, "adapter_id": "poet"})
    assert answer.status_code == 422
    assert "name the adapter in `model`" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["poet", "org/clerk"])
def test_an_adapter_is_a_model_of_its_own_under_v2(server: Server, name: str) -> None:
    answer = server.client.post(
        f"/v2/models/{name}/generate", json={"text_input": "q", "parameters": {"max_tokens": 6}}
    )
    assert answer.json()["text_output"] == server.texts[name]
    assert answer.json()["model_name"] == name
    assert server.client.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
    assert server.client.get(f"/v2/models/{name}").status_code == 200
    missing = server.client.post("/v2/models/nobody/generate", json={"text_input": "q"})
    assert missing.status_code == 404
    assert "'poet', 'org/clerk'" in missing.json()["error"]


def test_models_lists_the_base_and_then_its_adapters_without_paths(server: Server) -> None:
    models = server.client.get("/v1/models").json()["data"]
    assert [(one["id"], one["root"], one["parent"]) for one in models] == [
        (BASE, BASE, None),
        ("poet", "poet", BASE),
        ("org/clerk", "org/clerk", BASE),
    ]
    assert server.client.get("/v1/models/org/clerk").json() == models[2]
    assert server.client.get("/v1/models/nobody").status_code == 404


def test_info_shows_each_adapter(server: Server) -> None:
    adapters = server.client.get("/info").json()["adapters"]
    assert adapters[0] == {"id": "poet", "rank": 8, "digest": server.digest, "state": "ready", "running": 0}
    assert [one["id"] for one in adapters] == ["poet", "org/clerk"]


def test_tokens_and_rendered_prompts_take_an_adapter_as_model(server: Server) -> None:
    for route in ("/tokenize", "/v1/completions/render"):
        assert server.client.post(route, json={"prompt": "q", "model": "poet"}).status_code == 200
        assert server.client.post(route, json={"prompt": "q", "model": "nobody"}).status_code == 404


def test_kept_answers_belong_to_one_adapter(server: Server) -> None:
    def ask(name: str | None) -> httpx.Response:
        parameters = {"max_new_tokens": 6, **({} if name is None else {"adapter_id": name})}
        return server.client.post("/generate", json={"inputs": "kept", "parameters": parameters})

    for _ in range(2):
        for name in (None, "poet", "org/clerk"):
            answer = ask(name)
            assert answer.json()["generated_text"] == server.texts[name]
    assert answer.headers["x-cache"] == "hit"
    assert answer.headers["x-adapter-id"] == "org/clerk"


def test_parameters_are_checked_before_the_adapter(server: Server) -> None:
    body = {"inputs": "q", "parameters": {"adapter_id": "nobody", "top_p": 7}}
    assert "top_p" in server.client.post("/generate", json=body).json()["error"]


def test_metrics_and_log_name_the_adapter(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def metric(name: str) -> float:
        found = [line for line in server.client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
        return float(found[0].split()[-1])

    counted = 'textmill_adapter_requests_total{adapter="poet"}'
    before = metric(counted)
    body = {"inputs": "q", "parameters": {"max_new_tokens": 6, "adapter_id": "poet"}, "options": {"use_cache": False}}
    with caplog.at_level(logging.INFO):
        server.client.post("/generate", json=body)
    assert metric(counted) == before + 1
    assert metric("textmill_adapters_loaded") == 2
    assert metric("textmill_adapters_bytes") == len("verses") + len("forms")
    assert metric("textmill_adapters_load_seconds_count") == 2
    assert metric('textmill_adapter_running{adapter="poet"}') == 0
    [line] = [record for record in caplog.records if record.getMessage() == "Success"]
    assert line.__dict__["adapter"] == "poet"


def test_running_adapters_are_shown_under_vllms_name(server: Server) -> None:
    server.router.shard.pause()
    try:
        body = {
            "inputs": "q",
            "parameters": {"max_new_tokens": 4, "adapter_id": "poet"},
            "options": {"use_cache": False},
        }
        with server.router.send("/generate", body):
            server.router.wait_until_counts(running=1, waiting=0)
            text = server.client.get("/metrics").text
            assert 'max_lora="2",running_lora_adapters="poet",waiting_lora_adapters=""' in text
            assert 'textmill_adapter_running{adapter="poet"} 1' in text
            running = server.client.get("/info").json()["adapters"][0]["running"]
            assert running == 1
    finally:
        server.router.shard.resume()
    server.router.wait_until_free()
    assert server.client.get("/info").json()["adapters"][0]["running"] == 0
