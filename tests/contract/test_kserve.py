"""/v2: the Open Inference Protocol and its generate extension.

Shapes and names are those of `open_inference_rest.yaml` and `generate_rest.yaml` of kserve/open-inference-protocol. The
fake shard answers with the letters of the alphabet, one token for each.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

MODEL = "/v2/models/fake/model"
PATHS = (MODEL, f"{MODEL}/versions/1")
NAMED = {"model_name": "fake/model", "model_version": "1"}
TENSOR = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["hi"]}


def generate_body(**parameters: Any) -> dict[str, Any]:
    return {"text_input": "hi", "parameters": {"max_tokens": 3, **parameters}}


def infer_body(tensor: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"inputs": [{**TENSOR, **(tensor or {})}], "parameters": {"max_tokens": 3}, **fields}


def assert_error(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert all(word in answer.json()["error"] for word in words), answer.text


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n")[:-1]]


# ---- Health and metadata


def test_health_and_metadata_have_the_protocols_shapes(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert client.get("/v2").json() == {
        "name": "textmill",
        "version": version("textmill"),
        "extensions": ["generate"],
    }
    for path in PATHS:
        assert client.get(f"{path}/ready").json() == {"name": "fake/model", "ready": True}
        assert client.get(path).json() == {
            "name": "fake/model",
            "versions": ["1"],
            "platform": "textmill",
            "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}],
        }


def test_health_follows_the_probes_while_the_model_loads(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True, api_key=("one",)) as router, router.client() as client:
        for v2, probe in (("/v2/health/live", "/health/live"), ("/v2/health/ready", "/health/ready")):
            assert client.get(v2).status_code == client.get(probe).status_code
        answer = client.get("/v2/health/ready")
        assert (answer.status_code, answer.json()) == (503, {"live": True, "ready": False})
        key = {"x-api-key": "one"}
        answer = client.get(f"{MODEL}/ready", headers=key)
        assert (answer.status_code, answer.json()) == (503, {"name": "fake/model", "ready": False})
        assert_error(client.post(f"{MODEL}/generate", json=generate_body(), headers=key), 503)
        assert_error(client.post("/v2/models/other/generate", json=generate_body(), headers=key), 404, "'other'")
        assert_error(client.get(MODEL), 401, "x-api-key")
        router.shard.fail("no memory")
        router.wait_until(lambda: router.service.health.look().state == "dead", "the state is dead")
        answer = client.get("/v2/health/live")
        assert (answer.status_code, answer.json()) == (503, {"live": False})


# ---- generate and generate_stream


@pytest.mark.parametrize("path", PATHS)
def test_generate_answers_text_and_model(client: httpx.Client, path: str) -> None:
    answer = client.post(f"{path}/generate", json=generate_body())
    assert answer.json() == {**NAMED, "text_output": "abc"}
    assert answer.headers["x-generated-tokens"] == "3"
    events = events_of(client.post(f"{path}/generate_stream", json=generate_body(stream=True)))
    assert "".join(event["text_output"] for event in events) == "abc"
    assert [set(event) for event in events] == [{*NAMED, "text_output"}] * len(events)


def test_details_have_reason_and_tokens_as_published(client: httpx.Client) -> None:
    native = client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 3, "details": True}})
    tokens = native.json()["details"]["tokens"]
    assert [token["text"] for token in tokens] == ["a", "b", "c"]
    answer = client.post(f"{MODEL}/generate", json=generate_body(details=True)).json()
    assert answer == {**NAMED, "text_output": "abc", "details": {"finish_reason": "length", "logprobs": tokens}}
    events = events_of(client.post(f"{MODEL}/generate_stream", json=generate_body(details=True)))
    assert events == [
        {**NAMED, "text_output": token["text"], "details": {"finish_reason": reason, "token": token}}
        for token, reason in zip(tokens, (None, None, "length"), strict=True)
    ]


def test_stop_ends_the_text_behind_the_match(client: httpx.Client) -> None:
    body = generate_body(max_tokens=20, stop=["cd"], details=True)
    answer = client.post(f"{MODEL}/generate", json=body).json()
    assert (answer["text_output"], answer["details"]["finish_reason"]) == ("abcd", "stop_sequence")


def test_parameters_reach_the_shard(router: RunningRouter, client: httpx.Client) -> None:
    body = {"text_input": "hi", "parameters": {"max_new_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 7}}
    assert client.post(f"{MODEL}/generate", json=body).json()["text_output"] == "ab"
    sampling = router.shard.history[-1].last_admit.sampling
    assert (sampling.do_sample, sampling.seed) == (True, 7)
    assert (sampling.temperature, sampling.top_p) == (0.5, pytest.approx(0.9))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text_input": "hi", "max_tokens": 3}, ("unknown field `max_tokens`",)),
        (generate_body(best_of=2), ("`parameters`", "unknown field `best_of`")),
        (generate_body(max_new_tokens=3), ("`max_tokens`", "`max_new_tokens`")),
        (generate_body(max_tokens=0), ("`max_tokens`",)),
        ({"text_input": "hi", "parameters": {"max_new_tokens": 0}}, ("`max_new_tokens`",)),
        (generate_body(top_p=2), ("`top_p`",)),
        (generate_body(stream=True), ("`stream` must be false", "generate_stream")),
        ({"text_input": ""}, ("`text_input`",)),
        ({"inputs": "hi"}, ("`inputs`",)),
        ({"parameters": {}}, ("`text_input`",)),
    ],
)
def test_what_generate_does_not_take_is_refused_by_name(
    client: httpx.Client, body: dict[str, Any], words: tuple[str, ...]
) -> None:
    assert_error(client.post(f"{MODEL}/generate", json=body), 422, *words)


def test_errors_are_the_protocols_on_every_path(client: httpx.Client) -> None:
    for action, body in (("generate", generate_body()), ("generate_stream", generate_body()), ("infer", infer_body())):
        assert_error(client.post(f"/v2/models/other/{action}", json=body), 404, "'other'", "'fake/model'")
        assert_error(client.post(f"{MODEL}/versions/2/{action}", json=body), 404, "'2'")
        assert_error(client.post(f"{MODEL}/{action}", content=b"{"), 415)
        assert_error(client.get(f"{MODEL}/{action}"), 405)
    assert_error(client.get("/v2/models/other"), 404)
    assert_error(client.get("/v2/models/other/ready"), 404)
    assert_error(client.get("/v2/nothing"), 404)
    assert_error(client.post(f"{MODEL}/generate_stream", json=generate_body(stream=False)), 422, "`stream`")


def test_a_full_server_is_429_and_a_call_that_never_fits_422(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=2) as router, router.client() as client:
        router.shard.pause()
        waiting = router.send("/generate", {"inputs": "hi", "parameters": {"max_new_tokens": 2}})
        router.wait_until_counts(running=1, waiting=0)
        two = infer_body({"shape": [2], "data": ["a", "b"]})
        answer = client.post(f"{MODEL}/infer", json=two)
        assert_error(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        assert_error(client.post(f"{MODEL}/infer", json=infer_body({"shape": [3], "data": ["a"] * 3})), 422)
        router.shard.resume()
        waiting.close()
        router.wait_until_free()
        assert client.post(f"{MODEL}/infer", json=two).status_code == 200


def test_a_failure_is_424_before_the_first_event_and_an_event_after_it(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005)) as router, router.client() as client:
        router.shard.pause()
        waiting = router.send(f"{MODEL}/generate_stream", generate_body())
        router.wait_until_counts(running=1, waiting=0)
        router.shard.fail_slot(0)
        router.shard.resume()
        head, _, data = waiting.recv(4096).partition(b"\r\n\r\n")
        waiting.close()
        assert head.startswith(b"HTTP/1.1 424 ")
        assert set(json.loads(data)) == {"error"}
        with client.stream("POST", f"{MODEL}/generate_stream", json={"text_input": "hi"}) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["text_output"] == "a"
            router.shard.fail_slot(0)
            last = [line for line in lines if line][-1]
        assert set(json.loads(last.removeprefix("data: "))) == {"error"}


# ---- infer


@pytest.mark.parametrize("path", PATHS)
def test_infer_answers_one_text_for_each_element_in_the_inputs_shape(client: httpx.Client, path: str) -> None:
    answer = client.post(f"{path}/infer", json=infer_body(id="42"))
    output = {"name": "text_output", "shape": [1], "datatype": "BYTES", "data": ["abc"]}
    assert answer.json() == {**NAMED, "id": "42", "outputs": [output]}
    body = infer_body({"shape": [2, 1], "data": [["hi"], ["ho"]]}, outputs=[{"name": "text_output"}])
    answer = client.post(f"{path}/infer", json=body)
    assert answer.json() == {**NAMED, "outputs": [{**output, "shape": [2, 1], "data": ["abc", "abc"]}]}
    assert answer.headers["x-generated-tokens"] == "6"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (infer_body({"name": "input-0"}), ("`inputs[0].name`", "'text_input'", "'input-0'")),
        (infer_body({"datatype": "FP32"}), ("`inputs[0].datatype`", "'BYTES'", "'FP32'")),
        (infer_body({"shape": [2]}), ("`inputs[0].shape`", "1 texts", "[2]")),
        (infer_body({"shape": [2, 2], "data": ["a", "b", "c"]}), ("`inputs[0].shape`", "3 texts", "[2, 2]")),
        (infer_body({"shape": [2, 2], "data": [["a"], ["b", "c", "d"]]}), ("`inputs[0].shape`", "4 texts")),
        (infer_body({"shape": [2], "data": ["a", ["b"]]}), ("`inputs[0].shape`", "2 texts")),
        (infer_body({"shape": []}), ("`inputs[0].shape`",)),
        (infer_body({"shape": [-1, -1]}), ("`inputs[0].shape`",)),
        (infer_body({"shape": [0], "data": []}), ("`inputs[0].data`", "1 to 4", "found 0")),
        (infer_body({"shape": [5], "data": ["a"] * 5}), ("`inputs[0].data`", "found 5")),
        (infer_body({"data": [104, 105]}), ("`inputs[0].data[0]`",)),
        (infer_body({"parameters": {"binary_data_size": 9}}), ("`inputs[0].parameters.binary_data_size`",)),
        (infer_body(outputs=[{"name": "logits"}]), ("`outputs[0].name`", "'text_output'", "'logits'")),
        (infer_body(outputs=[{"name": "text_output", "parameters": {"binary_data": True}}]), ("binary_data",)),
        ({"inputs": []}, ("`inputs`", "none")),
        ({"inputs": [TENSOR, {**TENSOR, "name": "max_tokens"}]}, ("`inputs`", "'max_tokens'", "`parameters`")),
        (infer_body(parameters={"details": True}), ("`details`",)),
        (infer_body(parameters={"top_n_tokens": 2}), ("unknown field `top_n_tokens`",)),
        (infer_body(model="x"), ("unknown field `model`",)),
    ],
)
def test_what_infer_does_not_take_is_refused_by_name(
    client: httpx.Client, body: dict[str, Any], words: tuple[str, ...]
) -> None:
    assert_error(client.post(f"{MODEL}/infer", json=body), 422, *words)


def test_tensors_that_ask_for_json_are_taken(client: httpx.Client) -> None:
    body = infer_body(outputs=[{"name": "text_output", "parameters": {"binary_data": False}}])
    assert client.post(f"{MODEL}/infer", json=body).status_code == 200
