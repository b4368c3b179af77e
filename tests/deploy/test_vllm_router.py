"""A real vllm-router in front of launchers of a tiny model: `make test-proxies`."""

import random
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.fleet import Fleet, running_fleet
from tests.deploy.shell_blocks import commands
from tests.deploy.tool_process import running_tool
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.processes import free_port, wait_until
from tests.fakes.running_router import RunningRouter

pytestmark = pytest.mark.proxies

LIMIT_S = 60
NUM_CONVERSATIONS = 9
NUM_TURNS = 5
TGI_ROUTES = ("/generate", "/generate_stream", "/tokenize")
SHOWN = {
    words[words.index("--policy") + 1]: words
    for words in (command.text.split() for command in commands() if command.text.startswith("vllm-router "))
}
# The ports of the page: of the servers, of their events, and of the events that are given again.
SHOWN_PORTS, SHOWN_EVENTS, SHOWN_REPLAYS = (3001, 3002), (5557, 5567), (5558, 5568)
SHOWN_MODEL = "org/model"


@pytest.fixture(scope="module")
def event_ports() -> dict[int, int]:
    """The ports of the events, by the ports that the page shows."""
    return {shown: free_port() for shown in (*SHOWN_EVENTS, *SHOWN_REPLAYS)}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, event_ports: dict[int, int]) -> Iterator[Fleet]:
    flags = [
        (
            *("--kv-events-port", str(event_ports[events]), "--kv-events-replay-port", str(event_ports[replays])),
            *("--kv-events-topic", "none"),
        )
        for events, replays in zip(SHOWN_EVENTS, SHOWN_REPLAYS, strict=True)
    ]
    with running_fleet(tmp_path_factory.mktemp("fleet"), flags, "--served-model-name", "tiny") as fleet:
        yield fleet


@contextmanager
def running_router(
    folder: Path, servers: Sequence[int], policy: str, event_ports: Mapping[int, int] | None = None
) -> Iterator[httpx.Client]:
    """Start the router by the command of docs/deploy.md for the policy, with the ports and the model of this test."""
    port = free_port()
    ports = {8000: port, **dict(zip(SHOWN_PORTS, servers, strict=True)), **(event_ports or {})}
    shown = SHOWN.get(policy, SHOWN["cache_aware"])
    command = [re.sub(r"(^|:)(\d{4})\b", lambda found: f"{found[1]}{ports[int(found[2])]}", word) for word in shown]
    command = ["tiny" if word == SHOWN_MODEL else word for word in command]
    command[command.index("--policy") + 1] = policy
    command += ["--prometheus-port", str(free_port())]
    url = f"http://127.0.0.1:{port}"
    with (
        running_tool(command, folder / f"{policy}.log", f"{url}/health"),
        httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as client,
    ):
        yield client


def ask(client: httpx.Client, prompt: str, num_tokens: int = 16) -> httpx.Response:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    return client.post("/v1/completions", json=body)


def talk(client: httpx.Client, fleet: Fleet, name: str) -> float:
    """Hold conversations whose turns come in a random order; return the share of prompt tokens found in a prefix cache.

    No conversation begins as another does, so a share is found only on the server of the turn before.
    """
    shuffled = random.Random(name)
    texts = [
        f"{name} {number}: " + " ".join(shuffled.choices("abcdefgh", k=100)) for number in range(NUM_CONVERSATIONS)
    ]
    turns = [number for number in range(NUM_CONVERSATIONS) for _ in range(NUM_TURNS)]
    shuffled.shuffle(turns)

    def count(metric: str) -> float:
        return sum(fleet.metric(port, metric) for port in fleet.ports)

    found, read = count("textmill_prefix_cache_hit_tokens"), count("textmill_prompt_tokens")
    for number in turns:
        answer = ask(client, texts[number])
        assert answer.status_code == 200, answer.text
        texts[number] += answer.json()["choices"][0]["text"] + " and then? "
    return (count("textmill_prefix_cache_hit_tokens") - found) / (count("textmill_prompt_tokens") - read)


def test_a_router_that_knows_prefixes_finds_them_again(tmp_path: Path, fleet: Fleet) -> None:
    with httpx.Client(base_url=fleet.url(fleet.ports[0]), timeout=LIMIT_S, trust_env=False) as one_server:
        best = talk(one_server, fleet, "alone")
    with running_router(tmp_path, fleet.ports, "round_robin") as client:
        by_turns = talk(client, fleet, "turns")
    with running_router(tmp_path, fleet.ports, "cache_aware") as client:
        by_prefix = talk(client, fleet, "prefix")
    print(f"\nshare of reused tokens: one server {best:.2f}, cache_aware {by_prefix:.2f}, round_robin {by_turns:.2f}")
    assert best > 0.5
    assert by_prefix > best - 0.05
    assert by_turns < best - 0.15
    counts = [fleet.metric(port, "tgi_request_count") for port in fleet.ports]
    assert min(counts) > NUM_CONVERSATIONS, "each server got calls"


def test_a_router_that_follows_the_events_knows_what_it_has_not_sent(
    tmp_path: Path, fleet: Fleet, event_ports: dict[int, int]
) -> None:
    """Texts that reached a server past the router are found there again: the events tell, and nothing else could."""
    num_rounds = 0

    def is_followed() -> bool:
        """Tell each server two texts of its own, and ask for all of them through the router."""
        nonlocal num_rounds
        num_rounds += 1
        texts = {f"round {num_rounds} text {place} was told past the router " * 6: place % 2 for place in range(4)}
        for text, place in texts.items():
            with httpx.Client(base_url=fleet.url(fleet.ports[place]), timeout=LIMIT_S, trust_env=False) as past:
                assert ask(past, text).status_code == 200
        return all(is_found(text, fleet.ports[place]) for text, place in texts.items())

    def is_found(text: str, port: int) -> bool:
        before = fleet.metric(port, "textmill_prefix_cache_hit_tokens")
        answer = ask(client, text)
        assert answer.status_code == 200, answer.text
        num_found = fleet.metric(port, "textmill_prefix_cache_hit_tokens") - before
        return num_found > answer.json()["usage"]["prompt_tokens"] / 2

    with running_router(tmp_path, fleet.ports, "kv_aware", event_ports) as client:
        # The subscription begins a moment after the router answers.
        wait_until(is_followed, LIMIT_S, "each call goes to the server that has its text")


def test_streams_and_refusals_come_through(tmp_path: Path, fleet: Fleet) -> None:
    with running_router(tmp_path, fleet.ports, "cache_aware") as client:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 40, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in stream.iter_lines() if line.startswith("data:")]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) > 3
        # As docs/deploy.md says: the router drops `inputs` of /generate, and hands other routes on as they are.
        body_of_tgi = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
        assert [client.post(path, json=body_of_tgi).status_code for path in TGI_ROUTES] == [422, 200, 200]
        bad = client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "top_p": 7})
        assert bad.status_code == 422


def test_a_refusal_for_load_goes_to_the_client(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.02), max_concurrent_requests=1) as server:
        long = {"inputs": "a", "parameters": {"max_new_tokens": 2000, "ignore_eos": True}}
        with running_router(tmp_path, [server.port] * 2, "cache_aware") as client, server.send("/generate", long):
            server.wait_until_counts(running=1, waiting=0)
            answer = ask(client, "a")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.slow  # some 20 s: a server starts
def test_calls_go_on_when_a_server_is_killed_and_when_it_is_back(tmp_path: Path, fleet: Fleet) -> None:
    lost, kept = fleet.ports
    statuses: list[int] = []
    is_over = threading.Event()
    with running_router(tmp_path, fleet.ports, "cache_aware") as client:

        def call(number: int) -> None:
            while not is_over.is_set():
                statuses.append(ask(client, f"{number} the weather " * 5).status_code)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(statuses) > 20, LIMIT_S, "calls are answered")
            fleet.kill(lost)
            num_at_loss = len(statuses)
            wait_until(lambda: len(statuses) > num_at_loss + 40, LIMIT_S, "calls are answered by the other server")
            fleet.start(lost)
            fleet.wait_ready()
            before = fleet.metric(lost, "tgi_request_count")
            wait_until(lambda: fleet.metric(lost, "tgi_request_count") > before, LIMIT_S, "the new server gets calls")
        finally:
            is_over.set()
            for thread in threads:
                thread.join(LIMIT_S)
    print(f"\n{len(statuses)} calls, by status: { {status: statuses.count(status) for status in set(statuses)} }")
    assert set(statuses) == {200}
    assert fleet.ports == [lost, kept]
