"""The pages /playground and /docs: their headers, their files, the prefix of a proxy, and what works without a key."""

import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.running_router import RunningRouter

PAGES = ("/playground", "/docs")
MAX_PAGE_BYTES = 200_000  # of the playground before compression
FOREVER = "public, max-age=31536000, immutable"


def named_files(client: httpx.Client, path: str) -> list[str]:
    """Return the paths of all files that a page loads, by way of the files that its modules import."""
    found: list[str] = []
    left = [f"/{name}" for name in re.findall(r'(?:src|href)="([\w-]+/[\w.-]+)"', client.get(path).text)]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.append(name)
        folder = name.rpartition("/")[0]
        for imported in re.findall(
            r'^(?:import|export)\b[^"\';]*"\./([\w.-]+\.js)"', client.get(name).text, re.MULTILINE
        ):
            left.append(f"{folder}/{imported}")
    return found


@pytest.mark.parametrize("path", PAGES)
def test_page_has_a_strict_policy_and_is_asked_for_anew(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", PAGES)
def test_page_has_no_inline_code_and_names_no_other_host(client: httpx.Client, path: str) -> None:
    html = client.get(path).text
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\bstyle=|\bon\w+=|https?://|//cdn", html) == []


@pytest.mark.parametrize("path", PAGES)
def test_files_have_digests_in_their_names_and_are_kept_for_ever(client: httpx.Client, path: str) -> None:
    names = named_files(client, path)
    assert len(names) >= 5
    for name in names:
        answer = client.get(name, headers={"accept-encoding": "identity"})
        assert answer.status_code == 200, name
        assert answer.headers["cache-control"] == FOREVER
        assert "content-encoding" not in answer.headers
        assert hashlib.sha256(answer.content).hexdigest()[:8] == name.rpartition("/")[2].split(".")[-2]


@pytest.mark.parametrize("path", PAGES)
def test_files_are_compressed_for_who_takes_that(router: RunningRouter, client: httpx.Client, path: str) -> None:
    for name in named_files(client, path):
        if name.endswith(".png"):
            continue
        plain = client.get(name, headers={"accept-encoding": "gzip;q=0, identity"})
        with client.stream("GET", name, headers={"accept-encoding": "br, gzip"}) as answer:
            raw = b"".join(answer.iter_raw())
        is_smaller = len(gzip.compress(plain.content)) < len(plain.content)
        assert (answer.headers.get("content-encoding") == "gzip") == is_smaller, name
        if is_smaller:
            assert answer.headers["vary"] == plain.headers["vary"] == "accept-encoding"
            assert gzip.decompress(raw) == plain.content


def test_playground_is_small(client: httpx.Client) -> None:
    sizes = [len(client.get(name).content) for name in named_files(client, "/playground")]
    assert len(client.get("/playground").content) + sum(sizes) < MAX_PAGE_BYTES


def test_every_file_of_the_folder_is_loaded(client: httpx.Client) -> None:
    folder = Path(__file__).parents[2] / "router" / "textmill_router" / "api" / "playground" / "page"
    files = {path.name.rpartition(".") for path in folder.rglob("*") if path.suffix in (".js", ".css", ".svg")}
    loaded = {re.sub(r"\.[0-9a-f]{8}\.", ".", name.rpartition("/")[2]) for name in named_files(client, "/playground")}
    assert loaded == {f"{stem}.{suffix}" for stem, _, suffix in files}


@pytest.mark.parametrize("name", ["main.js", "main.00000000.js", "..%2fpage.py", "nothing.css"])
def test_other_names_are_not_found(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/playground/{name}")
    assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")


def test_docs_links_to_the_playground(client: httpx.Client) -> None:
    assert 'data-playground="playground"' in client.get("/docs").text


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A router that a proxy serves under /llm, with a key and without the playground of the other tests."""
    folder = tmp_path_factory.mktemp("prefix")
    with RunningRouter(folder, root_path="/llm", api_key=("s3cret",)) as router, router.client() as client:
        yield client


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_prefix_may_be_passed_on_or_taken_off(behind_proxy: httpx.Client, prefix: str) -> None:
    for page in PAGES:
        html = behind_proxy.get(prefix + page).text
        for name in re.findall(r'(?:src|href)="([\w-]+/[\w.-]+)"', html):
            assert behind_proxy.get(f"{prefix}/{name}").status_code == 200
    assert behind_proxy.get(f"{prefix}/health").status_code == 200
    headers = {"authorization": "Bearer s3cret"}
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = behind_proxy.post(
        f"{prefix}/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 2}}, headers=headers
    )
    assert answer.status_code == 200
    # The form of an error follows the path without its prefix.
    refused = behind_proxy.post(f"{prefix}/v1/chat/completions", json=body)
    assert (refused.status_code, set(refused.json()["error"])) == (401, {"message", "type", "param", "code"})


def test_prefix_is_the_server_of_the_document(behind_proxy: httpx.Client, client: httpx.Client) -> None:
    assert behind_proxy.get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
    assert "servers" not in client.get("/openapi.json").json()


def test_other_prefixes_are_not_found(behind_proxy: httpx.Client) -> None:
    headers = {"authorization": "Bearer s3cret"}
    for path in ("/llmx/health", "/other/health", "/llm/llm/health"):
        assert behind_proxy.get(path, headers=headers).status_code == 404


def test_pages_open_without_a_key_and_calls_do_not(behind_proxy: httpx.Client) -> None:
    for path in (*PAGES, "/openapi.json", *named_files(behind_proxy, "/playground")):
        assert behind_proxy.get(path).status_code == 200, path
    for path in ("/info", "/v1/models", "/playgrounds", "/playground"):
        expected = 200 if path == "/playground" else 401
        assert behind_proxy.get(path).status_code == expected, path
    assert behind_proxy.post("/playground/x", json={}).status_code == 401


def test_playground_can_be_switched_off(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, disable_playground=True) as router, router.client() as client:
        assert client.get("/playground").status_code == 404
        assert client.get("/playground/main.js").status_code == 404
        assert 'data-playground=""' in client.get("/docs").text
