"""The demo model under Ray Serve, as `deploy/ray/textmill_serve.py` runs it: `make test-ray`.

Ray lives in a Python environment of its own. Two replicas share the machine's processor.
"""

import contextlib
import itertools
import json
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
from textmill_launcher.settings import Settings

from tests.deploy import ties
from tests.deploy.manifests import DEPLOY
from tests.deploy.ray_cluster import VENV, RunningServe, running_serve
from tests.deploy.shell_blocks import Command, commands
from tests.fakes.processes import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LIMIT_S = 60
REPLACE_LIMIT_S = 200  # a loaded machine starts the demo model slowly
NUM_PERMITS = 2
NUM_TOKENS = 60
ENVIRON = {"DTYPE": "float32", "KV_CACHE_BYTES": str(64 * 16 * 46_080), "MAX_CONCURRENT_REQUESTS": str(NUM_PERMITS)}
COMMANDS = [command for command in commands() if command.text.startswith("serve run ")]
[SHOWN] = [command.text for command in COMMANDS if not command.needs]


def body(num_tokens: int) -> dict[str, object]:
    return {"inputs": "The capital of", "parameters": {"max_new_tokens": num_tokens, "ignore_eos": True}}


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServe]:
    with running_serve(SHOWN, tmp_path_factory.mktemp("ray"), ENVIRON) as running:
        wait_until(lambda: running.num_ready() == 2, LIMIT_S, "both replicas serve", lambda: running.log_text)
        yield running


@pytest.fixture
def client(serve: RunningServe) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serve.base_url, timeout=LIMIT_S, trust_env=False) as opened:
        yield opened


def metric(url: str, name: str) -> float:
    page = httpx.get(f"{url}/metrics", timeout=LIMIT_S, trust_env=False).text
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    )


def test_each_token_of_a_stream_comes_when_it_is_made(client: httpx.Client) -> None:
    whole = client.post("/generate", json=body(NUM_TOKENS)).json()["generated_text"]
    arrivals_s, events = [], []
    with client.stream("POST", "/generate_stream", json=body(NUM_TOKENS)) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        for line in stream.iter_lines():
            if line.startswith("data:"):
                arrivals_s.append(time.monotonic())
                events.append(json.loads(line.removeprefix("data:")))
    assert events[-1]["generated_text"] == whole
    assert len(events) == NUM_TOKENS
    # A stream that somebody holds back until its end comes in a moment.
    spread_s = arrivals_s[-1] - arrivals_s[0]
    gaps_s = [after - before for before, after in itertools.pairwise(arrivals_s)]
    assert max(gaps_s) < spread_s / 2
    assert sum(gap_s > 0.001 for gap_s in gaps_s) > NUM_TOKENS / 2


def test_a_launcher_gets_and_gives_what_it_would_without_ray(serve: RunningServe, client: httpx.Client) -> None:
    url = next(iter(serve.launcher_urls().values()))
    with httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as direct:
        for method, path, content in [
            ("GET", "/info", None),
            ("GET", "/v1/models/no%2Fsuch%20model?a=%C3%A4", None),
            ("GET", "/no/such/path", None),
            ("PUT", "/generate", b"{}"),
            ("POST", "/generate", b'{"inputs": 3}'),
            ("POST", "/generate", b'{"inputs": "' + b"x" * 3_000_000 + b'"}'),
            (
                "POST",
                "/v1/completions",
                json.dumps({"model": "tgi", "prompt": "a", "max_tokens": 2, "temperature": 0}).encode(),
            ),
        ]:
            shown, wanted = (
                each.request(method, path, content=content, headers={"content-type": "application/json"})
                for each in (client, direct)
            )
            assert shown.status_code == wanted.status_code, path
            assert shown.headers.get("content-type") == wanted.headers.get("content-type")
            assert ignoring_ids(shown) == ignoring_ids(wanted)
            names = [name for name, _ in shown.headers.multi_items()]
            assert len(names) == len(set(names)), "a field that came twice"
            assert set(wanted.headers) - {"connection", "content-length"} <= set(names)


def ignoring_ids(answer: httpx.Response) -> object:
    """The answer's body without the values that differ from call to call."""
    content = answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
    if isinstance(content, dict):
        return {name: value for name, value in content.items() if name not in ("id", "created", "timings")}
    return content


def test_the_id_of_a_call_is_the_id_in_the_log(serve: RunningServe, client: httpx.Client) -> None:
    answer = client.post("/generate", json=body(1), headers={"x-request-id": "a-call-through-serve"})
    assert answer.headers.get_list("x-request-id") == ["a-call-through-serve"]
    wait_until(lambda: "a-call-through-serve" in serve.log_text, LIMIT_S, "a line with the id", lambda: serve.log_text)


def test_a_full_server_says_so_with_the_wait(client: httpx.Client) -> None:
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/generate", json=body(NUM_TOKENS))))
        for _ in range(4 * NUM_PERMITS + 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(answers) == len(threads)
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error_type"] == "overloaded"


def test_both_replicas_get_calls(serve: RunningServe, client: httpx.Client) -> None:
    def counts() -> list[float]:
        return [metric(url, "tgi_request_count") for url in serve.launcher_urls().values()]

    def is_spread() -> bool:
        client.post("/generate", json=body(1)).raise_for_status()
        return len(counts()) == 2 and min(counts()) > 0

    wait_until(is_spread, LIMIT_S, "each replica has got a call", lambda: str(counts()))


def test_a_client_that_leaves_ends_the_work(serve: RunningServe, client: httpx.Client) -> None:
    def aborts() -> float:
        return sum(metric(url, "textmill_request_aborts") for url in serve.launcher_urls().values())

    before = aborts()
    with client.stream("POST", "/generate_stream", json=body(900)) as stream:
        next(stream.iter_lines())
    wait_until(lambda: aborts() == before + 1, LIMIT_S, "the launcher has seen the client leave")


@pytest.mark.timeout(2 * REPLACE_LIMIT_S)
@pytest.mark.parametrize("victim", ["launcher", "replica"])
def test_a_killed_replica_is_replaced(serve: RunningServe, client: httpx.Client, victim: str) -> None:
    """The other replica serves meanwhile. A new launcher comes, and the lost one leaves nothing."""
    launchers = serve.launchers()
    lost, kept = launchers
    family = [lost, *lost.children(recursive=True)]
    killed = lost if victim == "launcher" else replica_of(lost)
    killed.send_signal(signal.SIGKILL)
    num_answered = 0

    def is_replaced() -> bool:
        nonlocal num_answered
        with contextlib.suppress(httpx.TransportError):  # a call that the lost replica had
            num_answered += client.post("/generate", json=body(1)).status_code == 200
        pids = {process.pid for process in serve.launchers()}
        return lost.pid not in pids and kept.pid in pids and len(pids) == 2 and serve.num_ready() == 2

    wait_until(is_replaced, REPLACE_LIMIT_S, "a new replica serves", lambda: serve.log_text)
    assert num_answered > 5
    _, left = psutil.wait_procs(family, LIMIT_S)
    assert left == []
    for _ in range(10):
        client.post("/generate", json=body(1)).raise_for_status()


def replica_of(launcher: psutil.Process) -> psutil.Process:
    parent = launcher.parent()
    assert parent is not None
    assert "ServeReplica" in " ".join(parent.cmdline())
    return parent


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.needs or "here")
def test_the_launcher_takes_what_each_shown_command_starts(command: Command) -> None:
    words = dict(word.split("=", 1) for word in shlex.split(command.text) if "=" in word)
    code = "import json, sys, textmill_serve as t; print(json.dumps(t.Options(**json.loads(sys.argv[1])).command()))"
    done = subprocess.run(
        [str(VENV / "bin/python"), "-c", code, json.dumps(words)],
        cwd=DEPLOY / "ray",
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    settings = ties.launcher_settings(json.loads(done.stdout.splitlines()[-1]), {"PORT": "8080"})
    assert isinstance(settings, Settings), settings
    assert settings.num_shard == int(words.get("num_shard", "1"))
    assert settings.device == ("cpu" if words.get("num_gpus") == "0" else "cuda")
