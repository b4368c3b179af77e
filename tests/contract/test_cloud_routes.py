"""/detokenize, /invocations (SageMaker), /vertex with the AIP_* variables."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from textmill_router.settings import SettingsError, load_settings

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def assert_error(answer: httpx.Response, status: int, error_type: str, word: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error_type"] == error_type
    assert word in answer.json()["error"]


# ---- /detokenize


@pytest.mark.parametrize("text", ["hello", "aé漢😀b", "x" * 3000])
def test_detokenize_is_the_way_back(client: httpx.Client, text: str) -> None:
    ids = [token["id"] for token in client.post("/tokenize", json={"inputs": text}).json()]
    assert client.post("/detokenize", json={"ids": ids}).json() == {"text": text}


def test_special_tokens_are_shown_when_asked(client: httpx.Client) -> None:
    body = {"ids": [256, 104, 257], "skip_special_tokens": False}
    assert client.post("/detokenize", json=body).json() == {"text": "<|begin|>h<|end|>"}
    assert client.post("/detokenize", json={"ids": []}).json() == {"text": ""}


@pytest.mark.parametrize("ids", [[258], [-1], [0, 2**40], ["a"], [1.5], "abc", None])
def test_what_is_no_id_is_422(client: httpx.Client, ids: Any) -> None:
    assert_error(client.post("/detokenize", json={"ids": ids}), 422, "validation", "ids")


# ---- /invocations


def test_invocations_with_inputs_are_those_of_the_compatible_route(client: httpx.Client) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 2}, "messages": [], "prompt": "x"}
    assert client.post("/invocations", json=body).json() == client.post("/", json=body).json()
    streamed = client.post("/invocations", json={**body, "stream": True})
    assert streamed.headers["content-type"] == "text/event-stream"
    assert streamed.text == client.post("/", json={**body, "stream": True}).text


def test_invocations_with_messages_are_a_chat(client: httpx.Client) -> None:
    answer = client.post("/invocations", json={**CHAT, "inputs": None}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "abc"


@pytest.mark.parametrize("body", [{}, {"inputs": None}, {"input": "hi"}])
def test_invocations_of_no_shape_are_422(client: httpx.Client, body: dict[str, Any]) -> None:
    assert_error(client.post("/invocations", json=body), 422, "validation", "`inputs`")


def test_errors_of_invocations_are_those_of_the_route(client: httpx.Client) -> None:
    assert_error(client.post("/invocations", json={"inputs": 5}), 422, "validation", "`inputs`")
    assert_error(client.post("/invocations", json={"inputs": "", "parameters": {}}), 422, "validation", "`inputs`")
    assert client.post("/invocations", content=b"{").status_code == 415
    answer = client.post("/invocations", content=b"{", headers={"content-type": "application/json"})
    assert_error(answer, 400, "invalid_json")
    answer = client.post("/invocations", json={**CHAT, "temperature": -1})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "temperature"  # the name that /v1 has for the field


# ---- /vertex


def predict(client: httpx.Client, *instances: Any, route: str = "/vertex") -> httpx.Response:
    return client.post(route, json={"instances": instances})


def test_predictions_stand_in_order_and_honour_every_parameter(client: httpx.Client) -> None:
    answer = predict(
        client,
        {"inputs": "one", "parameters": {"max_new_tokens": 2}},
        {"inputs": "two", "parameters": {"max_new_tokens": 3, "return_full_text": True}},
        {"inputs": "three", "parameters": {"max_new_tokens": 20, "stop": ["cd"]}},
        {"inputs": "four", "parameters": {"max_new_tokens": 1}, "stream": True},
        CHAT,
        {**CHAT, "stream": True, "max_tokens": 1},
    )
    assert answer.json() == {"predictions": ["ab", "twoabc", "abcd", "a", "abc", "a"]}
    assert "x-request-id" in answer.headers


def test_an_instance_may_be_the_inputs_and_share_parameters(client: httpx.Client) -> None:
    own = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
    body = {"instances": ["hi", {"inputs": "hi"}, own, CHAT, ["hi", "ho"]], "parameters": {"max_new_tokens": 2}}
    answer = client.post("/vertex", json=body)
    assert answer.json() == {"predictions": ["ab", "ab", "abc", "abc", ["ab", "ab"]]}
    assert predict(client, "hi").json() == {
        "predictions": [client.post("/generate", json={"inputs": "hi"}).json()["generated_text"]]
    }


def test_conversations_are_those_of_the_compatible_route(client: httpx.Client) -> None:
    turn = {"text": "and now?", "past_user_inputs": ["hi"], "generated_responses": ["hello"]}
    body = {"inputs": turn, "parameters": {"max_length": 3}}
    found = client.post("/", json=body).json()
    assert found["conversation"]["generated_responses"] == ["hello", "abc"]
    assert client.post("/invocations", json=body).json() == found
    shared = {"instances": [turn, body], "parameters": {"max_length": 3}}
    assert client.post("/vertex", json=shared).json() == {"predictions": [found, found]}


@pytest.mark.parametrize(
    ("instances", "word"),
    [
        ([], "`instances`"),
        ([{}], "`instances[0]`"),
        ([{"inputs": "a"}, {"inputs": None}], "`instances[1]`"),
        ([{"inputs": "a", "parameters": {"top_k": 0}}], "instances[0]: Input validation error: `top_k`"),
        (["a", {"inputs": "", "parameters": {}}], "`instances[1].inputs`"),
        (["a", ""], "instances[1]: Input validation error: `inputs`"),
        (["a", {"messages": []}], "`instances[1].messages`"),
        (None, "instances"),
        ([5], "instances[0]"),
        (["a", {"text": None}], "`instances[1]`"),
    ],
)
def test_bad_instance_is_422_with_its_own_message(client: httpx.Client, instances: Any, word: str) -> None:
    assert_error(client.post("/vertex", json={"instances": instances}), 422, "validation", word)


def test_failures_of_an_instance_keep_their_status(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=2) as router, router.client() as client:
        answer = predict(client, *[{"inputs": "a", "parameters": {"max_new_tokens": 9}}] * 3)
        assert_error(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        router.wait_until_free()
        router.shard.reject_next_admission()
        assert_error(predict(client, {"inputs": "a"}), 500, "internal")
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:
        assert_error(predict(client, {"inputs": "a"}), 503, "loading")


def test_instances_end_when_their_client_leaves(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005)) as router:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 2000}}
        connection = router.send("/vertex", {"instances": [body, body]})
        router.wait_until_counts(running=2, waiting=0)
        connection.close()
        router.wait_until_free()


@pytest.fixture(scope="module")
def on_vertex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    flags = {
        "AIP_PREDICT_ROUTE": "/v1/endpoints/7:predict",
        "AIP_HEALTH_ROUTE": "/alive",
        "MODEL_DIR": "x",
        "MODEL_ID": "x",
        "SHARD_UDS_PATH": "x",
    }
    settings = load_settings([], flags)
    folder = tmp_path_factory.mktemp("vertex")
    routes = {"aip_predict_route": settings.aip_predict_route, "aip_health_route": settings.aip_health_route}
    with RunningRouter(folder, api_key=("Sesame-1",), **routes) as router, router.client() as client:
        client.headers["authorization"] = "Bearer Sesame-1"
        yield client


def test_routes_of_vertex_stand_where_the_variables_say(on_vertex: httpx.Client) -> None:
    answer = predict(on_vertex, {"inputs": "a", "parameters": {"max_new_tokens": 2}}, route="/v1/endpoints/7:predict")
    assert answer.json() == {"predictions": ["ab"]}
    assert on_vertex.get("/alive").status_code == 200
    assert on_vertex.get("/health").status_code == 200
    assert httpx.get(str(on_vertex.base_url) + "/alive", trust_env=False).status_code == 200  # monitoring needs no key
    assert 'route="/v1/endpoints/7:predict"' in on_vertex.get("/metrics").text


def test_route_that_is_no_path_ends_the_start() -> None:
    flags = ["--model-dir", "x", "--model-id", "x", "--shard-uds-path", "x"]
    with pytest.raises(SettingsError, match="AIP_HEALTH_ROUTE"):
        load_settings(flags, {"AIP_HEALTH_ROUTE": "alive"})


def test_vertex_counts_each_instance_once(tmp_path: Path) -> None:
    with RunningRouter(tmp_path) as router, router.client() as client:
        predict(client, *[{"inputs": "a", "parameters": {"max_new_tokens": 1}}] * 2)
        text = client.get("/metrics").text
    assert "\ntgi_request_count 2\n" in text
    assert "\ntgi_request_success 2\n" in text
    assert 'textmill_http_requests{route="/vertex",method="POST",status="200"} 1\n' in text
    assert json.dumps("a") not in text
