"""The probes of a server through its life: start, load, ready, full, hung, lost, back, leaving."""

import socket
from pathlib import Path

import httpx
import pytest
from textmill_router.health import group_watch

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter

BODY = {"inputs": "hi", "parameters": {"max_new_tokens": 3}}
PROBES = ("/health", "/health/live", "/health/ready", "/health/startup")


def probe(client: httpx.Client) -> tuple[str, tuple[int, ...]]:
    """Return the state, on which all probes agree, and the statuses of the probes."""
    answers = [client.get(path) for path in PROBES]
    states = {answers[0].headers["x-health-state"], *(answer.json()["state"] for answer in answers[1:])}
    assert len(states) == 1, states
    return states.pop(), tuple(answer.status_code for answer in answers)


def wait_for_state(router: RunningRouter, state: str) -> None:
    router.wait_until(lambda: router.service.health.look().state == state, f"the state is {state}")


def test_a_start_is_told_phase_by_phase(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:
        wait_for_state(router, "loading")
        assert probe(client) == ("loading", (503, 200, 503, 503))
        assert client.get("/health/startup").json()["percent"] == 50
        body = client.get("/health").json()
        assert {name: body[name] for name in ("error_type", "state", "phase", "percent")} == {
            "error_type": "healthcheck",
            "state": "loading",
            "phase": "weights",
            "percent": 50,
        }
        router.shard.load("warmup", 0.9)
        wait_for_state(router, "warming")
        assert probe(client) == ("warming", (503, 200, 503, 503))
        assert "percent" not in client.get("/health/ready").json()
        router.shard.load(None)
        wait_for_state(router, "ready")
        assert probe(client) == ("ready", (200, 200, 200, 200))
        assert client.get("/info").json()["health_state"] == "ready"
        assert client.get("/health/live").json()["since_s"] >= 0


def test_failed_start_is_dead_until_the_shard_starts_again(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:
        router.shard.fail("no memory")
        wait_for_state(router, "dead")
        assert probe(client) == ("dead", (503, 503, 503, 503))
        assert "no memory" not in client.get("/health").text, "the probes need no key, so they tell no cause"
        router.shard.fail(None)
        wait_for_state(router, "loading")


def test_full_server_is_ready_and_a_lost_shard_is_not(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, max_concurrent_requests=2) as router, router.client() as client:
        router.shard.pause()
        holders = [router.send("/generate", BODY) for _ in range(2)]
        wait_for_state(router, "saturated")
        assert client.post("/generate", json=BODY).status_code == 429
        assert probe(client) == ("saturated", (200, 200, 200, 200))
        metrics = client.get("/metrics").text
        assert 'textmill_health_state{state="saturated"} 1\n' in metrics
        assert 'textmill_health_state{state="ready"} 0\n' in metrics
        router.shard.load("weights", 0.25)
        router.shard.cut()
        wait_for_state(router, "recovering")
        assert probe(client) == ("recovering", (503, 200, 503, 200))
        assert client.get("/info").json()["health_state"] == "recovering"
        router.shard.load(None)
        router.shard.resume()
        finish(holders)
        wait_for_state(router, "ready")
        assert probe(client) == ("ready", (200, 200, 200, 200))


def test_hung_step_is_not_ready_and_in_the_end_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill_router.engine.engine_loop.STALL_WARNING_S", 0.2)
    with RunningRouter(tmp_path, FakeShardOptions(heartbeat_s=0.05)) as router, router.client() as client:
        router.shard.pause()  # heartbeats go on, and no step ends
        holder = router.send("/generate", BODY)
        wait_for_state(router, "recovering")
        assert probe(client) == ("recovering", (503, 200, 503, 200))
        monkeypatch.setattr(group_watch, "MAX_STEP_S", 0.3)
        wait_for_state(router, "dead")
        assert probe(client) == ("dead", (503, 503, 503, 503))
        router.shard.resume()
        finish([holder])
        wait_for_state(router, "ready")


def test_leaving_server_lives_but_is_not_ready(tmp_path: Path) -> None:
    with RunningRouter(tmp_path) as router, router.client() as client:
        router.in_loop(router.service.permits.close)
        assert probe(client) == ("draining", (503, 200, 503, 200))


def test_probes_need_no_key(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, api_key=("k",)) as router, router.client() as client:
        assert [client.get(path).status_code for path in PROBES] == [200] * 4
        assert [client.post(path).status_code for path in PROBES] == [401] * 4
        assert client.get("/health/live/").status_code == 401


def test_the_state_of_a_server_without_a_shard_is_starting(tmp_path: Path) -> None:
    absent = RunningRouter(tmp_path, is_loading=True, make_shard=lambda _socket, _model: Absent())
    with absent as router, router.client() as client:
        assert probe(client) == ("starting", (503, 200, 503, 503))


class Absent:
    """A shard whose process has not come up."""

    def load(self, phase: str | None, progress: float = 0.0) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def finish(holders: list[socket.socket]) -> None:
    for holder in holders:
        assert holder.recv(15) == b"HTTP/1.1 200 OK"
        holder.close()
