"""GET /v1/models and /v1/models/{id}."""

import time
from pathlib import Path

import httpx
import pytest

from tests.fakes.running_router import RunningRouter

SERVED = "/v1/models/fake/model"


def test_created_is_when_the_files_were_written(client: httpx.Client) -> None:
    assert 0 <= time.time() - client.get(SERVED).json()["created"] < 3600


@pytest.mark.parametrize("path", ["/v1/models", SERVED, "/v1/models/fake%2Fmodel"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
    for name in ("content-length", "content-type"):
        assert head.headers[name] == whole.headers[name]


def test_head_of_a_missing_model_is_404(client: httpx.Client) -> None:
    assert client.head("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    "name", ["other", "fake", "model", "fake/model/", "/fake/model", "fake/other", "FAKE/MODEL", "é?"]
)
def test_other_names_are_not_found(client: httpx.Client, name: str) -> None:
    answer = client.get("/v1/models/" + name.replace("?", "%3F"))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "model_not_found")
    assert repr(name) in error["message"]
    assert "fake/model" in error["message"]


@pytest.mark.parametrize("name", ["tgi", "dummy"])
def test_a_name_that_calls_take_for_the_model_is_found(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["id"]) == (200, "fake/model")


@pytest.mark.parametrize("path", ["/v1/models", SERVED])
def test_methods(client: httpx.Client, path: str) -> None:
    answer = client.options(path)
    assert (answer.status_code, answer.headers["allow"]) == (200, "GET, HEAD, OPTIONS")
    for method in ("POST", "DELETE", "PUT"):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert answer.json()["error"]["code"] == "method_not_allowed"
        assert answer.json()["error"]["message"].startswith(f"{path} takes ")


def test_slash_behind_the_list_names_no_model(client: httpx.Client) -> None:
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()


def test_model_is_told_while_it_loads_and_needs_the_key(tmp_path: Path) -> None:
    with (
        RunningRouter(tmp_path, is_loading=True, api_key=("k",), max_total_tokens=99) as router,
        router.client() as client,
    ):
        assert client.get(SERVED).status_code == 401
        client.headers["authorization"] = "Bearer k"
        assert client.get(SERVED).json()["max_model_len"] == 99
        assert client.get("/v1/models").json()["data"] == [client.get(SERVED).json()]
        assert client.get("/v1/models/other").status_code == 404
        assert client.head("/v1/models").status_code == 200


def test_served_names_stand_for_the_model_and_answers_have_the_first(tmp_path: Path) -> None:
    names = ("gpt-9", "org/best")
    with (
        RunningRouter(tmp_path, served_model_name=names, strict_model=True) as router,
        router.client() as client,
    ):
        models = client.get("/v1/models").json()["data"]
        assert [(model["id"], model["root"]) for model in models] == [(name, "fake/model") for name in names]
        assert client.get("/v1/models/org/best").json()["id"] == "org/best"
        assert client.get(SERVED).status_code == 404
        body = {"prompt": "a", "max_tokens": 1}
        for name in names:
            answer = client.post("/v1/completions", json={**body, "model": name})
            assert (answer.status_code, answer.json()["model"]) == (200, "gpt-9")
        refused = client.post("/v1/completions", json={**body, "model": "fake/model"})
        assert refused.status_code == 404
        assert "serves 'gpt-9', 'org/best'" in refused.text
        assert client.get("/info").json()["model_id"] == "fake/model"
