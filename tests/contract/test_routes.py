"""Health, info, tokenize, metrics; API key; CORS."""

from collections.abc import Iterator
from importlib.metadata import version

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

BODY = {"inputs": "hi", "parameters": {"max_new_tokens": 2}}


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
def test_health_is_200_without_a_body(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert client.head(path).status_code == 200


def test_info_has_the_fields_of_both_versions(client: httpx.Client) -> None:
    assert client.get("/info").json() == {
        "model_id": "fake/model",
        "model_sha": "cafe",
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": 1500,
        "max_total_tokens": 2048,
        "validation_workers": 2,
        "max_client_batch_size": 4,
        "router": "textmill-router",
        "version": version("textmill"),
        "sha": None,
        "docker_label": None,
        "max_input_length": 1500,
        "model_dtype": "torch.float32",
        "model_device_type": "cpu",
        "max_batch_total_tokens": 512 * 16,
        "max_batch_size": 8,
        "health_state": "ready",
        "replicas": [{"replica": 0, "phase": "ready", "num_slots": 8, "num_blocks": 512}],
        "adapters": [],
        "media_kinds": [],
        "media_cache_bytes": 0,
        "kv_cache_dtype": "fp8_e4m3fn",
        "task": "text-generation",
        "tasks": ["text-generation", "conversational"],
        "labels": {},
        "max_waiting_tokens": 0,
        "waiting_served_ratio": 0.0,
    }


def test_limits_unset_are_what_model_and_cache_allow(tmp_path_factory: pytest.TempPathFactory) -> None:
    for options, expected in (
        (FakeShardOptions(max_model_tokens=100), 100),
        (FakeShardOptions(max_model_tokens=0, num_blocks=10), 160),
    ):
        with RunningRouter(tmp_path_factory.mktemp("limits"), options) as router, router.client() as client:
            info = client.get("/info").json()
            engine = router.service.open_backend().engine
            assert info["max_total_tokens"] <= expected
            assert router.in_loop(lambda: engine.can_ever_fit(info["max_total_tokens"]))  # noqa: B023 - called at once
            assert info["max_input_tokens"] == info["max_total_tokens"] - 1
            answer = client.post("/generate", json={"inputs": "x"})
            assert len(answer.json()["generated_text"]) == info["max_total_tokens"] - 2


def test_tokens_stand_at_bytes_of_the_input(client: httpx.Client) -> None:
    text = "aé漢😀b"
    tokens = client.post("/tokenize", json={"inputs": text, "parameters": {"truncate": 1}}).json()
    assert tokens[0] == {"id": 256, "text": "", "start": 0, "stop": 0}
    assert [token["id"] for token in tokens[1:]] == list(text.encode())
    data = text.encode()
    for token in tokens[1:]:
        assert set(token) == {"id", "text", "start", "stop"}
        assert data[token["start"] : token["stop"]].decode() == token["text"]
    # A token that is one byte of a character has the range of the whole character.
    assert [(token["start"], token["stop"]) for token in tokens[1:]] == [
        *[(0, 1)],
        *[(1, 3)] * 2,
        *[(3, 6)] * 3,
        *[(6, 10)] * 4,
        *[(10, 11)],
    ]


def test_long_text_is_tokenised_too(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"inputs": "é" * 5000}).json()
    assert len(tokens) == 10_001
    assert tokens[-1] == {"id": 0xA9, "text": "é", "start": 9998, "stop": 10_000}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("locked")
    origins = ("http://app.example", "http://b.example")
    with RunningRouter(folder, api_key=("Sesame-1",), cors_allow_origin=origins) as router, router.client() as client:
        yield client


@pytest.mark.parametrize("value", ["Bearer Sesame-1", "bearer Sesame-1", "Bearer: Sesame-1", "Bearer   Sesame-1"])
def test_key_opens(locked: httpx.Client, value: str) -> None:
    assert locked.post("/generate", json=BODY, headers={"authorization": value}).status_code == 200


@pytest.mark.parametrize(
    "value", [None, "", "Sesame-1", "Bearer sesame-1", "Bearer Sesame-1x", "Bearer", "Basic Sesame-1"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", path) for path in ("/", "/generate", "/generate_stream", "/tokenize")]
    + [("GET", "/info"), ("GET", "/nope"), ("POST", "/health")],
)
def test_without_the_key_401(locked: httpx.Client, value: str | None, method: str, path: str) -> None:
    headers = {} if value is None else {"authorization": value}
    answer = locked.request(method, path, content=b"not even json", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error_type"] == "unauthorized"
    assert set(answer.json()) == {"error", "error_type"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("x-api-key", "Sesame-1")], 200),
        ([("X-Api-Key", "Sesame-1")], 200),
        ([("x-api-key", "sesame-1")], 401),
        ([("x-api-key", "Bearer Sesame-1")], 401),
        ([("x-api-key", "Sesame-1"), ("authorization", "Bearer Sesame-1")], 200),
        ([("x-api-key", "Sesame-1"), ("authorization", "Bearer other")], 401),
        ([("x-api-key", "other"), ("authorization", "Bearer Sesame-1")], 401),
        ([("x-api-key", "Sesame-1"), ("x-api-key", "other")], 401),
        ([("authorization", "Bearer Sesame-1"), ("authorization", "Bearer other")], 400),
        ([("x-api-key", "Sesame-1"), ("authorization", "Basic dXNlcg==")], 200),
    ],
)
def test_key_may_stand_in_either_header_and_not_in_two_ways(
    locked: httpx.Client, headers: list[tuple[str, str]], status: int
) -> None:
    for path, body in (("/generate", BODY), ("/v1/completions", {"prompt": "hi", "max_tokens": 1})):
        assert locked.post(path, json=body, headers=headers).status_code == status


def test_a_refusal_names_both_headers_of_the_key_and_tells_of_a_second_key(locked: httpx.Client) -> None:
    without_key = locked.post("/generate", json=BODY).json()["error"]
    assert "`Authorization: Bearer <key>` or `x-api-key: <key>`" in without_key
    assert "several keys" not in without_key
    two_keys = {"x-api-key": "Sesame-1", "authorization": "Bearer other"}
    assert "several keys" in locked.post("/generate", json=BODY, headers=two_keys).json()["error"]


def test_the_document_names_both_headers_of_the_key(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert {
        (scheme["type"], scheme.get("scheme") or scheme.get("name", "").lower()) for scheme in schemes.values()
    } == {
        ("http", "bearer"),
        ("apiKey", "x-api-key"),
    }
    assert {name for entry in document["security"] for name in entry} == set(schemes)


@pytest.mark.parametrize("path", ["/", "/health", "/ping", "/metrics"])
def test_monitoring_needs_no_key(locked: httpx.Client, path: str) -> None:
    assert locked.get(path).status_code == 200
    assert locked.options("/generate").status_code == 200


def preflight(client: httpx.Client, origin: str) -> httpx.Headers:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = client.options("/generate", headers=headers)
    assert answer.status_code == 200
    return answer.headers


def test_browser_may_call_from_anywhere_with_a_key(client: httpx.Client) -> None:
    headers = preflight(client, "http://any.example")
    assert headers["access-control-allow-origin"] == "*"
    assert "POST" in headers["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= set(headers["access-control-allow-headers"].split(","))
    assert client.get("/health", headers={"origin": "http://a"}).headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in client.get("/health").headers


def test_browser_may_send_what_its_client_adds_and_read_what_comes(client: httpx.Client) -> None:
    """On a page in a browser the openai client sends ten headers of its own, and waits as Retry-After says."""
    asked = {"origin": "http://a", "access-control-request-method": "POST"}

    def allowed(wanted: str) -> set[str]:
        answer = client.options("/v1/completions", headers={**asked, "access-control-request-headers": wanted})
        assert answer.status_code == 200
        return {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}

    assert {"x-stainless-os", "openai-organization", "authorization"} <= allowed("x-stainless-os, openai-organization")
    assert allowed("x-one(") == allowed("") >= {"authorization", "content-type", "x-wait-for-model"}
    body = {"prompt": "hi", "max_tokens": 1}
    for answer in (
        client.post("/v1/completions", json=body, headers={"origin": "http://a"}),
        client.post("/v1/completions", json={**body, "stream": True}, headers={"origin": "http://a"}),
        client.post("/v1/completions", json={**body, "n": 0}, headers={"origin": "http://a"}),
        client.get("/v1/models/none", headers={"origin": "http://a"}),
    ):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-expose-headers"] == "*"


def test_browser_may_call_from_listed_origins_only(locked: httpx.Client) -> None:
    assert preflight(locked, "http://b.example")["access-control-allow-origin"] == "http://b.example"
    assert "access-control-allow-origin" not in preflight(locked, "http://evil.example")
    # The page can read a refusal too.
    answer = locked.post("/generate", json=BODY, headers={"origin": "http://app.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "http://app.example")
    assert answer.headers["vary"] == "origin"


def test_options_tells_the_methods(client: httpx.Client) -> None:
    answer = client.options("/")
    assert (answer.status_code, answer.headers["allow"]) == (200, "GET, HEAD, POST, OPTIONS")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/responses", "did you mean /v1/chat/completions?"),
        ("/generate/", "did you mean /generate?"),
        ("/nothing", "GET /docs lists the routes"),
    ],
)
def test_unknown_path_is_told_the_route_that_is_meant(client: httpx.Client, path: str, meant: str) -> None:
    answer = client.post(path, json={})
    assert answer.status_code == 404
    error = answer.json()["error"]
    message = error["message"] if path.startswith("/v1") else error
    assert message == f"there is no route {path!r}: {meant}"
