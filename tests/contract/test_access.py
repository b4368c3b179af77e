"""Who may call: several keys, a file of keys that changes, caches apart for each key, TLS, and secrets that stay so."""

import json
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from textmill_router import file_watch
from textmill_router.api.route_table import ALIASES, ROUTES
from textmill_router.log_lines import TextFormatter

from tests.fakes.certificates import write_pair
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

BODY = {"inputs": "hi", "parameters": {"max_new_tokens": 2}}
# Health, and pages and documents that are equal on every server of this version.
OPEN = {
    *("/", "/health", "/health/live", "/health/ready", "/health/startup", "/ping"),
    *("/v2/health/live", "/v2/health/ready"),
    *("/docs", "/docs/{asset}", "/playground", "/playground/{asset}", "/openapi.json", "/api-doc/openapi.json"),
}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def write_keys(path: Path, **keys: str) -> None:
    path.write_text("".join(f'[[key]]\nname = "{name}"\nkey = "{key}"\n' for name, key in keys.items()))


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "LOOK_INTERVAL_S", 0.01)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with two keys of flags and one of a file, which asks for a key on /metrics too."""
    folder = tmp_path_factory.mktemp("locked")
    write_keys(folder / "keys.toml", third="key-of-the-file")
    settings = {"api_key": ("one", "two"), "api_key_file": str(folder / "keys.toml"), "api_key_metrics": True}
    with RunningRouter(folder, **settings) as router, router.client() as client:
        yield client


# ---- Keys.


@pytest.mark.parametrize("key", ["one", "two", "key-of-the-file"])
def test_each_key_opens(locked: httpx.Client, key: str) -> None:
    assert locked.post("/generate", json=BODY, headers=bearer(key)).status_code == 200
    assert locked.get("/metrics", headers={"x-api-key": key}).status_code == 200


def test_two_keys_of_the_server_in_one_call_are_401(locked: httpx.Client) -> None:
    answer = locked.post("/generate", json=BODY, headers={**bearer("one"), "x-api-key": "two"})
    assert answer.status_code == 401
    assert "all of them must be one key" in answer.json()["error"]
    assert locked.post("/generate", json=BODY, headers={**bearer("one"), "x-api-key": "one"}).status_code == 200


PATHS = sorted({(row.operation.method.upper(), row.operation.path) for row in ROUTES} | {("GET", "/no/such/route")})
ALIAS_PATHS = [(method, alias) for alias, path in ALIASES.items() for method, of in PATHS if of == path]


@pytest.mark.parametrize(("method", "path"), PATHS + ALIAS_PATHS)
def test_every_route_but_health_and_pages_asks_for_a_key(locked: httpx.Client, method: str, path: str) -> None:
    for headers in ({}, bearer("three"), {"x-api-key": ""}):
        answer = locked.request(method, path.replace("{model:path}", "x"), headers=headers)
        assert (answer.status_code == 401) == (method != "GET" or path not in OPEN), (headers, answer.text)


def test_metrics_are_open_without_the_flag(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, api_key=("one",)) as router, router.client() as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/info").status_code == 401


@pytest.mark.usefixtures("_looks_often")
def test_the_file_is_read_again_and_a_bad_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    write_keys(path, a="key-a", b="key-b")

    def opens(client: httpx.Client, key: str) -> bool:
        return client.post("/generate", json=BODY, headers=bearer(key)).status_code == 200

    def wait_for_line(router: RunningRouter, text: str, count: int) -> None:
        router.wait_until(lambda: sum(text in line.getMessage() for line in caplog.records) == count, text)

    with (
        caplog.at_level("INFO", "textmill_router"),
        RunningRouter(tmp_path, api_key_file=str(path)) as router,
        router.client() as client,
    ):
        assert (opens(client, "key-a"), opens(client, "key-b"), opens(client, "key-c")) == (True, True, False)
        write_keys(path, a="key-a", c="key-c")
        wait_for_line(router, "the key file is read again", 1)
        assert (opens(client, "key-a"), opens(client, "key-b"), opens(client, "key-c")) == (True, False, True)
        for number, text in enumerate(("", '[[key]]\nname = "d"\nkey = "key-d', path.read_text() * 2), 1):
            path.write_text(text)
            wait_for_line(router, "the key file is not taken", number)
            assert (opens(client, "key-a"), opens(client, "key-c"), opens(client, "key-d")) == (True, True, False)
        write_keys(path, d="key-d")
        wait_for_line(router, "the key file is read again", 2)
        assert (opens(client, "key-a"), opens(client, "key-d")) == (False, True)
    callers = [vars(line).get("caller") for line in caplog.records if line.getMessage() == "Success"]
    assert callers == ["a", "b", "a", "c", *["a", "c"] * 3, "d"]


# ---- Caches.

PROMPT = "The same words for everybody. " * 8
CALLS: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": PROMPT, "parameters": {"max_new_tokens": 1}},
    "/": {"inputs": PROMPT, "parameters": {"max_new_tokens": 1}},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1},
    "/vertex": {"instances": [{"inputs": PROMPT, "parameters": {"max_new_tokens": 1}}]},
    "/invocations": {"inputs": PROMPT, "parameters": {"max_new_tokens": 1}},
    "/v2/models/fake/model/generate": {"text_input": PROMPT, "parameters": {"max_tokens": 1}},
}


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("route", CALLS)
def test_a_prefix_is_found_again_with_the_same_key_only(tmp_path: Path, route: str, is_shared: bool) -> None:
    settings = {"api_key": ("one", "two"), "shared_prefix_cache": is_shared}
    with RunningRouter(tmp_path, **settings) as router, router.client() as client:

        def num_cached(headers: dict[str, str]) -> int:
            """Return how many tokens of the prompt came from the cache."""
            before = router.stats().num_prefix_hit_tokens_total
            answer = client.post(route, json=CALLS[route], headers=headers)
            assert answer.status_code == 200, answer.text
            return router.stats().num_prefix_hit_tokens_total - before

        assert num_cached(bearer("one")) == 0
        most = num_cached({"x-api-key": "one"})
        assert most >= len(PROMPT) // 16 * 16
        assert num_cached(bearer("two")) == (most if is_shared else 0)
        assert num_cached(bearer("two")) == most
        assert num_cached(bearer("one")) == most


@pytest.mark.parametrize("keys", [("one", "two"), ()], ids=["keys", "no keys"])
def test_a_kept_answer_is_for_the_same_key_in_whichever_header(tmp_path: Path, keys: tuple[str, ...]) -> None:
    with RunningRouter(tmp_path, api_key=keys, response_cache_bytes=100_000) as router, router.client() as client:

        def is_kept(headers: dict[str, str]) -> bool:
            answer = client.post("/generate", json=BODY, headers=headers)
            assert answer.status_code == 200
            return answer.headers.get("x-cache") == "hit"

        assert [is_kept(headers) for headers in ({"x-api-key": "one"}, bearer("one"), {"x-api-key": "one"})] == [
            False,
            True,
            True,
        ]
        assert [is_kept(headers) for headers in ({"x-api-key": "two"}, bearer("two"))] == [False, True]


# ---- TLS.


@pytest.mark.usefixtures("_looks_often")
def test_tls_serves_whole_answers_and_streams_and_takes_a_new_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}

    def connect(context: ssl.SSLContext) -> httpx.Client:
        return httpx.Client(base_url=f"https://127.0.0.1:{router.port}", verify=context, timeout=10, trust_env=False)

    def context_of_new_files() -> ssl.SSLContext:
        context = ssl.create_default_context()
        write_pair(tmp_path).configure_trust(context)
        return context

    first = context_of_new_files()
    with RunningRouter(tmp_path, FakeShardOptions(), **files) as router, caplog.at_level("INFO", "textmill_router"):
        body = {"inputs": "hi", "parameters": {"max_new_tokens": 500}}
        with connect(first) as client:
            assert client.get("/health").status_code == 200
            text = client.post("/generate", json=body).json()["generated_text"]
            lines = client.post("/generate_stream", json=body).text.split("\n\n")
            last = json.loads(lines[-2].removeprefix("data:"))
            assert (last["generated_text"], len(lines)) == (text, 501)
            large = {"inputs": "x" * 100_000}
            assert client.post("/tokenize", json=large).status_code == 200
        with router.client() as plain, pytest.raises(httpx.TransportError):
            plain.get("/health")
        second = context_of_new_files()
        router.wait_until(
            lambda: any("the files of TLS are read again" in line.getMessage() for line in caplog.records), "new files"
        )
        with connect(second) as client:
            assert client.get("/health").status_code == 200
        with connect(first) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get("/health")
        router.wait_until_free()


# ---- Secrets.

KEYS = ("sk-secret-of-flags", "sk-secret-of-file")
WRONG_KEY = "sk-wrong-and-secret"
TEXT = "My diary of Tuesday"


def test_no_key_and_no_prompt_stands_in_logs_errors_or_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_keys(tmp_path / "keys.toml", of_file=KEYS[1])
    settings = {
        "api_key": KEYS[:1],
        "api_key_file": str(tmp_path / "keys.toml"),
        "max_total_tokens": 300,
        "response_cache_bytes": 100_000,
    }
    chat = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 2}
    calls: list[tuple[str, Any, int | None]] = [
        ("/generate", {"inputs": TEXT, "parameters": {"max_new_tokens": 2}}, 200),
        ("/generate_stream", {"inputs": TEXT, "parameters": {"max_new_tokens": 2}}, 200),
        ("/v1/chat/completions", chat, 200),
        ("/v1/completions", {"prompt": TEXT, "max_tokens": 2}, 200),
        ("/tokenize", {"inputs": TEXT}, 200),
        ("/generate", {"inputs": TEXT * 50}, 422),
        ("/generate", {"inputs": TEXT, "parameters": {"max_new_tokens": 0}}, 422),
        ("/generate", {"inputs": [TEXT] * 9}, 422),
        ("/generate", {"inputs": {"text": TEXT}}, 422),
        ("/generate", b'{"inputs": "' + TEXT.encode(), 400),
        ("/generate", TEXT.encode() + b"\xff", 400),
        ("/v1/chat/completions", {"messages": [{"role": "nobody", "content": TEXT}]}, None),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": [TEXT]}]}]}, 422),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image", "of": TEXT}]}]}, 422),
        ("/v1/chat/completions", {**chat, "tools": [{"type": "function"}]}, 422),
        ("/v1/completions", {"prompt": TEXT * 50}, 422),
        ("/invocations", {"other": TEXT}, 422),
        ("/no/such/route", {"inputs": TEXT}, 404),
    ]
    shown: list[str] = []
    with (
        caplog.at_level("DEBUG"),
        RunningRouter(tmp_path, **settings) as router,
        router.client() as client,
    ):
        logging.getLogger("textmill_router").info("settings", extra=router.settings.describe())
        for headers in (bearer(KEYS[0]), {"x-api-key": KEYS[1]}, bearer(WRONG_KEY), {"x-api-key": WRONG_KEY}):
            for route, body, status in calls:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                answer = client.post(route, content=content, headers={**headers, "content-type": "application/json"})
                is_wrong = WRONG_KEY in next(iter(headers.values()))
                wanted = 401 if is_wrong else status
                assert wanted is None or answer.status_code == wanted, (route, body, answer.text)
                if answer.status_code != 200:
                    shown.append(answer.text + str(answer.headers))
        router.shard.fail_slot(0)
        shown.append(client.get("/metrics").text)
    formatter = TextFormatter(lambda record: record.name)
    own = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert any(record.getMessage() == "Success" for record in own)
    shown += [formatter.format(record) for record in own]
    for secret in (*KEYS, WRONG_KEY, TEXT):
        assert [text for text in shown if secret in text] == [], secret
    assert any("of_file" in text for text in shown)
