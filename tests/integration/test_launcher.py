"""The launcher with real shards and a real router, on tiny models."""

import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.fakes.certificates import write_pair
from tests.fakes.processes import START_LIMIT_S, STOP_LIMIT_S, LaunchedServer, launched, wait_until
from tests.fakes.tiny_gguf import write_tiny_gguf
from tests.fakes.tiny_models import make_tiny_llama

KV_BYTES = str(8 * 1024 * 1024)  # plenty for a tiny model
QUESTION = {"inputs": "Hello", "parameters": {"max_new_tokens": 4, "do_sample": False}}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny_llama"), max_position_embeddings=32_768)


@pytest.fixture
def tiny_arguments(tiny_model: Path) -> list[str]:
    return ["--model-id", str(tiny_model), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES]


@pytest.fixture
def socket_folder(tmp_path: Path) -> Iterator[Path]:
    """The TMPDIR of the launcher under test, which must be empty at the end."""
    folder = tmp_path / "t"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServer]:
    """A server that loads at first. Its last test ends the server."""
    arguments = ["--model-id", str(tiny_model), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES]
    with launched(arguments, tmp_path_factory.mktemp("server")) as started:
        yield started


def process_ids(server: LaunchedServer) -> list[int]:
    return [server.process.pid, *(child.pid for child in server.children())]


def are_gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def assert_gone(pids: list[int]) -> None:
    wait_until(lambda: are_gone(pids), STOP_LIMIT_S, f"none of {pids} lives")


def events_after_the_first(server: LaunchedServer, then: Callable[[], None], num_tokens: int = 20_000) -> list[str]:
    """Read a long stream, call `then` after its first event, and return the events.

    A stream that is cut off fails the test.
    """
    question = {"inputs": "Hello", "parameters": {"max_new_tokens": num_tokens, "ignore_eos": True}}
    with (
        httpx.Client(trust_env=False, timeout=STOP_LIMIT_S) as client,
        client.stream("POST", f"{server.base_url}/generate_stream", json=question) as stream,
    ):
        lines = stream.iter_lines()
        first = next(lines)
        then()
        return [first, *(line for line in lines if line.startswith("data:"))]


def test_generate_and_health_tell_the_phase_while_loading(server: LaunchedServer) -> None:
    with httpx.Client(trust_env=False, timeout=30) as client:
        wait_until(lambda: server.health() is not None, 60, "the router listens")
        refused = client.post(f"{server.base_url}/generate", json=QUESTION)
        assert refused.status_code == 503
        body = refused.json()
        assert body["error_type"] == "loading"
        assert body["phase"]
        assert "estimated_time" in body
        health = client.get(f"{server.base_url}/health")
        assert health.status_code == 503
        assert (health.json()["error"], health.json()["error_type"]) == ("unhealthy", "healthcheck")
        assert health.json()["phase"]
        server.wait_ready()
        assert client.post(f"{server.base_url}/generate", json=QUESTION).status_code == 200
        log = server.log_text
        assert "shard rank 0: ready after" in log
        assert "router: ready after" in log


def test_second_signal_gives_running_requests_an_error(server: LaunchedServer) -> None:
    server.wait_ready()
    pids = process_ids(server)

    def signal_twice() -> None:
        server.process.terminate()
        server.wait_for_log("draining")
        server.process.terminate()

    events = events_after_the_first(server, then=signal_twice)
    assert '"error_type":"shutting_down"' in events[-1]
    assert server.wait_exit() == 0
    assert_gone(pids)
    assert "SIGTERM again" in server.log_text


def test_signal_lets_running_requests_end_and_leaves_nothing_behind(
    tiny_arguments: list[str], tmp_path: Path, socket_folder: Path
) -> None:
    with launched(tiny_arguments, tmp_path, TMPDIR=str(socket_folder)) as server:
        server.wait_ready()
        (private_folder,) = socket_folder.iterdir()
        assert stat.S_IMODE(private_folder.stat().st_mode) == 0o700
        modes = [path.stat().st_mode for path in private_folder.iterdir()]
        assert sum(map(stat.S_ISSOCK, modes)) == 1
        assert {stat.S_IMODE(mode) for mode in modes} == {0o600}
        pids = process_ids(server)
        assert len(pids) == 3
        began_s = time.monotonic()
        events = events_after_the_first(server, then=server.process.terminate, num_tokens=300)
        assert '"generated_text":"' in events[-1]
        assert server.wait_exit() == 0
        assert time.monotonic() - began_s < STOP_LIMIT_S
        assert_gone(pids)


def test_stop_while_loading_leaves_nothing_behind(
    tiny_arguments: list[str], tmp_path: Path, socket_folder: Path
) -> None:
    with launched(tiny_arguments, tmp_path, TMPDIR=str(socket_folder)) as server:
        server.wait_for_log("router: started")
        pids = process_ids(server)
        assert server.stop(signal.SIGHUP) == 0  # the signal of a terminal that is closed
        assert_gone(pids)


def test_shard_that_is_killed_without_restarts_left_stops_the_rest_and_is_named(
    tiny_arguments: list[str], tmp_path: Path, socket_folder: Path
) -> None:
    with launched([*tiny_arguments, "--max-restarts", "0"], tmp_path, TMPDIR=str(socket_folder)) as server:
        server.wait_ready()
        pids = process_ids(server)
        (shard,) = server.children("textmill_shard")
        events = events_after_the_first(server, then=shard.kill)
        assert '"error_type":"shutting_down"' in events[-1]
        assert "shard rank 0 was killed by SIGKILL" in events[-1]
        assert server.wait_exit() == 128 + signal.SIGKILL
        assert_gone(pids)
        log = server.log_text
        assert "shard rank 0 was killed by SIGKILL while serving" in log
        assert "its last lines:" in log
        assert "what to try:" in log


def test_router_that_is_killed_without_restarts_left_stops_the_rest_and_is_named(
    tiny_arguments: list[str], tmp_path: Path, socket_folder: Path
) -> None:
    with launched([*tiny_arguments, "--max-restarts", "0"], tmp_path, TMPDIR=str(socket_folder)) as server:
        server.wait_ready()
        pids = process_ids(server)
        (router,) = server.children("textmill_router")
        router.kill()
        assert server.wait_exit() == 128 + signal.SIGKILL
        assert_gone(pids)
        assert "router was killed by SIGKILL while serving" in server.log_text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can signal the death of a parent")
def test_killed_launcher_takes_its_children_along(tiny_arguments: list[str], tmp_path: Path) -> None:
    """Each rank and the router die, also those that were started again."""
    with launched([*tiny_arguments, "--num-shard", "2"], tmp_path, TMPDIR=str(tmp_path)) as server:
        server.wait_ready()
        server.children("textmill_shard")[0].kill()
        server.wait_for_log("ready again after")
        pids = process_ids(server)
        assert len(pids) == 4
        server.process.kill()
        server.wait_exit()
        assert_gone(pids)


def test_model_that_cannot_be_loaded_is_told_with_rank_and_reason(tmp_path: Path, socket_folder: Path) -> None:
    folder = make_tiny_llama(tmp_path / "broken")
    (folder / "config.json").write_text('{"model_type": "no_such_architecture"}')
    with launched(["--model-id", str(folder)], tmp_path, TMPDIR=str(socket_folder)) as server:
        assert server.wait_exit(60) != 0
        log = server.log_text
        assert "shard rank 0" in log
        assert "no_such_architecture" in log
        assert "starts again" not in log


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--port", "99999"], 2, ["--port", "'99999'", "from 1 to 65535"]),
        (["--dtype", "int3"], 2, ["--dtype", "'int3'", "bfloat16"]),
        (["--max-input-tokens", "9", "--max-total-tokens", "9"], 2, ["--max-input-tokens", "--max-total-tokens"]),
        (["--sharded", "true", "--num-shard", "1"], 2, ["--sharded true needs"]),
        (["--model-id", "/no/such/folder"], 11, ["/no/such/folder", "no such folder"]),
        (["--no-such-flag"], 2, ["--no-such-flag"]),
    ],
)
def test_bad_flag_ends_at_once_and_is_explained(arguments: list[str], exit_code: int, words: list[str]) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-m", "textmill_launcher", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environ,
    )
    assert done.returncode == exit_code
    assert all(word in done.stdout + done.stderr for word in words)


def test_log_lines_are_json_and_show_no_key_on_a_server_with_keys_and_tls(
    tiny_arguments: list[str], tmp_path: Path
) -> None:
    trusted = ssl.create_default_context()
    write_pair(tmp_path).configure_trust(trusted)
    tls = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    keys = ["--api-key", "s3cret-1", "--api-key", "s3cret-2"]
    with launched([*tiny_arguments, "--json-output", *keys, *tls], tmp_path) as server:
        server.wait_ready()
        url = server.base_url.replace("http://", "https://")
        assert f" on {url}" in server.log_text
        with httpx.Client(base_url=url, verify=trusted, trust_env=False, timeout=30) as client:
            answers = [
                client.post("/generate", json=QUESTION, headers={"x-api-key": key}).status_code
                for key in ("s3cret-1", "s3cret-2", "s3cret-3")
            ]
        assert answers == [200, 200, 401]
        command_lines = " ".join(" ".join(child.cmdline()) for child in server.children())
        pids = process_ids(server)
        assert server.stop(signal.SIGINT) == 0
        assert_gone(pids)
        entries = [json.loads(line) for line in server.log_text.splitlines()]
    assert {entry.get("source") for entry in entries} == {None, "shard", "router"}
    assert {entry["rank"] for entry in entries if entry.get("source") == "shard"} == {0}
    assert "s3cret" not in server.log_text
    assert "s3cret" not in command_lines


def test_launcher_serves_a_gguf_file_that_another_process_converts_at_once(tmp_path: Path) -> None:
    gguf_file, cache = tmp_path / "tiny.gguf", tmp_path / "converted"
    write_tiny_gguf(gguf_file)
    command = [sys.executable, "-m", "textmill_shard", "convert", "--gguf", str(gguf_file), "--cache-dir", str(cache)]
    arguments = ["--model-id", str(gguf_file), "--conversion-cache", str(cache), "--kv-cache-bytes", KV_BYTES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other, launched(arguments, tmp_path) as server:
        server.wait_ready()
        answer = httpx.post(f"{server.base_url}/generate", json=QUESTION, timeout=60, trust_env=False)
        assert answer.status_code == 200
        told, _ = other.communicate(timeout=60)
    assert other.returncode == 0
    (converted,) = cache.iterdir()
    assert told.splitlines()[-1] == str(converted)
    assert (converted / "model.safetensors").is_file()


def test_a_file_of_keys_that_cannot_be_used_ends_the_start_and_is_not_tried_again(
    tiny_arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "keys.toml").write_text('[[key]]\nname = "a"\n')
    with launched([*tiny_arguments, "--api-key-file", str(tmp_path / "keys.toml")], tmp_path) as server:
        assert server.wait_exit(START_LIMIT_S) == 2
        assert "a must have either `key` or `sha256`" in server.log_text
        assert server.log_text.count("router: started") == 1
