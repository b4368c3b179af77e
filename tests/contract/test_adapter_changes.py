"""Adapters that callers load and unload while the server runs: bodies, answers, protections, calls in flight."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.fake_shard import FakeShardOptions, adapted_text, write_adapter
from tests.fakes.running_router import RunningRouter

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changes")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningRouter]:
    hub = folder / "hub" / "models--org--one" / "snapshots" / ("1" * 40)
    write_adapter(hub, "from the hub")
    (folder / "open").mkdir()
    settings = {
        "lora_runtime_updates": True,
        "lora_dir": str(folder / "open"),
        "lora_hub_folder": (f"org/one={hub}",),
    }
    with RunningRouter(folder, FakeShardOptions(num_slots=8, num_blocks=512, step_s=0.002), **settings) as router:
        yield router


@pytest.fixture
def client(running: RunningRouter) -> Iterator[httpx.Client]:
    with running.client() as opened:
        yield opened
        for one in opened.get("/info").json()["adapters"]:
            assert opened.post(UNLOAD + "?wait=true", json={"lora_name": one["id"]}).status_code == 200
    # An unload without `wait` is answered before the shard has dropped the weights.
    running.wait_until(lambda: not running.shard.adapters, "all weights have left")


def ask(client: httpx.Client, name: str | None, num_tokens: int = 6) -> httpx.Response:
    parameters = {"max_new_tokens": num_tokens, **({} if name is None else {"adapter_id": name})}
    return client.post("/generate", json={"inputs": "q", "parameters": parameters})


def test_load_ask_and_unload_with_vllms_bodies_and_texts(client: httpx.Client, folder: Path) -> None:
    digest = write_adapter(folder / "open" / "poet", "verses")
    answer = client.post(LOAD, json={"lora_name": "poet", "lora_path": "poet"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'poet' added successfully.")
    assert answer.headers["content-type"].startswith("text/plain")
    assert ask(client, "poet").json()["generated_text"] == adapted_text(digest, 6)
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["fake/model", "poet"]
    answer = client.post(UNLOAD, json={"lora_name": "poet"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'poet' removed successfully.")
    assert ask(client, "poet").status_code == 422
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["fake/model"]


def test_an_absolute_path_below_the_folder_and_a_listed_repository_load(client: httpx.Client, folder: Path) -> None:
    write_adapter(folder / "open" / "deep" / "poet", "verses")
    path = str(folder / "open" / "deep" / "poet")
    assert client.post(LOAD, json={"lora_name": "a", "lora_path": path}).status_code == 200
    assert client.post(LOAD, json={"lora_name": "b", "lora_path": "org/one"}).status_code == 200
    assert {one["id"]: one["root"] for one in client.get("/v1/models").json()["data"]} == {
        "fake/model": "fake/model",
        "a": "poet",
        "b": "org/one",
    }


@pytest.mark.parametrize(
    "path", ["../secret", "..", ".", "/etc", "nowhere", "link", "open/../../secret", "org/two", "a\x00b", "x" * 5000]
)
def test_paths_outside_of_the_folder_are_refused_with_one_sentence(
    client: httpx.Client, folder: Path, path: str
) -> None:
    write_adapter(folder / "secret", "verses")
    link = folder / "open" / "link"
    if not link.is_symlink():
        link.symlink_to(folder / "secret")
    answer = client.post(LOAD, json={"lora_name": "a", "lora_path": path})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert "must be a folder below the one of --lora-dir, or one of the repositories 'org/one'" in message
    assert str(folder) not in message


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        ({"lora_path": "poet"}, 400, "lora_name", "must be given"),
        ({"lora_name": "a"}, 400, "lora_path", "must be given"),
        ({"lora_name": "a\nb", "lora_path": "poet"}, 422, "lora_name", "control characters"),
        ({"lora_name": "a/../b", "lora_path": "poet"}, 422, "lora_name", "`..`"),
        ({"lora_name": "fake/model", "lora_path": "poet"}, 422, "lora_name", "base model"),
        ({"lora_name": "a" * 201, "lora_path": "poet"}, 422, "lora_name", "found 201"),
        ({"lora_name": "a", "lora_path": "bad"}, 422, "lora_path", "the tensor x has no module"),
        ({"lora_name": "a", "lora_path": "huge"}, 422, "lora_path", "takes 2000 bytes, 1000 are free"),
        ({"lora_name": "a", "lora_path": "poet", "is_3d_lora_weight": True}, 422, "is_3d_lora_weight", "experts"),
        ({"lora_name": 7, "lora_path": "poet"}, 422, "lora_name", "expected `str`"),
    ],
)
def test_refused_loads_name_the_field_and_leave_nothing(
    client: httpx.Client, folder: Path, body: dict[str, object], status: int, param: str, text: str
) -> None:
    for name, content in (("poet", "verses"), ("bad", "bad"), ("huge", "x" * 2000)):
        write_adapter(folder / "open" / name, content)
    answer = client.post(LOAD, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert text in error["message"]
    assert str(folder) not in error["message"]
    assert client.get("/info").json()["adapters"] == []


def test_a_taken_name_needs_load_inplace_and_an_unknown_one_is_404(client: httpx.Client, folder: Path) -> None:
    write_adapter(folder / "open" / "poet", "verses")
    after = write_adapter(folder / "open" / "clerk", "forms")
    body = {"lora_name": "a", "lora_path": "poet"}
    assert client.post(LOAD, json=body).status_code == 200
    refused = client.post(LOAD, json=body)
    assert refused.status_code == 400
    assert "load_inplace" in refused.json()["error"]["message"]
    replaced = client.post(LOAD, json={"lora_name": "a", "lora_path": "clerk", "load_inplace": True})
    assert replaced.status_code == 200
    assert ask(client, "a").json()["generated_text"] == adapted_text(after, 6)
    unknown = client.post(UNLOAD, json={"lora_name": "nobody"})
    assert unknown.status_code == 404
    assert client.post(UNLOAD, json={}).status_code == 400
    assert client.post(UNLOAD + "?wait=perhaps", json={"lora_name": "a"}).status_code == 422


def test_an_unload_leaves_running_calls_alone_and_can_wait_for_them(
    running: RunningRouter, client: httpx.Client, folder: Path
) -> None:
    digest = write_adapter(folder / "open" / "poet", "verses")
    client.post(LOAD, json={"lora_name": "a", "lora_path": "poet"})
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(ask(client, "a", 300)))
    caller.start()
    running.wait_until_counts(running=1, waiting=0)
    assert client.post(UNLOAD, json={"lora_name": "a"}).status_code == 200
    assert ask(client, "a").status_code == 422
    assert digest in running.shard.adapters
    caller.join(20)
    assert answers[0].json()["generated_text"] == adapted_text(digest, 300)
    running.wait_until(lambda: not running.shard.adapters, "the weights have left")


def test_403_without_the_flag_or_without_keys_on_an_open_address(tmp_path: Path, router: RunningRouter) -> None:
    with router.client() as client:
        answer = client.post(LOAD, json={"lora_name": "a", "lora_path": "b"})
        assert answer.status_code == 403
        assert "--lora-runtime-updates" in answer.json()["error"]["message"]
        assert client.post(UNLOAD, json={"lora_name": "a"}).status_code == 403
    body = {"lora_name": "a", "lora_path": "b"}
    with RunningRouter(tmp_path, lora_runtime_updates=True, hostname="0.0.0.0") as opened, opened.client() as client:
        assert client.post(LOAD, json=body).status_code == 403
    settings = {"lora_runtime_updates": True, "hostname": "0.0.0.0", "api_key": ("key",)}
    with RunningRouter(tmp_path, **settings) as opened, opened.client() as client:
        assert client.post(LOAD, json=body).status_code == 401
        answer = client.post(LOAD, json=body, headers={"authorization": "Bearer key"})
        assert answer.status_code == 422
        assert "no folder is open to callers" in answer.json()["error"]["message"]
